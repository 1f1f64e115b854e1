"""Fold multiplications, divisions, additions and subtractions of constants into the layer next to them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import (
    attribute,
    constant,
    constant_tensor,
    is_constant,
    is_op,
    opset,
    sole_producer,
)

from .layer import LAYERS, Affine, Array, Layer, check_same_graph, is_fed_by

ARITHMETIC = ("Mul", "Div", "Add", "Sub", "Neg")


class FoldAffine(Rewrite):
    """Replace ``layer(x) * c``, ``/ c``, ``+ c``, ``- c``, ``c - layer(x)`` and ``layer(x * c)`` … by ``layer'(x)``.

    Each is ``k * x + t``, and so is ``-x``, with one number in all or one for each channel of the layer::

        x * c:  k = c,      t = 0      x + c:  k = 1,  t = c
        x / c:  k = 1 / c,  t = 0      x - c:  k = 1,  t = -c      c - x:  k = -1,  t = c
        -x:     k = -1,     t = 0

    Behind Conv, ConvTranspose, Gemm or MatMul, k scales the weights of each output channel, and the bias becomes
    ``k * b + t``. Before one of them, k scales the weights of each input channel, and the bias gains the sum of
    ``w * t``; that needs a convolution without padding, because zeros beside the input are not shifted. MatMul has
    no bias and takes factors only. Where Gemm's weights cannot take one number for all, its alpha and beta do.

    Exact up to rounding: computed in float64, rounded once. **Source:** ONNX Mul-14, Div-14, Add-14, Sub-14, Neg-13;
    below opset 7, broadcast and axis say how the second operand lies against the first.
    """

    anchor = (*ARITHMETIC, *LAYERS)

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the layer that does both."""
        if not is_op(node, *ARITHMETIC):
            return fold_before(node, tape) if is_fed_by(node, *ARITHMETIC) else None
        x, c = operands(node)
        if x is None or not is_op(x.producer(), *LAYERS):
            return None
        layer = Layer(sole_producer(x, *LAYERS))
        check_same_graph(layer.node, node)
        return layer.after(affine_of(node, x, c, layer), tape)


def fold_before(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Return the layer ``node`` with the arithmetic before it; nothing where that combines two variables."""
    layer = Layer(node)
    if not is_op(arithmetic := layer.x.producer(), *ARITHMETIC):
        return None
    assert arithmetic is not None, "is_op() found it"
    x, c = operands(arithmetic)
    if x is None:
        return None
    check_same_graph(sole_producer(layer.x, *ARITHMETIC), node)
    affine = affine_of(arithmetic, x, c, layer)
    if not layer.takes(x, affine):
        raise Decline(f"{c.name if c is not None else x.name} may change the shape of {x.name}")
    return layer.before(affine, x, tape)


def operands(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """Return the operand that varies and the constant one; no first where not exactly one is constant.

    Neg has none that is constant.
    """
    if is_op(node, "Neg"):
        return node.inputs[0], None
    a, b = node.inputs
    assert a is not None and b is not None, "both operands of arithmetic are there"
    if is_constant(a) == is_constant(b):
        return None, b
    return (b, a) if is_constant(a) else (a, b)


def affine_of(node: ir.Node, x: ir.Value, c: ir.Value | None, layer: Layer) -> Affine:
    """Return what ``node`` does to ``x`` before or behind ``layer``: ``k * x + t``."""
    if c is None:
        return Affine(-np.ones(()), np.zeros(()))
    tensor = constant_tensor(c)
    assert tensor is not None, "operands() found it constant"
    if not tensor.dtype.is_floating_point():
        raise Decline(f"{c.name} is {tensor.dtype.name.lower()}, not a float")
    if is_op(layer.node, "MatMul") and is_op(node, "Add", "Sub"):
        raise Decline("MatMul has no bias")
    array, first = aligned(node, constant(c).astype(np.float64)), node.inputs[0] is c
    one, zero = np.ones(()), np.zeros(())
    with np.errstate(all="ignore"):
        match node.op_type, first:
            case "Mul", _:
                affine = Affine(array, zero)
            case "Add", _:
                affine = Affine(one, array)
            case "Sub", False:
                affine = Affine(one, -array)
            case "Sub", True:
                affine = Affine(-one, array)
            case _, False:
                affine = Affine(1 / array, zero)
            case _:
                raise Decline(f"{c.name} is divided by {x.name}, which is not linear")
    if not (np.isfinite(affine.k).all() and np.isfinite(affine.t).all()):
        raise Decline(f"{c.name} does not give a finite number in every channel")
    return affine


def aligned(node: ir.Node, c: Array) -> Array:
    """Return ``c`` with the trailing axes that the attribute ``axis`` of old opsets stands for."""
    if opset(node) >= 7 or (axis := attribute(node, "axis")) is None or c.size == 1:
        return c
    x = node.inputs[0]
    if x is None or x.shape is None:
        raise Decline("the rank of its first operand is not known")
    return c.reshape(*c.shape, *[1] * (len(x.shape) - axis % len(x.shape) - c.ndim))
