"""Quantize what pays: products whose speed on integers is worth the accuracy that it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import onnx_ir as ir
from pydantic import Field, model_validator

from graphopt import (
    Context,
    PassReport,
    Timing,
    UnavailableError,
    measure,
)
from graphopt.loss import metric_of, score

from .editing import Seen, made
from .insert_qdq import InsertQdq
from .sensitivity import Bench, Cost, decibels

AIM_DB, PRICE = 28.0, 0.025
"""Without a wish, accuracy is bought up to so many decibels, for no more than this share of the float latency each."""
SECONDS = 3.0
"""Of racing, for each model in the race."""
LONGER = 5
"""So many times as long they are raced again where what was measured faster may be so by chance."""


class QuantizeMixed(InsertQdq):
    """Let each product run on integers or in floats, so that the model is as fast as the wanted accuracy allows.

    Each product with weights (Conv, Gemm, MatMul) runs on integers alone once, which tells the noise it adds to the
    outputs, and a profile tells the time its integer kernel saves on this target. Those whose integer kernel is no
    faster stay in floats; then those that add most noise for each millisecond saved, until the accuracy is reached:

    - ``sqnr``: the ratio of signal to error of the worst output, over calibration samples;
    - ``drop``: what ``metric`` may lose. ``module:function`` is called with a function that runs the model
      (``{input: array}`` to ``{output: array}``) and returns a number, the higher the better;
    - neither: 28 dB, as long as a decibel costs no more than 2.5 % of the float latency.

    What was found races against the float model, all products on integers, and products left out in the order of
    noise alone; the fastest one that is accurate enough stays. Where that is not faster than float, all stays float.

    Lossy: without its pairs, and with the float weights in place of the integers, the result must be what it was.
    Source: ONNX QuantizeLinear-10 to 25; Jacob et al. 2018 (arXiv:1712.05877), section 2.
    """

    sqnr: float | None = Field(None, gt=0, description="wanted ratio of signal to error, in dB")
    drop: float | None = Field(None, ge=0, description="what the metric may lose")
    metric: str = Field(
        "", description="module:function that says how good a model is, the higher the better"
    )
    minutes: float = Field(20.0, gt=0, description="time for the search; then the best so far is taken")

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        if self.sqnr is not None and self.drop is not None:
            raise ValueError("give either sqnr or drop, not both")
        if (self.drop is not None) != bool(self.metric):
            raise ValueError("drop and metric go together: give both or neither")
        return self

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Measure, decide, and put the pairs in."""
        report, options = PassReport(), self.resolved(context)
        target = context.target
        if target is None or (reason := target.unavailable()):
            why = "the run is for no target" if target is None else f"{target.name} cannot be used: {reason}"
            raise UnavailableError(f"{self.name}: it measures on the target, and {why}; use quantize-static")
        placement = options.planned(model, context)
        products = tuple(made(spot.node) for spot in placement.spots.values() if spot.weight is not None)
        if not products:
            return options.insert(model, context, report, {})

        def choose() -> tuple[Seen, Choice]:
            seen = options.observe(model, placement, context)
            bench = Bench(model, options, placement, seen, target, context)
            return seen, Search(bench, self._goal(bench), time.monotonic() + 60 * self.minutes).choice()

        seen, choice = context.once((self, products), choose)
        report.notes += choice.notes
        if choice.quantize:
            return options.insert(model, context, report, choice.floats, seen)
        for spot in placement.spots.values():
            if spot.weight is not None:
                report.decline(spot.node, choice.floats[made(spot.node)])
        return report

    def _goal(self, bench: Bench) -> Goal:
        """Return what tells whether a variant is accurate enough."""
        if self.sqnr is not None:
            wanted = 10 ** (-self.sqnr / 10)
            return Goal(lambda floats: bench.noise(floats) <= wanted, wanted)
        if self.drop is None:
            return Goal(None, 10 ** (-AIM_DB / 10))
        judged = metric_of(self.metric)
        least = score(*judged, bench.model, bench.target) - self.drop
        return Goal(lambda floats: score(*judged, bench.variant(floats), bench.target) >= least, 0.0)


@dataclass(frozen=True)
class Goal:
    """What accuracy is wanted."""

    reached: Callable[[Collection[str]], bool] | None
    """Whether it is accurate enough with these products in floats; ``None`` where speed is weighed against noise."""
    noise: float
    """The share of noise that is wanted; 0 where something else is."""


@dataclass(frozen=True)
class Choice:
    """What was decided."""

    floats: Mapping[str, str]
    """The products that stay in floats, by the first value that they make, and why."""
    quantize: bool
    """Whether anything is to run on integers."""
    notes: Sequence[str]


