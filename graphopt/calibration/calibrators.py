"""From what was seen of a value to the range that its integers stand for."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..scheme import Scheme
from .histogram import Histogram

Array = np.ndarray[Any, Any]
STEPS = 64
"""So many ends are tried at a time on each side."""
ROUNDS = 3
"""So often the search narrows around the best ends found."""


class Calibrator(abc.ABC):
    """An observer that answers with a range. It is made once for each value, with the scheme of its integers."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme

    @abc.abstractmethod
    def update(self, array: Array) -> None:
        """Take in the array of one sample."""

    @abc.abstractmethod
    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest number that integers are to stand for; ``(0, 0)`` of nothing seen."""


class MinMax(Calibrator):
    """The smallest and the largest number ever seen."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__(scheme)
        self._low, self._high = math.inf, -math.inf

    def update(self, array: Array) -> None:
        """Widen the range."""
        if array.size:
            self._low, self._high = min(self._low, float(array.min())), max(self._high, float(array.max()))

    def range(self) -> tuple[float, float]:
        """Return the range."""
        return (self._low, self._high) if self._low <= self._high else (0.0, 0.0)


class MovingAverage(Calibrator):
    """The moving average of each sample's smallest and largest number, a hundredth of the way at each sample.

    Source: Jacob et al. 2018 (arXiv:1712.05877), section 3.1, with the constant of torch's
    MovingAverageMinMaxObserver.
    """

    SHARE = 0.01

    def __init__(self, scheme: Scheme) -> None:
        super().__init__(scheme)
        self._range: tuple[float, float] | None = None

    def update(self, array: Array) -> None:
        """Go a part of the way to the sample's range."""
        if not array.size:
            return
        low, high = float(array.min()), float(array.max())
        if self._range is not None:
            old_low, old_high = self._range
            low, high = old_low + self.SHARE * (low - old_low), old_high + self.SHARE * (high - old_high)
        self._range = low, high

    def range(self) -> tuple[float, float]:
        """Return the averages."""
        return self._range or (0.0, 0.0)


class _OfHistogram(Calibrator):
    def __init__(self, scheme: Scheme) -> None:
        super().__init__(scheme)
        self.histogram = Histogram()

    def update(self, array: Array) -> None:
        """Count the numbers."""
        self.histogram.update(array)

    def range(self) -> tuple[float, float]:
        """Return the range that serves best."""
        seen = self.histogram
        if not seen.count or seen.low == seen.high:
            return (seen.low, seen.high) if seen.count else (0.0, 0.0)
        return self._best(seen)

    @abc.abstractmethod
    def _best(self, seen: Histogram) -> tuple[float, float]: ...


class Percentile(_OfHistogram):
    """What all but one in a hundred thousand numbers lie in, half of the others on each side.

    Source: Wu et al. 2020 (arXiv:2004.09602), section 3.3 (99.999 %).
    """

    SHARE = 0.99999

    def _best(self, seen: Histogram) -> tuple[float, float]:
        rest = (1 - self.SHARE) / 2
        return seen.quantile(rest), seen.quantile(1 - rest)


class _Searching(_OfHistogram):
    """Tries ranges that end within what was seen, and takes the one with the least loss."""

    def _best(self, seen: Histogram) -> tuple[float, float]:
        filled = seen.counts > 0
        centers, counts = seen.centers[filled], seen.counts[filled]
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        best, least = (low, high), self._loss(centers, counts, low, high)
        step = 1.0
        for _ in range(ROUNDS):
            for ends in self._candidates(best, (low, high), step):
                loss = self._loss(centers, counts, *ends)
                if loss < least:
                    best, least = ends, loss
            step /= STEPS / 2
        return best

    def _candidates(
        self, best: tuple[float, float], widest: tuple[float, float], step: float
    ) -> Iterator[tuple[float, float]]:
        """Yield ranges next to ``best``: both ends, then each of them, moved by parts of the widest range."""
        for share in np.linspace(step, -step, STEPS):
            low = min(max(best[0] + share * widest[0], widest[0]), 0.0)
            high = max(min(best[1] + share * widest[1], widest[1]), 0.0)
            for ends in dict.fromkeys(((low, high), (low, best[1]), (best[0], high))):
                if ends[0] < ends[1]:
                    yield ends

    @abc.abstractmethod
    def _loss(self, centers: Array, counts: Array, low: float, high: float) -> float: ...


class Mse(_Searching):
    """The range with the least mean square of what quantization changes.

    Source: Nagel et al. 2021 (arXiv:2106.08295), section 2.3, equation 6.
    """

    def _loss(self, centers: Array, counts: Array, low: float, high: float) -> float:
        return float(counts @ (self.scheme.rounded(centers, low, high) - centers) ** 2)


class Sqnr(Mse):
    """The range with the least mean, over the samples, of noise power by signal power: a quiet sample counts as much
    as a loud one.
    """

    def update(self, array: Array) -> None:
        """Count the numbers, those of a sample with little power more."""
        power = float(np.mean(np.square(array, dtype=np.float64))) if array.size else 0.0
        self.histogram.update(array, 1.0 / (array.size * power) if power > 0 else 0.0)


class Entropy(_Searching):
    """The range whose integers are distributed most like the numbers themselves: least Kullback-Leibler divergence.

    Numbers beyond the range are counted at its ends; each integer's count is spread evenly over the bins with numbers
    that it stands for. What is piled up in one bin, at 0 by Relu, at the ends by Clip, anywhere by biases, is not
    spread: an integer stands for such a number as a whole. Spread, it would look like noise, the less the narrower
    the range, and the best range would be one that cuts off half of the numbers.

    Source: Migacz, 8-bit Inference with TensorRT, GTC 2017; with the bins of :class:`Histogram`, which are finer than
    the integers.
    """

    def _loss(self, centers: Array, counts: Array, low: float, high: float) -> float:
        first, end = np.searchsorted(centers, low), np.searchsorted(centers, high, "right")
        if first == end:
            return math.inf
        kept, piled = counts[first:end], _piled(counts)[first:end]
        reference = kept.copy()
        reference[0] += counts[:first].sum()
        reference[-1] += counts[end:].sum()
        integers = self.scheme.quantize(centers[first:end], *self.scheme.parameters(low, high))
        integers -= integers[0]
        bins = np.maximum(np.bincount(integers), 1)
        spread = (np.bincount(integers, kept - piled) / bins)[integers] + piled
        p, q = reference / reference.sum(), spread / spread.sum()
        return float(p @ np.log(p / q))


def _piled(counts: Array) -> Array:
    """Return how many more numbers each bin has than the fuller one of its neighbours."""
    beside = np.maximum(np.append(counts[1:], 0), np.append(0, counts[:-1]))
    return np.where(beside > 0, np.maximum(counts - beside, 0), 0)
