"""Prove each stretch of a run: exact passes against the original, a lossy pass against its reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import invariants
from .errors import ModelError
from .interfaces import Effect, Pass, PassReport
from .report import CheckEntry, PassEntry

if TYPE_CHECKING:
    import onnx_ir as ir

    from .context import Context
    from .verify import Baseline

When = Literal["end", "each", "never"]


@dataclass
class Mismatch(Exception):
    """The model is not what it must be; the rewrites numbered above ``low`` up to ``high`` are under suspicion."""

    after: str
    reason: str
    low: int
    high: int


class Checker:
    """Compares the model with what it must equal, as seldom as it can.

    A run of exact passes is checked at its end (``when="each"``: after every pass), a lossy pass right after it
    ran. ``baseline`` holds the original's outputs, computed once for all executions of a run.
    """

    def __init__(self, baseline: Baseline | None, when: When = "end") -> None:
        self.original = baseline
        self.baseline = baseline
        self.against = "original"
        self.when: When = when if baseline is not None else "never"
        self.entries: list[CheckEntry] = []
        self._checked = 0
        self._last = "loading"

    def before(self, model: ir.Model, context: Context, steps: Sequence[Pass]) -> None:
        """Close a run of exact passes before a lossy one."""
        if any(step.effect is Effect.LOSSY for step in steps) and context.count > self._checked:
            self._check(model, context, self._last)

    def after(
        self, model: ir.Model, context: Context, steps: Sequence[Pass], reports: Sequence[PassReport]
    ) -> None:
        """Check what must be checked right after ``steps`` ran."""
        self._last = steps[-1].name
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
