"""Streaming statistics of a value's channels."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class ChannelStatistics:
    """Largest magnitude, mean and second moment of each channel; the channels lie along ``axis``."""

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis
        self.count = 0
        """Numbers seen in each channel."""
        self._largest: Array | None = None
        self._sum: Array | None = None
        self._squares: Array | None = None

    def update(self, array: Array) -> None:
        """Take in the array of one sample."""
        if not array.size:
            return
        rows = np.moveaxis(np.asarray(array, np.float64), self.axis, -1).reshape(-1, array.shape[self.axis])
        largest, total, squares = np.abs(rows).max(0), rows.sum(0), np.einsum("nc,nc->c", rows, rows)
        if self._largest is None or self._sum is None or self._squares is None:
            self._largest, self._sum, self._squares = largest, total, squares
        else:
            self._largest, self._sum = np.maximum(self._largest, largest), self._sum + total
            self._squares = self._squares + squares
        self.count += len(rows)

    @property
    def largest(self) -> Array:
        """The largest magnitude of each channel."""
        return np.zeros(0) if self._largest is None else self._largest

    @property
    def mean(self) -> Array:
        """The mean of each channel."""
        return np.zeros(0) if self._sum is None else self._sum / self.count

    @property
    def second_moment(self) -> Array:
        """The mean square of each channel."""
        return np.zeros(0) if self._squares is None else self._squares / self.count


class Gram:
    """The sum of the outer products of all rows with themselves, a row lying along the last axis: ``Xᵀ X``."""

    def __init__(self) -> None:
        self.count = 0
        """Rows seen."""
        self.matrix: Array = np.zeros((0, 0))

    def update(self, array: Array) -> None:
        """Take in the array of one sample."""
        rows = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
        product = (rows.T @ rows).astype(np.float64)
        self.matrix = product if not self.matrix.size else self.matrix + product
        self.count += len(rows)
