"""Operators that do nothing to one value: copies, casts, twice the same, one of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import attribute, is_op, opset, optional, scalar


def identity(node: ir.Node, _: Tape) -> ir.Value | None:
    """Identity(x) is x."""
    return node.inputs[0]


def dropout(node: ir.Node, _: Tape) -> ir.Value | None:
    """Dropout(x) is x where it does not train or drops nothing."""
    if _trains(node) and _ratio(node) != 0:
        raise Decline("it may run in training mode")
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    if mask is not None and (mask.uses() or mask.is_graph_output()):
        raise Decline(f"its mask {mask.name} is used")
    return node.inputs[0]


def _trains(node: ir.Node) -> bool:
    """Return whether some run may drop elements: from opset 7 to 11 a node has no say in it, and a run infers."""
    if opset(node) < 7:
        return not attribute(node, "is_test", 0)
    mode = optional(node, 2)
    return mode is not None and scalar(mode) is not False


def _ratio(node: ir.Node) -> float | None:
    if opset(node) < 12:
        return float(attribute(node, "ratio", 0.5))
    ratio = optional(node, 1)
    return 0.5 if ratio is None else scalar(ratio)


def cast(node: ir.Node, _: Tape) -> ir.Value | None:
    """Cast(x) is x where x has the type already."""
    to = attribute(node, "to")
    return _of_type(node.inputs[0], ir.DataType[to] if isinstance(to, str) else ir.DataType(to))


def cast_like(node: ir.Node, _: Tape) -> ir.Value | None:
    """CastLike(x, y) is x where both have one type."""
    like = node.inputs[1]
    if like is None or like.dtype is None:
        raise Decline("the type to cast to is not known")
    return _of_type(node.inputs[0], like.dtype)


def _of_type(x: ir.Value | None, dtype: ir.DataType) -> ir.Value | None:
    if x is not None and x.dtype is None:
        raise Decline(f"the type of {x.name} is not known")
    return x if x is not None and x.dtype == dtype else None


def involution(node: ir.Node, _: Tape) -> ir.Value | None:
    """f(f(x)) is x."""
    inner = _same_before(node)
    return inner.inputs[0] if inner is not None else None


def idempotent(node: ir.Node, _: Tape) -> ir.Value | None:
    """f(f(x)) is f(x)."""
    return node.inputs[0] if _same_before(node) is not None else None


def _same_before(node: ir.Node) -> ir.Node | None:
    x = node.inputs[0]
    inner = x.producer() if x is not None else None
    return inner if is_op(inner, node.op_type) else None


def only_input(node: ir.Node, _: Tape) -> ir.Value | None:
    """f(x) is x for operators that join several values."""
    return node.inputs[0] if len(node.inputs) == 1 else None


def only_output(node: ir.Node, _: Tape) -> ir.Value | None:
    """Split(x) into one part is x."""
    return node.inputs[0] if len(node.outputs) == 1 else None


INTEGERS = frozenset(
    getattr(ir.DataType, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)
)


def clip(node: ir.Node, _: Tape) -> ir.Value | None:
    """Clip(x) is x where it has no bounds and x no infinities."""
    x = node.inputs[0]
    low, high = optional(node, 1), optional(node, 2)
    if low is not None or high is not None or "min" in node.attributes or "max" in node.attributes:
        return None
    if x is None or x.dtype not in INTEGERS:
        raise Decline("without bounds it still cuts infinities to the largest finite number")
    return x


RULES: Mapping[str, Callable[[ir.Node, Tape], ir.Value | None]] = {
    "Identity": identity,
    "Dropout": dropout,
    "Cast": cast,
    "CastLike": cast_like,
    "Clip": clip,
    **dict.fromkeys(("Neg", "Not", "BitwiseNot"), involution),
    **dict.fromkeys(("Relu", "Abs", "Sign", "Floor", "Ceil", "Round"), idempotent),
    **dict.fromkeys(("Sum", "Max", "Min", "Mean", "Concat"), only_input),
    "Split": only_output,
}
