"""What quantizing each product costs in accuracy and gains in time, measured on the model at hand."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, InputError

from .editing import Seen, made
from .placement import Placement

if TYPE_CHECKING:
    from graphopt import Backend, Executable

    from .insert_qdq import InsertQdq

Array = np.ndarray[Any, Any]
PROFILES, RUNS = 3, 10
"""A node's time is the least of so many profiles' medians over so many runs."""


@dataclass(frozen=True)
class Cost:
    """What is known of one product."""

    name: str
    """The first value that it makes."""
    noise: float
    """Power of the error of the worst graph output, as a share of the signal's, when it alone runs on integers."""
    float_ms: float
    integer_ms: float

    @property
    def gain_ms(self) -> float:
        """The time that its integer kernel saves."""
        return self.float_ms - self.integer_ms


class Bench:
    """Builds variants of a model, some products of which stay in floats, and judges and times them on the target."""

    def __init__(
        self,
        model: ir.Model,
        options: InsertQdq,
        placement: Placement,
        seen: Seen,
        target: Backend,
        context: Context,
    ) -> None:
        self.model, self.options, self.seen, self.target, self.context = model, options, seen, target, context
        self.names = {
            made(spot.node): spot.node.name or made(spot.node)
            for spot in placement.spots.values()
            if spot.weight is not None
        }
        """The products that can run on integers, and what users call them."""
        self.feeds = samples(context)
        with target.compile(model) as executable:
            self.reference = [executable.run(feeds) for feeds in self.feeds]
        self.signal = {name: power for name, power in _power(self.reference).items() if power}
        self._known: dict[frozenset[str], float] = {}

    def variant(self, floats: Collection[str]) -> ir.Model:
        """Return the model with all products on integers but ``floats``."""
        return self.options.variant(self.model, self.context, self.seen, floats)

    def noise(self, floats: Collection[str]) -> float:
        """Return the power of the error of the worst output, as a share of the signal's."""
        key = frozenset(floats)
        if key not in self._known:
            with self.target.compile(self.variant(key)) as executable:
                self._known[key] = self._noise(executable)
        return self._known[key]

    def _noise(self, executable: Executable) -> float:
        errors = []
        for feeds, wanted in zip(self.feeds, self.reference, strict=True):
            found = executable.run(feeds)
            errors.append({name: found[name].astype(np.float64) - wanted[name] for name in self.signal})
        power = _power(errors)
        return max((power[name] / signal for name, signal in self.signal.items()), default=0.0)

    def costs(self, deadline: float) -> list[Cost]:
        """Return what each product costs and gains, in the order of the graph.

        Where time runs out, the products that were not looked at count as noisy as the others are on average.
        """
        floats, integers = self._times()
        noises: dict[str, float] = {}
        for number, name in enumerate(self.names, 1):
            if time.monotonic() > deadline:
                break
            self.context.progress("sensitivity of products", number, len(self.names))
            noises[name] = self.noise(self.names.keys() - {name})
        mean = sum(noises.values()) / max(len(noises), 1)
        return [
            Cost(name, noises.get(name, mean), floats.get(said, 0.0), integers.get(said, 0.0))
            for name, said in self.names.items()
        ]

    def _times(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the milliseconds of each product, by the name of its node, in floats and on integers."""
        found: tuple[dict[str, float], dict[str, float]] = ({}, {})
        models = (self.model, self.variant(()))
        for number in range(PROFILES):
            self.context.progress("timing products", number + 1, PROFILES)
            for known, model in zip(found, models, strict=True):
                spent: dict[str, float] = {}
                for each in self.target.profile(model, self.feeds[0], RUNS):
                    spent[each.node] = spent.get(each.node, 0.0) + each.milliseconds
                for name, milliseconds in spent.items():
                    known[name] = min(known.get(name, math.inf), milliseconds)
        return found


def _power(outputs: Iterable[Mapping[str, Array]]) -> dict[str, float]:
    """Return the sum of squares of each output that is an array of floats, over all samples."""
    total: dict[str, float] = {}
    for each in outputs:
        for name, array in each.items():
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                total[name] = total.get(name, 0.0) + float(np.square(array, dtype=np.float64).sum())
    return total


def samples(context: Context, count: int = 16) -> Sequence[Mapping[str, Any]]:
    """Return some of the calibration data, or of the sample inputs that the user gave."""
    data = context.calibration if context.calibration is not None else context.samples
    taken = list(islice(data, count))
    if not taken:
        raise InputError("calibration data: they are empty; give at least one sample")
    return taken


def decibels(noise: float) -> float:
    """Return a share of noise as a signal-to-noise ratio."""
    return -10 * math.log10(noise) if noise else math.inf
