"""Compare what two models compute, by running both on the same inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from . import samples
from .analysis.precision import grade, precision
from .closeness import Difference, Tolerance, tolerance
from .conditioning import nudged
from .context import Feeds
from .errors import GraphoptError, InputError, ModelError
from .runners import Evaluator, OnnxRuntime, Runner

__all__ = ["Baseline", "Comparison", "Difference", "compare"]


@dataclass
class Comparison:
    """What was found on all sample inputs."""

    outputs: list[Difference] = field(default_factory=list)
    feeds: int = 0
    problem: str | None = None
    """Why the outputs could not be compared."""
    remarks: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all outputs are equal up to rounding."""
        return self.problem is None and all(output.ok for output in self.outputs)

    def judge(self, tolerances: Mapping[str, Tolerance | None]) -> bool:
        """Decide for each output whether its difference is rounding; return whether all are."""
        for output in self.outputs:
            output.judge(tolerances[output.name])
        return self.ok

    def text(self) -> str:
        """Return the verdict, one line."""
        if self.problem is not None:
            return self.problem
        on = f"on {_count(self.feeds, 'sample input')}"
        bad = [output for output in self.outputs if not output.ok]
        if bad:
            worst = max(bad, key=lambda output: output.max_rel)
            among = f"; {len(bad)} of {len(self.outputs)} outputs differ" if len(self.outputs) > 1 else ""
            feed = (
                f", on sample input {worst.worst.feed + 1} of {self.feeds}"
                if worst.worst and self.feeds > 1
                else ""
            )
            return f"{worst.reason}{feed}{among}"
        outputs = _count(len(self.outputs), "output")
        worst = max(self.outputs, key=lambda output: output.max_rel, default=Difference(""))
        if worst.max_abs == 0:
            return f"{outputs} equal bit for bit, {on}"
        return (
            f"{outputs} equal up to rounding, largest error {worst.max_rel:.1e} of {worst.name}'s largest "
            f"element, {on}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return {
            "ok": self.ok,
            "text": self.text(),
            "feeds": self.feeds,
            "problem": self.problem,
            "remarks": self.remarks,
            "outputs": [output.to_json() for output in self.outputs],
        }


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def compare(
    a: object,
    b: object,
    inputs: Feeds | Sequence[Feeds] | None = None,
    *,
    seed: int = 0,
    rtol: float | None = None,
) -> Comparison:
    """Run two models on the same inputs, and say per output how far they are apart and whether that is rounding.

    Args:
        a: the model that is taken to be right, from any source that :func:`graphopt.optimize` takes.
        b: the other model.
        inputs: by name, one dictionary or several; drawn from what ``a`` declares where not given.
        seed: of what is drawn.
        rtol: largest error that is right, relative to the largest element of the output, in place of what
            rounding does to the types in ``a``.

    Raises:
        UsageError: a source cannot be read, ``a`` cannot be run, or the inputs do not fit it.
    """
    from .frontends import read

    first, second = read(a), read(b)
    feeds = samples.check(first, inputs) if inputs is not None else None
    return Baseline(first, feeds, seed=seed, rtol=rtol).check(second)


