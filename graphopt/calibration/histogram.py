"""A histogram of a stream: it needs no range beforehand, and takes in any number of arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
BINS = 2048
"""So many bins the range of what was seen has at least; at most four times as many."""

SMALLEST = -100
"""Two to this power and its inverse are float32 numbers."""


class Histogram:
    """Counts numbers in bins whose width is a power of two and whose borders are multiples of it.

    When the range grows beyond the largest number of bins, neighbours are merged in pairs: each count stays in the
    bin that it would have been put into, so the result does not depend on the order of the arrays.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        """The smallest and the largest number seen."""
        self.counts: Array = np.zeros(0)
        self.count = 0
        self._exponent: int | None = None
        """The width of a bin is two to this power."""
        self._first = 0
        """The number of the first bin: it begins at ``_first * width``."""

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self._exponent) if self._exponent is not None else 0.0

    @property
    def centers(self) -> Array:
        """The middle of each bin; the outermost ones where numbers begin and end."""
        middles: Array = (self._first + np.arange(len(self.counts)) + 0.5) * self.width
        return np.clip(middles, self.low, self.high)

    def update(self, array: Array, weight: float = 1.0) -> None:
        """Count the numbers of ``array``, each ``weight`` times. Empty arrays change nothing."""
        if not array.size:
            return
        numbers = np.asarray(array).reshape(-1)
        low, high = float(numbers.min()), float(numbers.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += numbers.size
        if self._exponent is None:
            self._exponent = self._finest()
            self._first = math.floor(self.low / self.width)
        while (last := math.floor(self.high / self.width)) - math.floor(self.low / self.width) >= 4 * BINS:
            self._merge()
        first = min(self._first, math.floor(self.low / self.width))
        grown = np.zeros(max(last + 1, self._first + len(self.counts)) - first)
        grown[self._first - first : self._first - first + len(self.counts)] = self.counts
        grown += weight * np.bincount(self._bins(numbers) - first, minlength=len(grown))
        self.counts, self._first = grown, first

    def _bins(self, numbers: Array) -> Array:
        """Return the number of each one's bin. A power of two as a factor of 1 or more rounds nothing in float32."""
        assert self._exponent is not None
        if numbers.dtype != np.float32 or not SMALLEST <= self._exponent <= 0:
            numbers = numbers.astype(np.float64)
        bins = numbers * numbers.dtype.type(math.ldexp(1.0, -self._exponent))
        indices: Array = np.floor(bins, out=bins).astype(np.intp)
        return indices

    def _finest(self) -> int:
        """Return the exponent of a width that divides the range into at least :data:`BINS` and fewer than twice."""
        span = self.high - self.low or abs(self.high) or 1.0
        return math.floor(math.log2(span / BINS))

    def _merge(self) -> None:
        assert self._exponent is not None
        odd = self._first % 2
        padded = np.concatenate([np.zeros(odd), self.counts, np.zeros((odd + len(self.counts)) % 2)])
        self.counts = padded.reshape(-1, 2).sum(axis=1)
        self._first = (self._first - odd) // 2
        self._exponent += 1

    def quantile(self, share: float) -> float:
        """Return the number that ``share`` of all lie below, as fine as the bins are."""
        total = np.cumsum(self.counts)
        index = int(np.searchsorted(total, share * total[-1]))
        return float(self.centers[min(index, len(self.counts) - 1)])
