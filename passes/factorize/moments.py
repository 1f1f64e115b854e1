"""Means and covariances of what layers read, over calibration data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.calibration import observe
from graphopt.query import attribute

from .sites import Site

if TYPE_CHECKING:
    from graphopt.context import Context

Array = np.ndarray[Any, Any]
WIDEST = 2304
"""Patches of more numbers are taken as if their positions were not correlated: their channels' covariance does."""
POSITIONS = 1024
"""So many patches of one sample are looked at, drawn at random."""
BUDGET_BYTES = 256 << 20
"""Moments that are gathered together; for more the data are run again."""
RIDGE = 1e-4
"""Added to the variances, as a share of their mean: directions that no sample shows still count a little."""


@dataclass(frozen=True)
class Moment:
    """Mean and covariance ``C`` of the inputs of a layer: of patches (I, *kernel), or of channels alone."""

    mean: Array
    """(I, *kernel)."""
    c: Array
    """(I * prod(kernel),) * 2 or (I, I)."""

    @property
    def of_patches(self) -> bool:
        """Whether the positions of the kernel are told apart."""
        return len(self.c) == self.mean.size

    def times(self, w: Array) -> Array:
        """Return ``W C`` for ``W`` of shape (n, I, *kernel)."""
        if self.of_patches:
            made: Array = (w.reshape(len(w), -1) @ self.c).reshape(w.shape)
            return made
        mixed: Array = np.tensordot(w, self.c, axes=([1], [0]))
        return np.moveaxis(mixed, -1, 1)

    def energy(self, w: Array) -> float:
        """Return ``tr(W C Wᵀ)``: the variance of what ``W`` makes."""
        return float(np.vdot(self.times(w), w))

    def channels(self) -> Array:
        """Return the covariance of the channels, (I, I), the mean over the positions of the kernel."""
        if not self.of_patches:
            return self.c
        size = math.prod(self.mean.shape[1:])
        parts = self.c.reshape(len(self.mean), size, len(self.mean), size)
        mean: Array = np.einsum("ikjk->ij", parts) / size
        return mean

    def columns(self) -> Array:
        """Return the covariance of the columns of patches (I, kh, kw), the mean over kw: (I * kh, I * kh)."""
        i, height, width = self.mean.shape
        if not self.of_patches:
            return np.kron(self.c, np.eye(height))
        parts = self.c.reshape(i * height, width, i * height, width)
        mean: Array = np.einsum("ikjk->ij", parts) / width
        return mean


def flat(site: Site) -> Moment:
    """Return the moment of noise: the error is then that of the weights."""
    return Moment(np.zeros(site.shape[1:]), np.eye(site.shape[1]))


class Inputs:
    """Observes the inputs of one layer."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        size = math.prod(site.shape[1:])
        self.patches = site.is_conv and size > site.shape[1] and size <= WIDEST
        self.size = size if self.patches else site.shape[1]
        self._random = np.random.default_rng(seed)
        self.count = 0
        self._sum: Array = np.zeros(self.size)
        self._gram: Array = np.zeros((0, 0))

    def update(self, array: Array) -> None:
        """Take in the array of one sample."""
        x = np.asarray(array, np.float32)
        rows = self._patches(x) if self.patches else np.moveaxis(x, self.site.axis, -1).reshape(-1, self.size)
        if not len(rows):
            return
        gram = (rows.T @ rows).astype(np.float64)
        self._gram = gram if not self._gram.size else self._gram + gram
        self._sum += rows.sum(0, dtype=np.float64)
        self.count += len(rows)

    def _patches(self, x: Array) -> Array:
        """Return patches as the kernel sees them, (positions, I * prod(kernel)); of many a random choice."""
        node, kernel = self.site.node, self.site.kernel
        spatial = len(kernel)
        dilations = attribute(node, "dilations", [1] * spatial)
        wide = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        pads = _pads(node, x.shape[2:], wide, self.site.strides)
        x = np.pad(x, [(0, 0), (0, 0), *pads])
        windows = np.lib.stride_tricks.sliding_window_view(x, wide, axis=tuple(range(2, 2 + spatial)))
        moved = tuple(slice(None, None, s) for s in self.site.strides)
        inner = tuple(slice(None, None, d) for d in dilations)
        windows = windows[(slice(None), slice(None), *moved, *inner)]
        grid = (windows.shape[0], *windows.shape[2 : 2 + spatial])
        total = math.prod(grid)
        chosen = np.arange(total)
        if total > POSITIONS:
            chosen = self._random.choice(total, POSITIONS, replace=False)
        n, *where = np.unravel_index(chosen, grid)
        found: Array = np.moveaxis(windows, 1, -1)[(n, *where)]  # (positions, *kernel, I)
        return np.moveaxis(found, -1, 1).reshape(len(chosen), -1)

    def moment(self, site: Site) -> Moment:
        """Return mean and covariance for a layer that reads this; around 0 where no bias makes up for the mean."""
        mean, c = self._sum / max(self.count, 1), self._gram / max(self.count, 1)
        if site.bias() is not None:
            c = c - np.outer(mean, mean)
        c[np.diag_indices_from(c)] += RIDGE * np.trace(c) / len(c) + np.finfo(np.float32).tiny
        shape = site.shape[1:]
        if not self.patches:
            mean = np.broadcast_to(mean.reshape(-1, *[1] * len(site.kernel)), shape)
        return Moment(mean.reshape(shape), c)


def _pads(
    node: ir.Node, size: Sequence[int], wide: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the zeros before and behind, by spatial axis."""
    auto, spatial = attribute(node, "auto_pad", "NOTSET"), len(wide)
    if auto == "NOTSET":
        pads = attribute(node, "pads", [0] * 2 * spatial)
        return list(zip(pads[:spatial], pads[spatial:], strict=True))
    if auto == "VALID":
        return [(0, 0)] * spatial
    made = []
    for n, k, s in zip(size, wide, strides, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        small, large = total // 2, total - total // 2
        made.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return made


def gathered(
    model: ir.Model, sites: Sequence[Site], context: Context, aware: bool
) -> Iterator[tuple[Site, Moment]]:
    """Yield each layer with the moment of its inputs, some at a time; those of noise where data are not to count."""
    if not aware:
        yield from ((site, flat(site)) for site in sites)
        return
    for group in _groups([Inputs(site, context.seed) for site in sites]):
        seen: dict[str, list[Inputs]] = {}
        for each in group:
            watching = seen.setdefault(each.site.x.name or "", [])
            if each.patches or not watching or all(other.patches for other in watching):
                watching.append(each)
        observe(model, seen, context, what="moments of inputs")
        for each in group:
            same = (one for one in seen[each.site.x.name or ""] if not one.patches)
            found = each if each.patches else next(same)
            yield each.site, found.moment(each.site)


def _groups(all_inputs: Sequence[Inputs]) -> Iterator[list[Inputs]]:
    group: list[Inputs] = []
    room = BUDGET_BYTES
    for each in all_inputs:
        room -= 8 * each.size**2
        if group and room < 0:
            yield group
            group, room = [], BUDGET_BYTES - 8 * each.size**2
        group.append(each)
    if group:
        yield group
