"""Put zeros in place of the smallest weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import onnx_ir as ir
from pydantic import Field, model_validator

from graphopt import Decline, Effect, Pass, PassReport

from .weights import Change, Weight, weights

if TYPE_CHECKING:
    from graphopt import Context

Array = np.ndarray[Any, Any]
PATTERN = re.compile(r"(\d+):(\d+)")


class PruneWeights(Pass):
    """Replace weights ``w`` by ``w m``, where the mask ``m`` is 0 for the smallest magnitudes and 1 for the others.

    With ``sparsity`` the smallest ones of each tensor go, or with ``scope=global`` those of all tensors together. With
    ``pattern=n:m`` the n largest of every m stay that lie side by side along the axis of input channels. Weights of
    Conv, ConvTranspose, Gemm and MatMul, also behind a Transpose or Cast.

    Dense kernels gain nothing from zeros: the latency stays what it was, and so does the size of the file, until
    something reads it that looks for zeros. Where that is not at hand, prune-channels is what makes models faster.

    Lossy: the result must equal the original with ``Mul(w, m)`` in front of each product. Source: Han et al. 2015
    (arXiv:1506.02626) for magnitudes; Mishra et al. 2021 (arXiv:2104.08378) for 2:4.
    """

    effect: ClassVar[Effect] = Effect.LOSSY

    sparsity: float | None = Field(
        None, gt=0, lt=1, description="share of the weights to replace; 0.5 where no pattern is given"
    )
    pattern: str | None = Field(
        None, pattern=r"^\d+:\d+$", description="n:m keeps the n largest of each m input channels, as 2:4"
    )
    scope: Literal["local", "global"] = Field(
        "local", description="compare magnitudes within each tensor, or across all of them"
    )
    include: tuple[str, ...] = Field((), description="patterns of products, weights or modules to prune")
    exclude: tuple[str, ...] = Field(
        (), description="patterns of products, weights or modules to leave alone"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.pattern is None:
            return self
        n, m = map(int, self.pattern.split(":"))
        if not 0 < n < m:
            raise ValueError(f"pattern={self.pattern} keeps {n} of {m}; give n:m with 0 < n < m, as 2:4")
        if self.sparsity is not None or self.scope == "global":
            raise ValueError("give either a pattern, or sparsity and scope, not both")
        return self

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Find the weights, make the masks, and multiply."""
        report = PassReport()
        found = weights(model, self.include, self.exclude, report)
        if not found:
            return report
        change = Change(model, context, report)
        kept = total = 0
        for weight, mask in self._masks(found, report):
            w = weight.array
            left = np.count_nonzero(w[mask])
            if mask.all():
                report.decline(weight.products[0], f"all of {weight.value.name} is larger than what goes")
            elif left == np.count_nonzero(w):
                report.decline(weight.products[0], f"{weight.value.name} has these zeros already")
            else:
                share = f"{1 - left / w.size:.1%} zeros"
                change.put(weight, np.where(mask, w, np.zeros((), w.dtype)), _masked(mask), share)
            kept, total = kept + int(np.count_nonzero(weight.array)), total + w.size
        if report.applied:
            report.notes.append(
                f"{1 - kept / total:.1%} of {total:,} weights are zeros; dense kernels gain nothing from that: "
                f"neither the latency nor the size of the file changes"
            )
        change.finish()
        return report

    def _masks(self, found: Sequence[Weight], report: PassReport) -> list[tuple[Weight, Array]]:
        if self.pattern is None:
            sparsity = self.sparsity or 0.5
            if self.scope == "global":
                return list(zip(found, largest([each.array for each in found], sparsity), strict=True))
            return [(each, largest([each.array], sparsity)[0]) for each in found]
        n, m = map(int, self.pattern.split(":"))
        masks = []
        for each in found:
            try:
                masks.append((each, _patterned(each, n, m)))
            except Decline as reason:
                report.decline(each.products[0], str(reason))
        return masks


def largest(arrays: Sequence[Array], sparsity: float) -> list[Array]:
    """Return masks without the ``sparsity`` smallest magnitudes of all arrays; of equal ones the first go.

    The limit is found digit by digit, so that no more than one array is copied at a time: the bits of two positive
    floats compare as the floats do.
    """
    remaining = int(sparsity * sum(array.size for array in arrays))
    prefix = 0
    for shift, mask in ((16, 0xFFFF), (0, 0xFFFF)):
        counts = np.zeros(mask + 1, np.int64)
        for array in arrays:
            bits = _bits(array)
            digits = (bits if shift else bits[bits >> 16 == prefix]) >> shift & mask
            counts += np.bincount(digits, minlength=mask + 1)
        below = np.cumsum(counts)
        digit = int(np.searchsorted(below, remaining, side="right"))
        digit = min(digit, mask)
        remaining -= int(below[digit] - counts[digit])
        prefix = prefix << 16 | digit
    masks = []
    for array in arrays:
        bits = _bits(array)
        keep = bits > prefix
        equal = np.flatnonzero(bits == prefix)
        keep[equal[remaining:]] = True
        remaining = max(remaining - len(equal), 0)
        masks.append(keep.reshape(array.shape))
    return masks


def _bits(array: Array) -> Array:
    """Return the magnitudes, flat, as unsigned integers in the same order."""
    flat: Array = np.abs(array.astype(np.float32)).reshape(-1).view(np.uint32)
    return flat


def _patterned(weight: Weight, n: int, m: int) -> Array:
    """Return the mask that keeps the n largest of each m input channels."""
    w = np.abs(weight.array.astype(np.float32))
    channels = w.shape[weight.inputs_axis]
    own = channels // weight.groups if weight.products[0].op_type == "ConvTranspose" else channels
    if own % m:
        raise Decline(f"its {own} input channels are not divisible by {m}")
    last = np.moveaxis(w, weight.inputs_axis, -1)
    blocks = last.reshape(*last.shape[:-1], channels // m, m)
    order = np.argsort(-blocks, axis=-1, kind="stable")
    mask = np.zeros(blocks.shape, bool)
    np.put_along_axis(mask, order[..., :n], True, axis=-1)
    found: Array = np.moveaxis(mask.reshape(last.shape), -1, weight.inputs_axis)
    return found


def _masked(mask: Array) -> Any:
    return lambda value, made: [ir.node("Mul", [value, made(mask)])]
