"""Kernels as matrices, whitened by what they read, and the best last factor behind given ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .moments import Moment
from .stages import Factors, Stage, joined
from .subspace import principal

Array = np.ndarray[Any, Any]


def upright(w: Array) -> Array:
    """Return (O, I, kh, kw) as (O * kw, I * kh)."""
    o, i, height, width = w.shape
    return w.transpose(0, 3, 1, 2).reshape(o * width, i * height)


def whitened(w: Array, moment: Moment) -> Array:
    """Return ``W S`` along the input channels, for their covariance ``S Sᵀ``."""
    s = np.linalg.cholesky(moment.channels())
    return np.moveaxis(np.tensordot(w, s, axes=([1], [0])), -1, 1)


def unwhitened(v: Array, moment: Moment) -> tuple[Array, Array]:
    """Return ``Q`` (r, I) with orthonormal rows and ``R`` (r, r) such that ``R Q = Vᵀ S⁻¹``."""
    s = np.linalg.cholesky(moment.channels())
    q, r = np.linalg.qr(np.linalg.solve(s.T, v))
    return q.T, r.T


def swept(w: Array, v: Array, u: Array, sweeps: int = 3) -> tuple[Array, Array]:
    """Return the directions of both sides, each chosen in turn for those of the other: higher-order iteration."""
    if v.shape[1] == len(v) or u.shape[1] == len(u):
        return v, u
    for _ in range(sweeps):
        inner = np.moveaxis(np.tensordot(u.T, w, axes=1), 1, 0).reshape(len(v), -1)
        v = principal(inner, lambda m: m).basis[:, : v.shape[1]]
        outer = np.tensordot(w, v, axes=([1], [0])).reshape(len(u), -1)
        u = principal(outer, lambda m: m).basis[:, : u.shape[1]]
    return v, u


def refitted(w: Array, weights: list[Array], made: tuple[Stage, ...], moment: Moment) -> Array:
    """Return the last factor ``A`` that is best behind the others, ``B``: ``A + (W - A B) C Bᵀ (B C Bᵀ)⁻¹``."""
    b = Factors(made[:-1], tuple(weights[:-1])).product()
    a = weights[-1]
    error = w - joined(a, b)
    width = math.prod(a.shape[2:])
    if width > 1:  # each column of the last kernel reads what the others make of another column
        eye = np.eye(width)
        b = np.einsum("rih,kl->rkihl", b[..., 0], eye).reshape(-1, *w.shape[1:])
    cb = moment.times(b)
    flat_b, flat_cb = b.reshape(len(b), -1), cb.reshape(len(b), -1)
    gram = flat_cb @ flat_b.T
    change = np.linalg.lstsq(gram, flat_cb @ error.reshape(len(w), -1).T, rcond=1e-10)[0].T
    made_new: Array = a + change.reshape(a.shape)
    return made_new
