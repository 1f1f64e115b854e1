"""The shapes of the thinner layers that stand for one, by method; what they cost, and what they multiply to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .sites import Site

Array = np.ndarray[Any, Any]
Method = Literal["svd", "spatial-svd", "tucker", "cp"]
Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """One of the thinner layers."""

    shape: tuple[int, ...]
    """Of its weights: (out, in / groups, *kernel)."""
    axes: tuple[int, ...] = ()
    """The spatial axes of which it has the kernel, and with it strides, pads and dilations."""
    depthwise: bool = False


@dataclass(frozen=True)
class Factors:
    """The weights of thinner layers, first to last."""

    stages: tuple[Stage, ...]
    weights: tuple[Array, ...]

    def product(self) -> Array:
        """Return the weights (O, I, *kernel) of the one layer that they are equal to."""
        made: Array = np.asarray(self.weights[0], np.float64)
        for stage, weight in zip(self.stages[1:], self.weights[1:], strict=True):
            made = made * weight if stage.depthwise else joined(weight.astype(np.float64), made)
        return made

    def cast(self, dtype: Any) -> Factors:
        """Return the same in another type."""
        return Factors(self.stages, tuple(weight.astype(dtype) for weight in self.weights))


def joined(a: Array, b: Array) -> Array:
    """Return the weights of ``a`` behind ``b``, where no spatial axis is longer than 1 in both."""
    both = np.tensordot(a, b, axes=([1], [0]))  # (O, *a, I, *b)
    spatial = a.ndim - 2
    order = [0, 1 + spatial]
    for axis in range(spatial):
        order += [1 + axis, 2 + spatial + axis]
    sizes = [m * n for m, n in zip(a.shape[2:], b.shape[2:], strict=True)]
    return both.transpose(order).reshape(a.shape[0], b.shape[1], *sizes)


def suitable(site: Site, method: Method) -> Method:
    """Return ``method`` where the kernel has the axes for it, else ``svd``: a matrix has nothing else to be split."""
    long = sum(size > 1 for size in site.kernel)
    if method == "spatial-svd":
        return method if len(site.kernel) == 2 and long == 2 else "svd"
    return method if long else "svd"


def full(site: Site, method: Method) -> Ranks:
    """Return the ranks at which the product can be any ``W``."""
    out, in_ = site.shape[:2]
    size = math.prod(site.kernel)
    if method == "spatial-svd":
        return (min(in_ * site.kernel[0], out * site.kernel[1]),)
    if method == "tucker":
        return min(in_, out * size), min(out, in_ * size)
    return (min(in_, out) * size,) if method == "cp" else (min(out, in_ * size),)


def stages(site: Site, method: Method, ranks: Ranks) -> tuple[Stage, ...]:
    """Return the thinner layers.

    ::

        svd             (r, I, *k)                (O, r, 1, 1)
        spatial-svd     (r, I, kh, 1)             (O, r, 1, kw)
        tucker          (ri, I, 1, 1)             (ro, ri, *k)        (O, ro, 1, 1)
        cp              (r, I, 1, 1)              (r, 1, *k)          (O, r, 1, 1)
    """
    out, in_, *kernel = site.shape
    every, ones, r = tuple(range(len(kernel))), [1] * len(kernel), ranks[-1]
    last = Stage((out, r, *ones))
    if method == "svd":
        return Stage((r, in_, *kernel), every), last
    if method == "spatial-svd":
        return Stage((r, in_, kernel[0], 1), (0,)), Stage((out, r, 1, kernel[1]), (1,))
    first = Stage((ranks[0], in_, *ones))
    if method == "tucker":
        return first, Stage((r, ranks[0], *kernel), every), last
    return first, Stage((r, 1, *kernel), every, depthwise=True), last


def macs(site: Site, made: Sequence[Stage]) -> int:
    """Return the multiply-accumulates for one position of the output: before a stride there are more positions."""
    left, total = math.prod(site.strides), 0
    for stage in made:
        left //= math.prod(site.strides[axis] for axis in stage.axes)
        total += left * math.prod(stage.shape)
    return total
