"""GPTQ: round a row number by number, and let those to come make up for the error of each."""

from __future__ import annotations

from typing import Any

import numpy as np

from .blocks import Blocks, Format, cut, grids

Array = np.ndarray[Any, Any]

DAMP = 0.01
"""Of the mean diagonal, added to the diagonal: data of few samples leave directions in which nothing is known."""
STRETCH = 128
"""Numbers that are rounded before the error goes to all others."""
PULLS = (0.01, 0.1, 1.0)
"""Of the mean diagonal: how strongly a corrected target is held to the original weights; the best is taken."""


class Curvature:
    """What the inputs ``X`` of a product (rows lie along the last axis) say of errors in its weights: ``H = XᵀX``."""

    def __init__(self, gram: Array) -> None:
        h = gram.astype(np.float64)
        damped(h, DAMP)
        self.diagonal = np.diagonal(h).astype(np.float32)
        self.order = np.argsort(-self.diagonal, kind="stable")
        h = h[np.ix_(self.order, self.order)]
        self.factor = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(h)).T, np.float32)
        """Upper triangle ``U`` with ``UᵀU = H⁻¹``, the inputs in ``order``."""


def damped(h: Array, share: float) -> None:
    """Add ``share`` of the mean diagonal of ``h`` to its diagonal, in place."""
    diagonal = np.einsum("ii->i", h)
    mean = float(diagonal.mean())
    diagonal += share * mean if mean > 0 else 1.0


def fed_back(w: Array, curvature: Curvature, form: Format) -> Blocks:
    """Return ``w`` (rows, columns) in codes such that ``w X`` changes little.

    The columns come in the order of falling ``diag(H)``. Of each, the error of rounding is taken up by all columns to
    come, in the proportion that changes ``w X`` least: with ``U`` as in :class:`Curvature`,
    ``w[:, j+1:] -= (w[:, j] - q[:, j]) / U[j, j] * U[j, j+1:]``. Scales and zero points are chosen before, for the
    error weighted by ``diag(H)``, so that a block's numbers may come in any order.

    Source: Frantar et al. 2022 (arXiv:2210.17323), algorithm 1, with the order of the columns as in its code.
    """
    rows, columns = w.shape
    parts = cut(w, form.block)
    weight = cut(curvature.diagonal[None], form.block)[0]
    scale, zero = grids(parts, form, fit=True, weight=weight)
    which = curvature.order // form.block
    s, z = np.ascontiguousarray(scale.T), np.ascontiguousarray(zero.T).astype(np.float32)
    rest = np.ascontiguousarray(w.T[curvature.order], np.float32)
    codes = np.empty((columns, rows), np.uint8)
    u = curvature.factor
    for start in range(0, columns, STRETCH):
        stop = min(start + STRETCH, columns)
        errors = np.empty((stop - start, rows), np.float32)
        for j in range(start, stop):
            sj, zj = s[which[j]], z[which[j]]
            c = np.clip(np.rint(rest[j] / sj + zj), 0, form.top)
            codes[j] = c
            errors[j - start] = e = (rest[j] - (c - zj) * sj) / u[j, j]
            rest[j + 1 : stop] -= u[j, j + 1 : stop, None] * e
        rest[stop:] -= u[start:stop, stop:].T @ errors
    natural = np.empty((columns, rows), np.uint8)
    natural[curvature.order] = codes
    whole = np.repeat(zero.astype(np.uint8)[..., None], form.block, 2).reshape(rows, -1)
    whole[:, :columns] = natural.T
    return Blocks(whole.reshape(parts.shape), scale, zero.astype(np.uint8))


class Pair:
    """Observes the input of a product in the float model and in the quantized one, which lie side by side.

    Keeps ``H = XqᵀXq`` and ``C = XfᵀXq``, each for every other sample.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.grams: list[Array] = []
        self.crosses: list[Array] = []

    def update(self, array: Array) -> None:
        """Take in one sample: rows of the float input, followed by the quantized one."""
        rows = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
        half = rows.shape[1] // 2
        f, q = np.ascontiguousarray(rows[:, :half]), np.ascontiguousarray(rows[:, half:])
        if self.seen < 2:
            self.grams.append(q.T @ q)
            self.crosses.append(f.T @ q)
        else:
            self.grams[self.seen % 2] += q.T @ q
            self.crosses[self.seen % 2] += f.T @ q
        self.seen += 1

    @property
    def gram(self) -> Array:
        """``H`` of all samples."""
        return sum(self.grams[1:], start=self.grams[0])

    def correction(self, outer: Array) -> Array | None:
        """Return ``M`` such that ``W + W M`` on the quantized input is closer to ``W`` on the float one.

        Ridge regression: ``M = t (C - H) (H + r I)⁻¹``, with ``r`` and ``t`` such that half of the samples gains most
        by what the other half says; ``None`` where nothing is gained. ``outer`` is ``WᵀW``.
        """
        if self.seen < 2:
            return None
        best: tuple[float, float, float] | None = None
        for pull in PULLS:
            gain = size = 0.0
            for a, b in ((0, 1), (1, 0)):
                m = _ridge(self.grams[a], self.crosses[a], pull)
                wm = outer @ m
                gain += float(np.vdot(wm, self.crosses[b] - self.grams[b]))
                size += float(np.vdot(wm, m @ self.grams[b]))
            if gain > 0 and size > 0 and (best is None or gain * gain / size > best[0]):
                best = gain * gain / size, pull, min(gain / size, 1.0)
        if best is None:
            return None
        _, pull, times = best
        return np.float32(times) * _ridge(self.gram, sum(self.crosses[1:], start=self.crosses[0]), pull)


def _ridge(h: Array, c: Array, pull: float) -> Array:
    held = h.astype(np.float64)
    damped(held, pull)
    return np.linalg.solve(held, (c - h).T.astype(np.float64)).T.astype(np.float32)
