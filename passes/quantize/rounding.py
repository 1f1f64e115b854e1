"""Round weights so that the errors of those that are multiplied together make up for each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.query import attribute, constant_tensor
from graphopt.scheme import Scheme

Array = np.ndarray[Any, Any]
POSITIONS, ENOUGH, FURTHER = 256, 4096, 32
"""So many places of a sample are looked at; of further samples fewer, when so many were seen in all."""
WIDEST = 1536
"""Products that sum over more numbers round to nearest: their second moments would take too much memory."""
DAMPING = 0.01
"""Of the mean variance, added to each: what calibration data did not show may come, too."""
ROUNDING = 1e-5
"""Of the mean second moment, added as well: what float32 sums may have rounded away."""
BLOCK = 64


class Moments:
    """An observer of what a layer multiplies with one row of its weights: means and covariances, group by group."""

    def __init__(self, node: ir.Node, seed: int = 0) -> None:
        tensor = constant_tensor(node.inputs[1])
        assert tensor is not None
        self.node, self.shape = node, tuple(tensor.shape.numpy())
        self.groups = attribute(node, "group", 1) if node.op_type == "Conv" else 1
        self.count = 0
        self._sum: Array | None = None
        self._squares: Array | None = None
        self._random = np.random.default_rng(seed)

    def update(self, array: Array) -> None:
        """Take in the activations of one sample."""
        rows = self._patches(array) if self.node.op_type == "Conv" else self._rows(array)
        if not rows.shape[1]:
            return
        squares, total = rows.transpose(0, 2, 1) @ rows, rows.sum(1)
        self._squares = squares if self._squares is None else self._squares + squares
        self._sum = total if self._sum is None else self._sum + total
        self.count += rows.shape[1]

    @property
    def _positions(self) -> int:
        return POSITIONS if self.count < ENOUGH else FURTHER

    def _rows(self, x: Array) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > self._positions:
            rows = rows[self._random.choice(len(rows), self._positions, replace=False)]
        return rows[None].astype(np.float32)

    def _patches(self, x: Array) -> Array:
        """Return what the kernel sees at some places: (groups, places, numbers)."""
        kernel = self.shape[2:]
        dims = len(kernel)
        strides = attribute(self.node, "strides", [1] * dims)
        dilations = attribute(self.node, "dilations", [1] * dims)
        pads = attribute(self.node, "pads", [0] * 2 * dims)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:dims], pads[dims:], strict=True)])
        sizes = [
            (padded.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(dims)
        ]
        total = len(x) * int(np.prod(sizes))
        chosen = self._random.choice(total, min(total, self._positions), replace=False)
        sample, *at = np.unravel_index(chosen, (len(x), *sizes))
        grid = np.meshgrid(*[np.arange(kernel[i]) * dilations[i] for i in range(dims)], indexing="ij")
        where = tuple(
            (at[i] * strides[i]).reshape(-1, *[1] * dims) + grid[i] for i in range(dims)
        )  # (places, *kernel)
        channels_last = np.moveaxis(padded, 1, -1)
        seen = channels_last[(sample.reshape(-1, *[1] * dims), *where)]  # (places, *kernel, channels)
        seen = np.moveaxis(seen, -1, 1).reshape(len(chosen), self.groups, -1)
        return np.ascontiguousarray(seen.transpose(1, 0, 2), np.float32)

    @property
    def mean(self) -> Array:
        """The mean of each number: (groups, numbers)."""
        assert self._sum is not None
        return np.asarray(self._sum, np.float64) / self.count

    @property
    def second(self) -> Array:
        """The mean of each product of two numbers: (groups, numbers, numbers)."""
        assert self._squares is not None
        return np.asarray(self._squares, np.float64) / self.count


def observable(node: ir.Node) -> bool:
    """Return whether :class:`Moments` can be taken of what ``node`` reads."""
    tensor = constant_tensor(node.inputs[1])
    if tensor is None:
        return False
    shape = tuple(tensor.shape.numpy())
    if node.op_type == "Conv":
        fixed = attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "")
        return fixed and int(np.prod(shape[1:])) <= WIDEST
    return len(shape) == 2 and max(shape[0] if not attribute(node, "transB", 0) else shape[1], 1) <= WIDEST


def geometry(node: ir.Node) -> tuple[object, ...]:
    """Return what two layers that read the same value must have in common to see the same numbers."""
    if node.op_type != "Conv":
        return ("rows",)
    tensor = constant_tensor(node.inputs[1])
    assert tensor is not None
    names = ("group", "strides", "dilations", "pads")
    return (tuple(tensor.shape.numpy())[2:], *(str(attribute(node, name, None)) for name in names))


def fed_back(w: Array, scale: Array, scheme: Scheme, moments: Moments, has_bias: bool) -> tuple[Array, Array]:
    """Return the integers of ``w``, which has a row for each output, and what to add to the bias for their errors.

    Columns are rounded one by one; those to come take on what each error does to the outputs, as their covariance
    with it has it. With a bias only the changing part of an error counts: the mean goes into the bias.

    Source: Frantar et al. 2022 (arXiv:2210.17323), algorithm 1; Nagel et al. 2019 (arXiv:1906.04721), section 4.
    """
    groups = moments.groups
    rows = w.reshape(groups, -1, w.shape[-1]).astype(np.float64)
    scales = np.broadcast_to(scale, (w.shape[0], 1)).reshape(groups, -1, 1).astype(np.float64)
    h, mean = moments.second, moments.mean
    noise = ROUNDING * np.trace(h, axis1=1, axis2=2) / h.shape[1]
    if has_bias:
        h = h - mean[:, :, None] * mean[:, None, :]
    spread = np.trace(h, axis1=1, axis2=2) / h.shape[1]
    h = h + np.eye(h.shape[1]) * np.maximum(DAMPING * spread, noise + 1e-12)[:, None, None]
    upper = _upper(h)
    left, q = rows.copy(), np.zeros(rows.shape, np.int64)
    columns = rows.shape[2]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = np.zeros((*rows.shape[:2], end - start))
        for j in range(start, end):
            q[:, :, j] = scheme.quantize(left[:, :, j], scales[:, :, 0], 0)
            error = (left[:, :, j] - q[:, :, j] * scales[:, :, 0]) / upper[:, j, j][:, None]
            left[:, :, j:end] -= error[:, :, None] * upper[:, None, j, j:end]
            errors[:, :, j - start] = error
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
    lost = rows - q * scales
    shift = (lost @ mean[:, :, None])[:, :, 0].reshape(-1) if has_bias else np.zeros(w.shape[0])
    return q.reshape(w.shape), shift


def _upper(h: Array) -> Array:
    """Return the upper triangular ``U`` with ``UᵀU`` the inverse of ``h``."""
    try:
        r = np.linalg.cholesky(h[:, ::-1, ::-1])[:, ::-1, ::-1]  # h = R Rᵀ, and R is upper triangular
    except np.linalg.LinAlgError:
        return np.linalg.cholesky(_inverse(h)).transpose(0, 2, 1)
    return np.linalg.inv(r)


def _inverse(h: Array) -> Array:
    """Return the inverse of symmetric matrices, whose eigenvalues rounding may have made 0 or less."""
    values, vectors = np.linalg.eigh(h)
    values = np.maximum(values, 1e-6 * values[:, -1:] + 1e-30)
    inverse: Array = (vectors / values[:, None, :]) @ vectors.transpose(0, 2, 1)
    return (inverse + inverse.transpose(0, 2, 1)) / 2
