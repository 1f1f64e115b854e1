"""The directions in which what a matrix makes has most energy, and tensors that are nearest to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LARGE = 1024
"""From here on only the directions that are wanted are looked for, where they are few."""
FEW = 8
"""One of so many directions is few."""
SPARE = 16
"""So many more are looked for, or as many again."""
ROUNDS = 6
"""Of subspace iteration."""
SWEEPS, STEADY = 60, 1e-6
"""Alternating least squares ends after so many sweeps, or where the error changes by no more than this share."""
PULL = 1e-9
"""Draws factors to 0, as a share of the mean square of their columns: else two may grow against each other."""


@dataclass(frozen=True)
class Principal:
    """Orthonormal directions of an output, those of most energy first."""

    basis: Array
    """(O, n)."""
    energy: Array
    """(n,): the squared singular values of ``W S`` with ``S Sᵀ = C``."""
    total: float
    """The energy of all directions."""

    def lost(self) -> Array:
        """Return the energy that is lost where r directions are kept, for r = 0 … n."""
        return np.maximum(self.total - np.concatenate([[0.0], np.cumsum(self.energy)]), 0.0)


def principal(m: Array, times: Callable[[Array], Array], most: int | None = None) -> Principal:
    """Return the left singular vectors ``U`` of ``M S`` for ``S Sᵀ = C``, at least ``most``; ``times(M)`` is ``M C``.

    The matrix of rank r that is nearest to M where errors count as C says is ``U_r U_rᵀ M``, so that ``S`` need be
    neither computed nor inverted. With ``M = Q R`` they are the eigenvectors of ``R C Rᵀ``, turned by Q: of the
    smaller side of M.
    """
    q = np.linalg.qr(m)[0] if m.shape[0] > m.shape[1] else None
    r = m if q is None else q.T @ m
    gram = times(r) @ r.T
    gram = (gram + gram.T) / 2
    total = float(np.trace(gram))
    if most is not None and len(gram) >= LARGE and most * FEW <= len(gram):
        energy, basis = _leading(gram, most)
    else:
        energy, basis = np.linalg.eigh(gram)
        energy, basis = energy[::-1], basis[:, ::-1]
    basis = basis if q is None else q @ basis
    largest = np.take_along_axis(basis, np.abs(basis).argmax(0)[None], 0)
    return Principal(basis * np.where(largest < 0, -1.0, 1.0), np.maximum(energy, 0.0), total)


def _leading(gram: Array, most: int) -> tuple[Array, Array]:
    """Return the largest eigenvalues and their vectors, by randomized subspace iteration (arXiv:0909.4061)."""
    basis = np.random.default_rng(0).normal(size=(len(gram), most + max(most, SPARE)))
    for _ in range(ROUNDS):
        basis = np.linalg.qr(gram @ basis)[0]
    energy, turn = np.linalg.eigh(basis.T @ gram @ basis)
    return energy[::-1], basis @ turn[:, ::-1]


def parallel(t: Array, r: int) -> tuple[Array, Array, Array]:
    """Return ``a`` (O, r), ``b`` (I, r), ``c`` (K, r) such that ``sum a_or b_ir c_kr`` is near ``T`` (O, I, K).

    Alternating least squares, which begins with the leading directions of each side; exact where r is
    ``min(O, I) K``, by copying.
    """
    o, i, k = t.shape
    if r >= min(o, i) * k:
        return _copied(t)
    rng = np.random.default_rng(0)
    factors = [_start(np.moveaxis(t, axis, 0).reshape(size, -1), r, rng) for axis, size in enumerate(t.shape)]
    before = np.inf
    for _ in range(SWEEPS):
        for axis in range(3):
            x, y = (factors[other] for other in range(3) if other != axis)
            gram = (x.T @ x) * (y.T @ y)
            gram[np.diag_indices(r)] += PULL * np.trace(gram) / r + 1e-300
            unfolded = np.moveaxis(t, axis, 0).reshape(t.shape[axis], -1)
            both = (x[:, None] * y[None]).reshape(-1, r)
            factors[axis] = np.linalg.solve(gram, (unfolded @ both).T).T
            if axis < 2:
                factors[axis] /= np.maximum(np.linalg.norm(factors[axis], axis=0), 1e-300)
        a, b, c = factors
        after = float(np.square(t - np.einsum("or,ir,kr->oik", a, b, c, optimize=True)).sum())
        if before - after <= STEADY * after:
            break
        before = after
    return factors[0], factors[1], factors[2]


def _start(unfolded: Array, r: int, rng: np.random.Generator) -> Array:
    found = principal(unfolded, lambda m: m).basis[:, :r]
    return np.concatenate([found, rng.normal(size=(len(found), r - found.shape[1]))], 1)


def _copied(t: Array) -> tuple[Array, Array, Array]:
    o, i, k = t.shape
    one_hot = np.tile(np.eye(k), min(o, i))  # column (n, k) reads position k
    if o < i:
        return np.repeat(np.eye(o), k, 1), t.transpose(1, 0, 2).reshape(i, o * k), one_hot
    return t.reshape(o, i * k), np.repeat(np.eye(i), k, 1), one_hot
