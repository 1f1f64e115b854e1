"""What a run with lossy passes costs: how far each output of the result is from the original's, and a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from . import addresses, samples
from .closeness import Difference
from .context import Feeds, Progress, silent
from .errors import GraphoptError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from .interfaces import Backend

Array = np.ndarray[Any, Any]
Run = Callable[[Feeds], dict[str, Array]]
"""Runs a model once: arrays by name in, arrays by name out."""
Metric = Callable[[Run], float]
"""Judges a model that it is given to run: an accuracy, an error, whatever is a number."""
MOST = 64
"""So many samples are looked at."""


@dataclass(frozen=True)
class OutputLoss:
    """How far one output is from the original's, over all samples."""

    output: str
    sqnr_db: float
    """Signal to noise; infinite where both are equal."""
    cosine: float
    """Of the angle between both, for each slice of the first axis: the mean."""
    least_cosine: float
    """… and the least."""
    top1: float | None
    """Share of the rows along the last axis that have their largest element at the same place, of outputs with two
    or three axes (class scores, for each image or each step of a sequence); ``None`` for others."""


@dataclass(frozen=True)
class Score:
    """What the user's metric says."""

    metric: str
    before: float
    after: float


@dataclass
class Loss:
    """What the result lost against the original."""

    samples: str = ""
    """What the outputs were compared on."""
    outputs: list[OutputLoss] = field(default_factory=list)
    score: Score | None = None

    COLUMNS = ("output", "SQNR", "mean cosine", "least cosine", "same top-1")

    def rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Yield a row of text an output, under :attr:`COLUMNS`."""
        for each in self.outputs:
            sqnr = f"{each.sqnr_db:.1f} dB" if math.isfinite(each.sqnr_db) else "equal"
            top1 = f"{100 * each.top1:.1f} %" if each.top1 is not None else ""
            yield each.output, sqnr, f"{each.cosine:.4f}", f"{each.least_cosine:.4f}", top1

    def text(self) -> list[str]:
        """Return what the metric says, as a sentence; nothing where there is none."""
        found = self.score
        return [f"{found.metric}: {found.before:.6g} before, {found.after:.6g} after"] if found else []


class Judge:
    """Says what results lost against the original."""

    def __init__(
        self,
        original: ir.Model,
        target: Backend,
        metric: str | Metric | None = None,
        *,
        inputs: Sequence[Feeds] | None = None,
        calibration: Iterable[Feeds] | None = None,
        progress: Progress = silent,
    ) -> None:
        """Ask ``metric`` about the original: before anything else is done that an error of it would undo.

        Outputs are compared on ``inputs``, or else on ``calibration``; where there are neither, they are not: what
        is lost on inputs that are drawn says little of real ones.

        Raises:
            UsageError: the metric cannot be imported, raises, or returns no number.
            GraphoptError: the target cannot run the original, which the metric has to judge.
        """
        self.original, self.target, self.progress = original, target, progress
        self.data, self.kind = (inputs, "given") if inputs is not None else (calibration, "calibration")
        self.name, self.metric, self.before = "", None, math.nan
        if metric is not None:
            self.name, self.metric = metric_of(metric)
            self.before = self._score(original)

    def loss(self, result: ir.Model, *, lossy: bool) -> Loss:
        """Return what ``result`` lost; its outputs are compared only where passes are ``lossy`` that did anything.

        Raises:
            UsageError: the metric raises, or returns no number.
            GraphoptError: the target cannot run one of the models, or the samples do not fit.
        """
        found = Loss()
        if self.metric is not None:
            found.score = Score(self.name, self.before, self._score(result))
        if lossy and self.data is not None:
            feeds = [one for feed in islice(self.data, MOST) for one in samples.check(self.original, feed)]
            found.samples = f"on {len(feeds)} {self.kind} sample{'s' * (len(feeds) != 1)}"
            found.outputs = self._compared(result, feeds)
        return found

    def _score(self, model: ir.Model) -> float:
        assert self.metric is not None
        self.progress(f"asking {self.name}", 0, 0)
        return score(self.name, self.metric, model, self.target)

    def _compared(self, result: ir.Model, feeds: Sequence[Feeds]) -> list[OutputLoss]:
        """Return how far each output is; those of another shape now, and those of no numbers, are left out."""
        found = {value.name or "": _Seen(value.name or "") for value in self.original.graph.outputs}
        with self.target.compile(self.original) as first, self.target.compile(result) as second:
            for number, given in enumerate(feeds, 1):
                self.progress("what was lost", number, len(feeds))
                feed = {name: array for name, array in given.items() if array is not None}
                wanted, got = first.run(feed), second.run(feed)
                for name in wanted.keys() & got.keys() & found.keys():
                    found[name].add(wanted[name], got[name])
        return [seen.loss() for seen in found.values() if seen.cosines]


def metric_of(given: str | Metric) -> tuple[str, Metric]:
    """Return what a metric is called, and it: ``module:function``, or a function.

    Raises:
        UsageError: it names no function.
    """
    if not isinstance(given, str):
        return getattr(given, "__qualname__", type(given).__name__), given
    wanted = "a function that is given one to run the model, and returns a number"
    return given, addresses.function(given, wanted, UsageError)


def score(name: str, metric: Metric, model: ir.Model, target: Backend) -> float:
    """Return what a metric says of ``model`` as ``target`` runs it.

    Raises:
        UsageError: the metric raises, or returns no number.
        GraphoptError: the target cannot run the model.
    """
    with target.compile(model) as executable:
        try:
            found = metric(lambda feeds: executable.run(feeds))
        except GraphoptError:
            raise
        except Exception as error:  # a stranger's code
            raise UsageError(f"metric {name}: it raised {type(error).__name__}: {error}") from error
    try:
        return float(found)
    except (TypeError, ValueError):
        raise UsageError(f"metric {name}: it returned {found!r}; return a number") from None


@dataclass
class _Seen:
    """What is known of one output after some feeds."""

    name: str
    difference: Difference = field(init=False)
    cosines: list[float] = field(default_factory=list)
    same: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        self.difference = Difference(self.name)

    def add(self, wanted: Any, got: Any) -> None:
        if not (_numbers(wanted) and _numbers(got)) or wanted.shape != got.shape or wanted.size == 0:
            return
        a, b = wanted.astype(np.float64), got.astype(np.float64)
        self.difference.add(a, b)
        finite = np.isfinite(a) & np.isfinite(b)
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
        x, y = (each.reshape(len(each) if each.ndim > 1 else 1, -1) for each in (a, b))
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        same = (x == y).all(axis=1)
        cosines = np.where(same, 1.0, (x * y).sum(axis=1) / np.where(norms > 0, norms, 1.0))
        self.cosines += np.clip(cosines, -1.0, 1.0).tolist()
        if a.ndim in (2, 3) and a.shape[-1] > 1:
            self.same += int((a.argmax(axis=-1) == b.argmax(axis=-1)).sum())
            self.rows += math.prod(a.shape[:-1])

    def loss(self) -> OutputLoss:
        top1 = self.same / self.rows if self.rows else None
        cosines = self.cosines
        return OutputLoss(
            self.name, self.difference.sqnr_db, float(np.mean(cosines)), float(min(cosines)), top1
        )


def _numbers(array: Any) -> bool:
    return isinstance(array, np.ndarray) and (array.dtype.kind in "fiu" or array.dtype.name == "bfloat16")
