"""Bounds: Relu, Clip, Min and Max with a number."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import attribute, constant_tensor, is_constant, opset, optional, scalar, used_once

from .steps import FLOATS, SIGNED, UNSIGNED, fits


class Interval(NamedTuple):
    """The least and the greatest value: floats, or integers, which Python compares exactly with them."""

    low: float
    high: float


ANYTHING = Interval(-math.inf, math.inf)
POSITIVE = Interval(0, math.inf)
KNOWN = {
    **dict.fromkeys(("Exp", "Softplus", "Sqrt", "Abs", "ReduceL1", "ReduceL2", "ReduceSumSquare"), POSITIVE),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax"), Interval(0, 1)),
    **dict.fromkeys(("Tanh", "Erf"), Interval(-1, 1)),
}
"""Bounds of what operators make of floats."""
KEEPS = "Identity Reshape Flatten Squeeze Unsqueeze Transpose Slice Gather Expand Tile ReduceMax ReduceMin".split()
"""What gives back only elements that it got."""
DEEP = 4


def cut(node: ir.Node | None) -> tuple[ir.Value, Interval] | None:
    """Return the operand that ``node`` cuts to bounds, and those; ``None`` where it does something else.

    A Clip without a bound still cuts infinities to the largest finite number.
    """
    if node is None or node.domain or node.op_type not in ("Relu", "Clip", "Min", "Max"):
        return None
    x = node.inputs[0]
    if node.op_type in ("Min", "Max") and len(node.inputs) == 2 and is_constant(x):
        x = node.inputs[1]
    dtype = x.dtype if x is not None else None
    if x is None or dtype is None or dtype not in (*FLOATS, *SIGNED, *UNSIGNED):
        return None
    if node.op_type == "Relu":
        return x, _in_type(POSITIVE, dtype)
    if node.op_type == "Clip":
        least, most = _limits(dtype)
        low, high = _bound(node, 1, "min", least), _bound(node, 2, "max", most)
        return (x, Interval(low, high)) if low is not None and high is not None and low <= high else None
    bound = next((v for v in node.inputs if v is not x), None)
    number, tensor = scalar(bound), constant_tensor(bound)
    if len(node.inputs) != 2 or number is None or tensor is None or number != number:
        return None
    if not fits(x, len(tensor.shape), node):
        return None
    bounds = Interval(-math.inf, number) if node.op_type == "Min" else Interval(number, math.inf)
    return x, _in_type(bounds, dtype)


def _in_type(bounds: Interval, dtype: ir.DataType) -> Interval:
    """Return bounds of integers as integers."""
    ends = ANYTHING if dtype in FLOATS else _limits(dtype)
    return Interval(max(bounds.low, ends.low), min(bounds.high, ends.high))


def _limits(dtype: ir.DataType) -> Interval:
    if dtype in FLOATS:
        return Interval(-FLOATS[dtype][2], FLOATS[dtype][2])
    return Interval(int(dtype.min), int(dtype.max))


def _bound(node: ir.Node, index: int, name: str, default: float) -> float | None:
    if opset(node) < 11:
        number: float = attribute(node, name, default)
        return number
    value = optional(node, index)
    return default if value is None else scalar(value)


def interval(value: ir.Value | None, depth: int = DEEP) -> Interval:
    """Return between which bounds ``value`` is known to lie, or be not a number."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain or depth == 0:
        return ANYTHING
    found = cut(node)
    if found is not None:
        return found[1]
    if node.op_type in KEEPS:
        return interval(node.inputs[0], depth - 1)
    if value.dtype not in FLOATS:
        return ANYTHING
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return POSITIVE
    if node.op_type in ("ReduceMean", "Add"):
        parts = [interval(node.inputs[0], depth - 1).low]
        if node.op_type == "Add":
            number = scalar(node.inputs[1])
            parts.append(interval(node.inputs[1], depth - 1).low if number is None else number)
        return POSITIVE if min(parts) >= 0 else ANYTHING
    return KNOWN.get(node.op_type, ANYTHING)


def bounded(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Cut once where it is cut twice, and not at all where it keeps within the bounds already."""
    found = cut(node)
    if found is None:
        return None
    y, outer = found
    known = interval(y)
    if outer.low <= known.low and known.high <= outer.high:
        return y
    before = cut(y.producer())
    if before is None:
        if node.op_type != "Max" or outer != POSITIVE or y.dtype not in FLOATS:
            return None
        return _record(y, outer, tape)
    if not used_once(y):
        raise Decline(f"{y.name} is used elsewhere")
    x, inner = before
    return _record(x, Interval(*(min(max(bound, outer.low), outer.high) for bound in inner)), tape)


def magnitude(node: ir.Node, _: Tape) -> ir.Value | None:
    """|x| is x where x is not negative."""
    return node.inputs[0] if interval(node.inputs[0]).low >= 0 else None


def _record(x: ir.Value, bounds: Interval, tape: Tape) -> ir.Value:
    """Record the operator that cuts ``x`` to ``bounds``."""
    dtype, name = x.dtype, tape.anchor.outputs[0].name
    assert dtype is not None, "cut() found it"
    ends = _in_type(ANYTHING, dtype)
    if bounds == POSITIVE and (tape.opset >= 14 or dtype != ir.DataType.BFLOAT16):
        return tape.op("Relu", [x])
    if bounds.low > ends.low and bounds.high < ends.high and tape.opset < 11:
        low, high = (float(np.float32(bound)) for bound in bounds)
        if (low, high) != bounds:
            raise Decline(f"Clip holds no bounds of {dtype.name.lower()} before opset 11")
        return tape.op("Clip", [x], {"min": low, "max": high})
    low_, high_ = (
        tape.constant(np.array(bound, dtype.numpy()), f"{name}_{side}", dtype) if bound != end else None
        for bound, end, side in zip(bounds, ends, ("min", "max"), strict=True)
    )
    if low_ is None or high_ is None:
        return tape.op("Max" if high_ is None else "Min", [x, high_ if low_ is None else low_])
    return tape.op("Clip", [x, low_, high_])


RULES = {**dict.fromkeys(("Relu", "Clip", "Min", "Max"), (bounded,)), "Abs": (magnitude,)}
