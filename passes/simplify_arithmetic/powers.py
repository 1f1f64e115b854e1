"""Powers, roots and reciprocals."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import constant_tensor, is_op, same_shape, scalar, used_once

from .bounds import interval
from .steps import FLOATS, fits


def power(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Pow(x, 2), Pow(x, -1) and Pow(x, ½) have operators of their own."""
    x, exponent = node.inputs
    number, tensor = scalar(exponent), constant_tensor(exponent)
    if x is None or tensor is None or number not in (2, -1, 0.5) or x.dtype is None:
        return None
    if not fits(x, len(tensor.shape), node):
        raise Decline(
            f"an exponent of rank {len(tensor.shape)} may give the result another shape than {x.name} has"
        )
    if number == 2:
        variance = any(is_op(reader, "ReduceMean") for reader in node.outputs[0].consumers())
        return None if variance else tape.op("Mul", [x, x])
    if x.dtype not in FLOATS:
        return None
    if number == -1:
        return tape.op("Reciprocal", [x])
    if interval(x)[0] < 0:
        raise Decline(f"{x.name} may be -inf, whose power is inf and whose root is not a number")
    return tape.op("Sqrt", [x])


def root(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Sqrt(x · x) is |x|."""
    x = node.inputs[0]
    square = x.producer() if x is not None else None
    if square is None or not is_op(square, "Mul") or square.inputs[0] is not square.inputs[1]:
        return None
    return tape.op("Abs", [square.inputs[0]])


def product(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Y · Reciprocal(x) is y / x, where x is not the smaller of them."""
    for y, value in (node.inputs, node.inputs[::-1]):
        inverse = value.producer() if value is not None else None
        if value is not None and inverse is not None and is_op(inverse, "Reciprocal"):
            if not used_once(value):
                raise Decline(f"{value.name} is used elsewhere")
            if not same_shape(value, node.outputs[0]):
                raise Decline(f"{value.name} may be smaller than the product, and cheaper to divide by")
            return tape.op("Div", [y, inverse.inputs[0]])
    return None


def quotient(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Y / Reciprocal(x) is y · x."""
    y, value = node.inputs
    inverse = value.producer() if value is not None else None
    if inverse is None or not is_op(inverse, "Reciprocal"):
        return None
    return tape.op("Mul", [y, inverse.inputs[0]])


RULES = {"Pow": (power,), "Sqrt": (root,), "Mul": (product,), "Div": (quotient,)}
