"""Prove each stretch of a run: exact passes against the original, a lossy pass against its reference.

Where passes put integers in, the target's kernels are proved as well: against the simulated rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import invariants, simulated
from .errors import InputError, ModelError
from .interfaces import Effect, Pass, PassReport
from .report import SIMULATED, CheckEntry, PassEntry

if TYPE_CHECKING:
    import onnx_ir as ir

    from .context import Context
    from .interfaces import Backend
    from .verify import Baseline

When = Literal["end", "each", "never"]
SAMPLES = 2
"""So many inputs the target's integers are compared on."""
MOST_WRONG = 16
"""A pass that put in so many layers which the target computes wrongly is left out as a whole."""


@dataclass
class Mismatch(Exception):
    """The model is not what it must be; the rewrites numbered above ``low`` up to ``high`` are under suspicion."""

    after: str
    reason: str
    low: int
    high: int
    whole: bool = False
    """Whether it is not worth the time to look for one rewrite to blame."""


class Checker:
    """Compares the model with what it must equal, as seldom as it can.

    A run of exact passes is checked at its end (``when="each"``: after every pass), a lossy pass right after it
    ran. ``baseline`` holds the original's outputs, computed once for all executions of a run.
    """

    def __init__(self, baseline: Baseline | None, when: When = "end", target: Backend | None = None) -> None:
        """Compare with ``baseline``; and integers as ``target`` runs them, where it is given and can be used here."""
        self.original = baseline
        self.target = target
        self.baseline = baseline
        self.against = "original"
        self.when: When = when if baseline is not None else "never"
        self.entries: list[CheckEntry] = []
        self._checked = 0
        self._last = "loading"
        self._lossy: set[str] = set()

    def before(self, model: ir.Model, context: Context, steps: Sequence[Pass]) -> None:
        """Close a run of exact passes before a lossy one."""
        if any(step.effect is Effect.LOSSY for step in steps) and context.count > self._checked:
            self._check(model, context, self._last)

    def after(
        self, model: ir.Model, context: Context, steps: Sequence[Pass], reports: Sequence[PassReport]
    ) -> None:
        """Check what must be checked right after ``steps`` ran."""
        self._last = steps[-1].name
        self._lossy.update(
            step.name
            for step, report in zip(steps, reports, strict=True)
            if report.applied and step.effect is Effect.LOSSY
        )
        lossy = [report for report in reports if report.reference is not None or report.restored is not None]
        if lossy and self.original is not None and context.count > self._checked:
            self._prove(lossy[0], model, context)
            self.baseline, self.against = self.original.on(model), f"result of {self._last}"
        elif self.when == "each" and context.count > self._checked:
            self._check(model, context, self._last)

    def _prove(self, report: PassReport, model: ir.Model, context: Context) -> None:
        """Check a lossy pass: its result against the reference, or its result without the loss against its input."""
        if report.restored is not None:
            self._check(report.restored, context, self._last, f"{self.against}, without the loss")
        if report.reference is not None:
            assert self.original is not None
            self.baseline, self.against = self.original.on(report.reference), f"reference of {self._last}"
            self._check(model, context, self._last)
        elif (reason := self._broken(model)) is not None:
            raise Mismatch(self._last, reason, self._checked, context.count)

    def end(self, model: ir.Model, context: Context, entries: Sequence[PassEntry]) -> None:
        """Check the result."""
        if context.count > self._checked or not self.entries:
            self._check(model, context, self._last)
        lossy = [entry for entry in entries if entry.name in self._lossy]
        if lossy and self.original is not None and self.target is not None:
            self._integers(model, self.target, self.original, lossy, context)

    def _integers(
        self,
        model: ir.Model,
        target: Backend,
        original: Baseline,
        lossy: Sequence[PassEntry],
        context: Context,
    ) -> None:
        """Check that the target's integer kernels round as the pairs say."""
        if not original.by_runtime or target.unavailable() is not None:
            return
        try:
            found = simulated.compare_integers(model, target, original.feeds[:SAMPLES])
        except (ModelError, InputError) as error:
            context.remarks.append(f"the target's integers were compared with nothing: {error}")
            return
        if found is None:
            return
        after, wrong = lossy[-1].name, found.wrong
        self.entries.append(CheckEntry(after, SIMULATED, found.ok, found.text()))
        if found.ok:
            return
        numbers = {a.where: (entry.name, a.number) for entry in lossy for a in entry.applied}
        blamed = [next((numbers[n] for n in layer.nodes if n in numbers), None) for layer in wrong]
        named = [each for each in blamed if each is not None]
        if not named or len(wrong) >= MOST_WRONG:
            raise Mismatch(named[0][0] if named else after, found.text(), 0, context.count, whole=True)
        name, number = min(named, key=lambda each: each[1])
        raise Mismatch(name, wrong[blamed.index((name, number))].text(), number - 1, number)

    def _check(self, model: ir.Model, context: Context, after: str, against: str = "") -> None:
        reason = self._broken(model) or self._different(model, after, against or self.against)
        if reason is not None:
            raise Mismatch(after, reason, self._checked, context.count)
        self._checked = context.count

    def _broken(self, model: ir.Model) -> str | None:
        problems = invariants.problems(model)
        return f"the graph is broken: {problems[0]}" if problems else None

    def _different(self, model: ir.Model, after: str, against: str) -> str | None:
        if self.baseline is None:
            return None
        try:
            comparison = self.baseline.check(model)
        except ModelError as error:
            return f"the runtime refuses the result: {error}"
        worst = max((output.max_rel for output in comparison.outputs), default=0.0)
        self.entries.append(CheckEntry(after, against, comparison.ok, comparison.text(), worst))
        return None if comparison.ok else comparison.text()


class Unchecked(Checker):
    """Checks nothing: for looking at a model that is known to be wrong."""

    def __init__(self) -> None:
        super().__init__(None, "never")

    def end(self, model: ir.Model, context: Context, entries: Sequence[PassEntry]) -> None:
        """Accept whatever came out."""
