"""Products by constant weights whose activations may be quantized at run time, and their weights as integers."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Decline
from graphopt.query import constant_tensor, is_constant, is_op, optional
from graphopt.scheme import Scheme

from ..quantize_weights.places import find
from .rounding import Moments, fed_back

Array = np.ndarray[Any, Any]
OPERATORS = ("MatMul", "Gemm")
"""What is quantized where no operators are named."""
LEAST_DB = 20.0
"""Weights that come further from what they were stay floats."""


@dataclass(frozen=True)
class Product:
    """A node that multiplies activations by constant weights."""

    node: ir.Node
    last: ir.Node
    """What gives the result: the node itself, or the Add of a bias behind it."""
    tensor: ir.TensorProtocol
    by_columns: bool = False
    """The weights of one output are a column of ``tensor``, else they lie along its first axis."""

    @property
    def x(self) -> ir.Value:
        """The activations."""
        (x,) = self.node.inputs[:1]
        assert x is not None
        return x

    @property
    def bias(self) -> ir.Value | None:
        """What is added to the product."""
        if self.last is self.node:
            return optional(self.node, 2)
        return self.last.inputs[1 if self.last.inputs[0] is self.node.outputs[0] else 0]

    @property
    def name(self) -> str:
        """What the weights are called."""
        return self.tensor.name or "weight"

    @property
    def is_conv(self) -> bool:
        """Whether the weights are kernels."""
        return self.node.op_type == "Conv"

    @property
    def outputs(self) -> int:
        """How many rows of weights there are."""
        return int(self.tensor.shape.numpy()[1 if self.by_columns else 0])

    @property
    def has_flat_bias(self) -> bool:
        """Whether the bias is one number for each output."""
        return self.bias is not None and _flat(self.bias, self.outputs)

    def rows(self) -> Array:
        """Return the weights as float32, a row for each output."""
        w = self.tensor.numpy()
        w = w.T if self.by_columns else w.reshape(len(w), -1)
        return np.ascontiguousarray(w, np.float32)

    def laid(self, rows: Array) -> Array:
        """Return ``rows`` as the integer kernel takes them."""
        shaped = rows.reshape(self.tensor.shape.numpy()) if self.is_conv else rows.T
        return np.ascontiguousarray(shaped)

    def floats(self) -> ir.LazyTensor:
        """Return the float weights as the integer kernel takes its own; laid out when somebody reads them."""
        shape = self.tensor.shape.numpy()
        return ir.LazyTensor(
            lambda: ir.Tensor(self.laid(self.rows())),
            ir.DataType.FLOAT,
            ir.Shape(shape if self.is_conv or self.by_columns else shape[::-1]),
            name=self.name,
        )

    def with_bias(self) -> Product:
        """Return the product with the Add behind it of one constant number for each output, where there is one."""
        (y,) = self.node.outputs[:1]
        readers = y.consumers()
        if self.bias is not None or y.is_graph_output() or len(y.uses()) != 1 or not is_op(readers[0], "Add"):
            return self
        more = replace(self, last=readers[0])
        inside = more.last.graph is self.node.graph and is_constant(more.bias)
        return more if inside and more.has_flat_bias else self


@dataclass(frozen=True)
class Integers:
    """Weights as integers."""

    q: Array
    """(outputs, numbers)"""
    scale: Array
    """float32 (outputs,), or one number."""
    zero_point: Array
    """Of the same shape."""
    shift: Array | None = None
    """What to add to the bias for the errors of rounding."""

    @property
    def nbytes(self) -> int:
        """The bytes of codes and scales."""
        return int(self.q.nbytes + self.scale.nbytes)


def product(node: ir.Node, operators: Collection[str], at_least: int) -> Product | None:
    """Return the product that ``node`` is, ``None`` where it is of another kind or not of ``operators``.

    Raises:
        Decline: it is a product, or looks up weights, and does not qualify.
    """
    wanted = operators or OPERATORS
    if not operators and is_op(node, "Gather"):
        _check_lookup(node, at_least)
    if not operators and is_op(node, "Conv"):
        raise Decline(
            "onnxruntime's ConvInteger is many times slower than Conv on processors; quantize-static is for it"
        )
    if node.op_type not in wanted or not is_op(node, "MatMul", "Gemm", "Conv"):
        return None
    found = _convolution(node, at_least) if node.op_type == "Conv" else _matrix_product(node, at_least)
    if found.tensor.dtype != ir.DataType.FLOAT:
        kind = found.tensor.dtype.name.lower()
        raise Decline(f"its activations are {kind}; only float is quantized at run time")
    return found


def _check_lookup(node: ir.Node, at_least: int) -> None:
    table = node.inputs[0]
    tensor = constant_tensor(table)
    if (
        table is not None
        and tensor is not None
        and tensor.dtype.is_floating_point()
        and tensor.size >= at_least
    ):
        raise Decline(f"it looks {table.name} up and multiplies nothing; quantize-weights is for it")


def _matrix_product(node: ir.Node, at_least: int) -> Product:
    place = find(node, at_least)
    if place is None:
        raise Decline("it multiplies no activations by a constant matrix")
    return Product(node, node, place.tensor, place.by_columns)


def _convolution(node: ir.Node, at_least: int) -> Product:
    tensor, bias = constant_tensor(node.inputs[1]), optional(node, 2)
    if tensor is None:
        raise Decline("its weights are computed")
    if tensor.size < at_least:
        raise Decline(f"{tensor.name} has {tensor.size} numbers, which is too few")
    if bias is not None and not is_constant(bias):
        raise Decline(f"its bias {bias.name} is computed")
    return Product(node, node, tensor)


def rounded(given: Product, scheme: Scheme, per_channel: bool, moments: Moments | None) -> Integers:
    """Return the weights as integers: the nearest ones, or those whose errors make up for each other.

    Raises:
        Decline: too little is left of them.
    """
    rows = given.rows()
    largest = np.abs(rows).max(1, keepdims=True) if per_channel else np.abs(rows).max()
    if not np.isfinite(largest).all():
        raise Decline(f"{given.name} is not finite")
    scale, zero_point = scheme.parameters(-largest, largest)
    q = scheme.quantize(rows, scale, zero_point)
    left_db = _sqnr_db(rows, scheme.dequantize(q, scale, zero_point))
    if left_db < LEAST_DB:
        raise Decline(f"integers would keep {given.name} to {left_db:.1f} dB only, not to {LEAST_DB:g}")
    shift = None
    if moments is not None and moments.count:
        has_bias = given.has_flat_bias and is_constant(given.bias)
        q, lost = fed_back(rows, scale, scheme, moments, has_bias)
        shift = lost if has_bias else None
    dtype, shape = scheme.dtype.numpy(), (-1,) if per_channel else ()
    return Integers(q.astype(dtype), scale.reshape(shape), zero_point.astype(dtype).reshape(shape), shift)


def _sqnr_db(rows: Array, made: Array) -> float:
    """Return how far ``made`` is from ``rows``, in decibels; each output counts alike, however small its weights."""
    noise = np.square(rows - made, dtype=np.float64).sum(1)
    signal = np.square(rows, dtype=np.float64).sum(1)
    share = float((noise / np.where(signal == 0, 1, signal)).mean())
    return -10 * math.log10(share) if share else math.inf


def _flat(value: ir.Value, outputs: int) -> bool:
    """Return whether ``value`` is known to have one axis, of ``outputs`` numbers."""
    tensor = constant_tensor(value)
    shape = ir.Shape(tensor.shape.numpy()) if tensor is not None else value.shape
    return shape is not None and list(shape) == [outputs]