class Baseline:
    """What one model computes on sample inputs, run once; other models are compared with it."""

    def __init__(
        self,
        model: ir.Model,
        feeds: Sequence[Feeds] | None = None,
        *,
        seed: int = 0,
        rtol: float | None = None,
        title: str = "the original",
    ) -> None:
        """Take ``feeds``, or else draw some that the model runs with. The model is run when that is first needed."""
        self.model = model
        self.seed, self.rtol, self.title = seed, rtol, title
        self.remarks: list[str] = []
        self._given = feeds
        self._runner: type[Runner] = OnnxRuntime

    @property
    def feeds(self) -> list[Feeds]:
        """The sample inputs that the model was run on."""
        return [feed for feed, _ in self.runs]

    @cached_property
    def runs(self) -> list[tuple[Feeds, dict[str, Any]]]:
        """Each sample input with what the model makes of it.

        Raises:
            ModelError: the model cannot be run.
            InputError: the inputs do not fit; or none are given, and the model runs with none that were drawn.
        """
        try:
            with self._start() as runner:
                if self._given is None:
                    return self._search(runner)
                return [(feed, runner.run(feed)) for feed in self._given]
        except ModelError as error:
            raise ModelError(
                f"{self.title} cannot be run, so nothing can be compared with it: {error}"
            ) from error

    @property
    def by_runtime(self) -> bool:
        """Whether onnxruntime runs the model."""
        return bool(self.runs) and self._runner is OnnxRuntime

    def _start(self) -> Runner:
        try:
            return self._runner(self.model)
        except ModelError as error:
            try:
                started = Evaluator(self.model)
            except ModelError:
                raise error from None
            self._runner = Evaluator
            self.remarks.append(f"run by onnx's reference evaluator: {error}")
            return started

    def _search(self, runner: Runner) -> list[tuple[Feeds, dict[str, Any]]]:
        """Run on the best of the drawn inputs that the model takes."""
        runs: list[tuple[Feeds, dict[str, Any]]] = []
        refused: GraphoptError | None = None
        for feed in samples.candidates(self.model, self.seed):
            try:
                runs.append((feed, runner.run(feed)))
            except (ModelError, InputError) as error:
                refused = refused or error
            if len(runs) == samples.BINDINGS:
                break
        if not runs:
            raise InputError(
                f"{self.title} runs with none of the inputs drawn for it: {refused}; give inputs"
            )
        if refused is not None and len(runs) < samples.BINDINGS:
            self.remarks.append(f"proved at one set of sizes: others that were tried are refused: {refused}")
        return runs

    @cached_property
    def tolerances(self) -> dict[str, Tolerance | None]:
        """What rounding may do to each output; ``None`` where it is random."""
        known = precision(self.model)
        self.remarks += [
            f"output {n!r} is random: its type and shape are compared" for n in known if known[n].random
        ]
        return {name: None if p.random else tolerance(p.grade, self.rtol) for name, p in known.items()}

    @cached_property
    def widened(self) -> dict[str, Tolerance | None]:
        """The tolerances, larger where the model itself makes much of changes as small as rounding."""
        noise = {name: Difference(name) for name in self.tolerances}
        try:
            with self._runner(nudged(self.model, self.seed)) as runner:
                for feed, wanted in self.runs:
                    for name, got in runner.run(feed).items():
                        noise[name].add(wanted[name], got)
        except (ModelError, InputError):
            return self.tolerances
        widened = {name: limit and limit.widened(noise[name]) for name, limit in self.tolerances.items()}
        self.remarks += [
            f"output {name!r} is ill-conditioned: rounding in the original moves it by {noise[name].max_rel:.0e} of "
            f"its largest element"
            for name, limit in widened.items()
            if limit != self.tolerances[name]
        ]
        return widened

    def on(self, model: ir.Model, title: str = "the reference") -> Baseline:
        """Return what ``model``, as it is now, computes on the same inputs."""
        from .model import clone

        other = Baseline(clone(model), self.feeds, seed=self.seed, rtol=self.rtol, title=title)
        other._runner = self._runner
        return other

    def check(self, model: ir.Model) -> Comparison:
        """Run ``model`` on the same inputs and compare; where it cannot be run, the comparison says so."""
        runs = self.runs
        found = Comparison([Difference(value.name or "") for value in self.model.graph.outputs], len(runs))
        match = _match(self.model, model, runs[0][0])
        if isinstance(match, str):
            found.problem = match
        else:
            try:
                self._compare(model, match, found)
            except (ModelError, InputError) as error:
                found.problem = f"the result cannot be run: {error}"
        if found.problem is None and not found.judge(self.tolerances) and self._doubtful(found):
            found.judge(self.widened)
        found.remarks = list(self.remarks)
        return found

    def _doubtful(self, found: Comparison) -> bool:
        """Return whether what is different might be rounding in a model that makes much of it."""
        limits = [(output, self.tolerances[output.name]) for output in found.outputs if not output.ok]
        return self.rtol is None and all(
            limit is not None and limit.covers(output) for output, limit in limits
        )

    def _compare(self, model: ir.Model, match: _Match, found: Comparison) -> None:
        with self._runner(model) as runner:
            for i, (feed, wanted) in enumerate(self.runs):
                got = runner.run(match.feed(feed))
                for output, other in zip(found.outputs, match.outputs, strict=True):
                    random = self.tolerances[output.name] is None
                    output.add(wanted[output.name], got[other], i, numbers=not random)


# --- which input is which ------------------------------------------------------------------------------------


@dataclass
class _Match:
    inputs: dict[str, ir.Value]
    """The second model's input for each name in a feed of the first."""
    outputs: list[str]
    """The second model's name for each output of the first."""

    def feed(self, feed: Feeds) -> Feeds:
        """Return ``feed`` by the second model's names, floats in the types that it declares."""
        return {
            (value := self.inputs[name]).name or "": _as(given, value.dtype) for name, given in feed.items()
        }


def _as(given: Any, dtype: ir.DataType | None) -> Any:
    if dtype is None or not isinstance(given, np.ndarray) or given.dtype == dtype.numpy():
        return given
    return (
        given.astype(dtype.numpy()) if grade(ir.DataType.from_numpy(given.dtype)) and grade(dtype) else given
    )


def _match(a: ir.Model, b: ir.Model, fed: Collection[str]) -> _Match | str:
    """Match by name, else by position; return what cannot be matched."""
    first = [value for value in a.graph.inputs if value.name in fed]
    named = {value.name: value for value in b.graph.inputs}
    if named.keys() >= set(fed) >= {value.name for value in samples.inputs(b)}:
        inputs: dict[str, ir.Value] | None = {name: named[name] for name in fed}
    else:
        inputs = _pair(first, samples.inputs(b))
    if inputs is None:
        return f"the inputs differ: {_names(first)} became {_names(b.graph.inputs)}"
    outputs = _pair(a.graph.outputs, b.graph.outputs)
    if outputs is None:
        return f"the outputs differ: {_names(a.graph.outputs)} became {_names(b.graph.outputs)}"
    return _Match(inputs, [outputs[value.name or ""].name or "" for value in a.graph.outputs])


def _pair(a: Sequence[ir.Value], b: Sequence[ir.Value]) -> dict[str, ir.Value] | None:
    if len(a) != len(b):
        return None
    named = {value.name: value for value in b}
    by_name = all(value.name in named for value in a)
    return {v.name or "": named[v.name] if by_name else other for v, other in zip(a, b, strict=True)}


def _names(values: Sequence[ir.Value]) -> str:
    return ", ".join(value.name or "?" for value in values) or "none"
