"""What a run shares with its passes: inputs, target, numbering of rewrites, remarks, cached analyses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import onnx_ir as ir

from .interfaces import Applied, PassReport, place

if TYPE_CHECKING:
    from .interfaces import Backend

Feeds = Mapping[str, Any]
"""Arrays by input name (a list of arrays for a sequence)."""
A = TypeVar("A")
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all; 0 where that is not known)."""


class Analysis(Protocol):
    """What ``context.analysis`` takes: a callable on (model, context). Cached until a pass changes the graph.

    A class attribute ``survives_edits = True`` says that the analysis keeps itself up to date.
    """

    def __call__(self, model: ir.Model, context: Context, /) -> Any:
        """Analyse ``model``."""


def silent(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""


class Context:
    """What one run of a pipeline shares."""

    def __init__(
        self,
        model: ir.Model,
        *,
        samples: Sequence[Feeds] | Callable[[], Sequence[Feeds]] = (),
        calibration: Iterable[Feeds] | None = None,
        target: Backend | None = None,
        seed: int = 0,
        progress: Progress = silent,
        limit: int | None = None,
        left_out: Collection[int] = (),
        decisions: dict[Hashable, Any] | None = None,
    ) -> None:
        self.model = model
        self._samples = samples
        self._given = not callable(samples) and bool(samples)
        self.calibration = calibration
        """Any iterable of ``{input name: array}``, read as often as it is asked for."""
        self.target = target
        """The backend that the result is for; ``None`` where the run is for no target in particular."""
        self.seed = seed
        self.progress = progress
        self.remarks: list[str] = []
        """What a reader of the report should know, one sentence each."""
        self.count = 0
        """How many rewrites were numbered so far."""
        self._limit = limit
        self._left_out = frozenset(left_out)
        self._refused: set[tuple[str, str]] = set()
        self._analyses: dict[Any, Any] = {}
        self._decisions = decisions if decisions is not None else {}
        self.step = ""
        """The name of the pass that runs now."""

    @property
    def has_given_samples(self) -> bool:
        """Whether the user gave the sample inputs; others are merely drawn."""
        return self._given

    @property
    def samples(self) -> Sequence[Feeds]:
        """Sample inputs: the user's, or drawn from the graph's input shapes."""
        if callable(self._samples):
            self._samples = self._samples()
        return self._samples

    def admit(self, report: PassReport, where: ir.Node | ir.Value | str, detail: str = "") -> bool:
        """Number the edit that comes next and record it in ``report``; ``False`` where it must not be done.

        An edit is left out when the bisect limit is reached, or when verification found it to blame. The numbers
        of one pipeline on one model are the same at every run.
        """
        name = (
            place(where)
            if isinstance(where, ir.Node)
            else where.name or "?"
            if isinstance(where, ir.Value)
            else where
        )
        if self._limit is not None and self.count >= self._limit:
            return False
        if (self.step, name) in self._refused:
            return False
        self.count += 1
        if self.count in self._left_out:
            self._refused.add((self.step, name))
            return False
        report.applied.append(Applied(self.count, name, detail))
        return True

    def analysis(self, analyse: Callable[[ir.Model, Context], A]) -> A:
        """Return ``analyse(model, context)``, computed once until a pass changes the graph."""
        if analyse not in self._analyses:
            self._analyses[analyse] = analyse(self.model, self)
        return cast("A", self._analyses[analyse])

    def once(self, key: Hashable, decide: Callable[[], A]) -> A:
        """Return ``decide()``, called once however often the pipeline has to run again to find a rewrite to blame.

        What a pass decides by measuring goes through here: measured again, it might come out otherwise.
        """
        if key not in self._decisions:
            self._decisions[key] = decide()
        return cast("A", self._decisions[key])

    def changed(self) -> None:
        """Drop the analyses that an edit of the graph makes stale; the driver calls it after each pass."""
        self._analyses = {k: v for k, v in self._analyses.items() if getattr(k, "survives_edits", False)}
