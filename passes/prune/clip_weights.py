"""Cut off the few weights that are much larger than the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import onnx_ir as ir
from pydantic import Field, model_validator

from graphopt import Effect, Pass, PassReport

from .weights import Change, Weight, weights

if TYPE_CHECKING:
    from graphopt import Context

Array = np.ndarray[Any, Any]


class ClipWeights(Pass):
    """Replace weights ``w`` by ``max(low, min(w, high))``.

    ``high`` is a percentile of the magnitudes of the tensor, or of each output channel, and ``low = -high``; or both
    are given as numbers. Integers that must cover a smaller range have smaller steps, so that quantization without a
    scale for each channel may lose less; what clipping itself loses is the drift that the report tells. Weights of
    Conv, ConvTranspose, Gemm and MatMul, also behind a Transpose or Cast.

    Lossy: the result must equal the original with ``Max(low, Min(w, high))`` in front of each product. Source: ONNX
    Min-13 and Max-13; Zhao et al. 2019 (arXiv:1901.09504) compare the clipping of weights before quantization.
    """

    effect: ClassVar[Effect] = Effect.LOSSY

    percentile: float | None = Field(
        None,
        gt=0,
        lt=100,
        description="of the magnitudes, which none is to exceed; 99.9 where no limits are given",
    )
    min: float | None = Field(None, description="lower limit, instead of a percentile")
    max: float | None = Field(None, description="upper limit, instead of a percentile")
    per_channel: bool = Field(False, description="take the percentile of each output channel for itself")
    include: tuple[str, ...] = Field((), description="patterns of products, weights or modules to clip")
    exclude: tuple[str, ...] = Field(
        (), description="patterns of products, weights or modules to leave alone"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        limits = self.min is not None or self.max is not None
        if limits and (self.percentile is not None or self.per_channel):
            raise ValueError("give either min and max, or percentile and per_channel, not both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min={self.min:g} is more than max={self.max:g}; give min <= max")
        return self

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Find the weights and their limits, and clip."""
        report = PassReport()
        found = weights(model, self.include, self.exclude, report)
        if not found:
            return report
        change = Change(model, context, report)
        clipped = total = 0
        for weight in found:
            w = weight.array
            low, high = (limit.astype(w.dtype) for limit in self._limits(weight))
            made = np.maximum(low, np.minimum(w, high)).astype(w.dtype)
            count, total = int(np.count_nonzero(made != w)), total + w.size
            if not count:
                report.decline(weight.products[0], f"no number in {weight.value.name} exceeds the limits")
            elif change.put(weight, made, _limited(low, high), f"{count:,} of {w.size:,}"):
                clipped += count
        if report.applied:
            report.notes.append(f"{clipped:,} of {total:,} weights were clipped")
        change.finish()
        return report

    def _limits(self, weight: Weight) -> tuple[Array, Array]:
        """Return the limits, with an axis for each of the weight's where they differ by channel."""
        if self.min is not None or self.max is not None:
            low = -np.inf if self.min is None else self.min
            high = np.inf if self.max is None else self.max
            return np.array(low), np.array(high)
        magnitudes = np.abs(weight.array.astype(np.float32))
        axes = tuple(axis for axis in range(magnitudes.ndim) if axis != weight.outputs_axis)
        percentile = self.percentile or 99.9
        limit = np.percentile(magnitudes, percentile, axis=axes if self.per_channel else None, keepdims=True)
        limit = limit if self.per_channel else limit.reshape(())
        return -limit, limit


def _limited(low: Array, high: Array) -> Any:
    def form(value: ir.Value, made: Any) -> list[ir.Node]:
        least = ir.node("Min", [value, made(high)])
        return [least, ir.node("Max", [made(low), least.outputs[0]])]

    return form
