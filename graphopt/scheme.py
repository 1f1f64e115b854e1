"""Integer quantization: from a range of floats to a scale and a zero point, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

TINIEST = float(np.finfo(np.float32).tiny)
"""Smaller scales are no normal float32 numbers, by which runtimes divide."""


@dataclass(frozen=True)
class Scheme:
    """How floats become integers: ``q = clip(round(x / scale) + zero_point, low, high)``, to nearest, ties to even.

    Source: ONNX QuantizeLinear-10 to 25; Jacob et al. 2018 (arXiv:1712.05877), equation 1.
    """

    dtype: ir.DataType = ir.DataType.UINT8
    symmetric: bool = False
    """The zero point is 0, of unsigned types the middle; as many steps below it as above."""
    reduce_range: bool = False
    """Leave one bit unused: 16-bit sums of two products, as AVX2 makes them, then never saturate."""

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer that is used."""
        bits = int(self.dtype.bitwidth) - self.reduce_range
        low, high = (
            (-(1 << bits - 1), (1 << bits - 1) - 1) if self.dtype.is_signed() else (0, (1 << bits) - 1)
        )
        return (low + 1, high) if self.symmetric else (low, high)

    def parameters(self, low: Any, high: Any) -> tuple[Array, Array]:
        """Return scale (float32) and zero point (int64) for numbers from ``low`` to ``high``, which 0 joins.

        Scalars or arrays of one shape, for one scale each. A range of nothing but 0 gets the scale 1.
        """
        low, high = np.minimum(low, 0.0).astype(np.float64), np.maximum(high, 0.0).astype(np.float64)
        least, most = self.limits
        if self.symmetric:
            middle = 0 if self.dtype.is_signed() else (least + most) // 2
            scale = _positive(np.maximum(-low / (middle - least), high / (most - middle)))
            return scale, np.full(scale.shape, middle, np.int64)
        scale = _positive((high - low) / (most - least))
        return scale, np.clip(np.rint(least - low / scale), least, most).astype(np.int64)

    def quantize(self, x: Array, scale: Any, zero_point: Any) -> Array:
        """Return the integers (as int64) that stand for ``x``; scale and zero point broadcast against it."""
        least, most = self.limits
        q: Array = np.clip(np.rint(x / scale) + zero_point, least, most).astype(np.int64)
        return q

    def dequantize(self, q: Array, scale: Any, zero_point: Any) -> Array:
        """Return the float32 numbers that the integers stand for."""
        x: Array = ((q - zero_point) * np.asarray(scale, np.float32)).astype(np.float32)
        return x

    def rounded(self, x: Array, low: Any, high: Any) -> Array:
        """Return what becomes of ``x`` on the way to integers for the range from ``low`` to ``high`` and back."""
        scale, zero_point = self.parameters(low, high)
        return self.dequantize(self.quantize(x, scale, zero_point), scale, zero_point)


def _positive(scale: Any) -> Array:
    return np.where(scale < TINIEST, 1.0, scale).astype(np.float32)