class Search:
    """Finds the set of products that is fastest in floats for a wanted accuracy."""

    def __init__(self, bench: Bench, goal: Goal, deadline: float) -> None:
        self.bench, self.goal, self.deadline = bench, goal, deadline
        self.costs: dict[str, Cost] = {}
        self.notes: list[str] = []
        self.by_noise: frozenset[str] | None = None

    def choice(self) -> Choice:
        """Measure, search, and race what was found."""
        self.costs = {cost.name: cost for cost in self.bench.costs(self.deadline)}
        slow = [cost.name for cost in self.costs.values() if cost.gain_ms <= 0]
        worth = sorted(self.costs.keys() - set(slow), key=lambda name: -self._rate(name))
        if self.goal.reached is None:
            sets = [self._weighed([*slow, *worth], len(slow)), frozenset(slow), frozenset()]
        else:
            sets = [
                self._refilled(self._prefix([*slow, *worth])),
                self._by_noise(),
                frozenset(slow),
                frozenset(),
            ]
        if time.monotonic() > self.deadline:
            self.notes.append("time ran out; this is the best that was found so far")
        return self._raced(list(dict.fromkeys(sets)))

    def _rate(self, name: str) -> float:
        return self.costs[name].noise / self.costs[name].gain_ms

    def _reached(self, floats: Collection[str]) -> bool:
        return self.goal.reached is None or len(floats) == len(self.costs) or self.goal.reached(floats)

    def _prefix(self, order: Sequence[str]) -> frozenset[str]:
        """Return the shortest beginning of ``order`` that is accurate enough in floats, found by bisection."""
        low, high, steps = 0, len(order), len(order).bit_length()
        while low < high and time.monotonic() <= self.deadline:
            self.bench.context.progress("searching", steps - (high - low).bit_length(), steps)
            middle = (low + high) // 2
            low, high = (low, middle) if self._reached(order[:middle]) else (middle + 1, high)
        return frozenset(order[:high])

    def _by_noise(self) -> frozenset[str]:
        """Return what stays in floats where noise alone decides."""
        self.by_noise = self._prefix(sorted(self.costs, key=lambda name: -self.costs[name].noise))
        return self.by_noise

    def _refilled(self, floats: frozenset[str]) -> frozenset[str]:
        """Return ``floats`` without what fits into the noise that is left."""
        if not self.goal.noise or not floats:
            return floats
        room, kept = self.goal.noise - self.bench.noise(floats), set(floats)
        for name in sorted(floats, key=lambda each: -self.costs[each].gain_ms):
            if self.costs[name].gain_ms > 0 and self.costs[name].noise <= room:
                kept.discard(name)
                room -= self.costs[name].noise
        return frozenset(kept) if kept != floats and self._reached(kept) else floats

    def _weighed(self, order: Sequence[str], least: int) -> frozenset[str]:
        """Return the beginning of ``order`` whose decibels are worth their time."""
        total = sum(cost.float_ms for cost in self.costs.values()) or 1.0
        left = noise = sum(cost.noise for cost in self.costs.values())
        measured, spent = self.bench.noise(()), 0.0
        best, count = -float("inf"), least
        for number in range(len(order) + 1):
            worth = self._worth(measured * left / noise if noise else 0.0, spent / total)
            if number >= least and worth > best:
                best, count = worth, number
            if number < len(order):
                cost = self.costs[order[number]]
                left, spent = max(left - cost.noise, 0.0), spent + cost.gain_ms
        return frozenset(order[:count])

    def _worth(self, noise: float, latency: float) -> float:
        """Return what a variant is worth, in shares of the float latency."""
        return PRICE * min(decibels(noise), AIM_DB) - latency

    def _raced(self, sets: Sequence[frozenset[str]]) -> Choice:
        """Return the fastest of ``sets`` that is accurate enough; or none, where float is as fast."""
        sets = [floats for floats in sets if len(floats) < len(self.costs) and self._reached(floats)]
        timings = self._race(sets)
        if self.goal.reached is None:
            ranks = [-self._worth(self.bench.noise(f), t.ratio) for f, t in zip(sets, timings, strict=True)]
        else:
            ranks = [timing.ratio for timing in timings]
        if not sets:
            return Choice(self._reasons(self.costs), False, [*self.notes, "only floats are accurate enough"])
        best = min(range(len(sets)), key=ranks.__getitem__)
        floats, timing = sets[best], timings[best]
        if timing.verdict != "faster" and timing.high < 1:
            (timing,) = self._race([floats], LONGER)
        speed = f"a run takes {timing.ratio:.2f} times as long as in float (95 % {timing.low:.2f} … {timing.high:.2f})"
        count = f"{len(self.costs) - len(floats)} of {len(self.costs)} products"
        db = decibels(self.bench.noise(floats))
        if timing.verdict != "faster":
            note = (
                f"nothing is quantized: with {count} on integers, {speed}, and the outputs have {db:.1f} dB"
            )
            return Choice(
                dict.fromkeys(self.costs, "integers are no faster here"), False, [*self.notes, note]
            )
        note = f"{count} run on integers: {speed}; the outputs have {db:.1f} dB on calibration data"
        if self.by_noise is not None and self.by_noise != floats:
            count = str(len(self.costs) - len(self.by_noise)) if self.by_noise in sets else "no"
            ratio = f", at {timings[sets.index(self.by_noise)].ratio:.2f}" if self.by_noise in sets else ""
            note += f"; chosen by noise alone, {count} products would{ratio}"
        return Choice(self._reasons(floats), True, [*self.notes, note])

    def _race(self, sets: Sequence[frozenset[str]], times: int = 1) -> Sequence[Timing]:
        bench = self.bench
        if not sets:
            return []
        models = [bench.model, *map(bench.variant, sets)]
        return measure(
            models,
            bench.feeds[0],
            bench.target,
            seconds=SECONDS * times * len(models),
            seed=bench.context.seed,
            progress=bench.context.progress,
        ).timings[1:]

    def _reasons(self, floats: Collection[str]) -> dict[str, str]:
        total = sum(cost.noise for cost in self.costs.values()) or 1.0
        found = {}
        for name, cost in self.costs.items():
            times = f"{cost.integer_ms:.3f} ms on integers, {cost.float_ms:.3f} ms in float"
            if name in floats:
                share = f"{100 * cost.noise / total:.1f} % of the noise"
                found[name] = f"it stays in float: {times}, {share}"
        return found
