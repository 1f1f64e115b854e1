"""Factors that two summands have in common, and those that make a mean of a sum."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import (
    attribute,
    axis_of,
    constant,
    ints,
    is_constant,
    is_op,
    optional,
    rank,
    used_once,
)

from .bounds import ANYTHING, interval
from .steps import FLOATS, SIGNED, UNSIGNED, Form, Step, combined, negligible

Product = tuple[ir.Value, "ir.Value | None"]
"""Two factors; the second is missing where it is 1."""


def common(node: ir.Node, tape: Tape) -> ir.Value | None:
    """X · y ± x · z is x · (y ± z), where the sum of y and z cannot overflow."""
    a, b = node.inputs
    for (x, y), (x_, z) in ((p, q) for p in _factors(a) for q in _factors(b)):
        if x is not x_ or (y is None and z is None) or is_constant(x):
            continue
        for summand, factor in ((a, y), (b, z)):
            if factor is not None and summand is not None and not used_once(summand):
                raise Decline(f"{summand.name} is used elsewhere")
        return _of_constants(node, x, y, z, tape) or _of_variables(node, x, y, z, tape)
    return None


def _factors(value: ir.Value | None) -> Iterator[Product]:
    """Yield ``value`` as a product, each factor first."""
    node = value.producer() if value is not None else None
    if value is not None:
        yield value, None
    if node is not None and is_op(node, "Mul"):
        a, b = node.inputs
        if a is not None and b is not None:
            yield from ((a, b), (b, a))


def _of_constants(
    node: ir.Node, x: ir.Value, y: ir.Value | None, z: ir.Value | None, tape: Tape
) -> ir.Value | None:
    dtype = x.dtype
    if any(v is not None and not is_constant(v) for v in (y, z)) or dtype not in (
        *FLOATS,
        *SIGNED,
        *UNSIGNED,
    ):
        return None
    assert dtype is not None, "it is one of those"
    wide = np.float64 if dtype in FLOATS else dtype.numpy()
    a, b = (np.ones((), wide) if v is None else constant(v).astype(wide) for v in (y, z))
    b = -b if node.op_type == "Sub" else b
    if dtype in FLOATS and (np.sign(a) * np.sign(b) < 0).any():
        raise Decline("the factors cancel; the rounding between them may be meant")
    return Step(Form.SCALE, x, combined(a, b, np.add), dtype).record(tape, f"{node.outputs[0].name}_constant")


def _of_variables(
    node: ir.Node, x: ir.Value, y: ir.Value | None, z: ir.Value | None, tape: Tape
) -> ir.Value | None:
    if y is None or z is None or x.dtype is None:
        return None
    if x.dtype in FLOATS and not (_small(y, x.dtype) or _small(z, x.dtype)):
        raise Decline(f"the sum of {y.name} and {z.name} could overflow")
    return tape.op("Mul", [x, tape.op(node.op_type, [y, z])])


def _small(value: ir.Value, dtype: ir.DataType) -> bool:
    """Return whether ``value`` is too small to make a finite number overflow."""
    if is_constant(value):
        return negligible(constant(value), dtype)
    bounds = interval(value)
    return bounds != ANYTHING and negligible(np.array(bounds), dtype)


def mean(node: ir.Node, tape: Tape) -> ir.Value | None:
    """ReduceSum(x) · (1 / n) is ReduceMean(x)."""
    step = Step.of(node)
    total = step.x.producer() if step is not None else None
    if step is None or step.form is not Form.SCALE or step.dtype not in FLOATS or step.c.ndim:
        return None
    if total is None or not is_op(total, "ReduceSum"):
        return None
    if not used_once(step.x):
        raise Decline(f"{step.x.name} is used elsewhere")
    given = optional(total, 1)
    axes = list(attribute(total, "axes", [])) if given is None else ints(given)
    if not axes and attribute(total, "noop_with_empty_axes", 0):
        return None
    n = _count(total.inputs[0], axes)
    if not n or abs(float(step.c) * n - 1) > TOLERANCE[step.dtype]:
        return None
    kept = {"keepdims": attribute(total, "keepdims", 1)}
    if tape.opset < 18:
        return tape.op("ReduceMean", [total.inputs[0]], kept | ({"axes": axes} if axes else {}))
    operand = [tape.constant(np.array(axes, np.int64), f"{node.outputs[0].name}_axes")] if axes else []
    return tape.op("ReduceMean", [total.inputs[0], *operand], kept)


def _count(x: ir.Value | None, axes: list[int]) -> int:
    """Return how many elements lie along ``axes``, along all of them where there are none."""
    sizes = (
        [x.shape[axis_of(axis, rank(x))] for axis in axes or range(rank(x))]
        if x is not None and x.shape
        else []
    )
    numbers = [size for size in sizes if isinstance(size, int)]
    if x is None or len(numbers) != len(axes or range(rank(x))):
        raise Decline("it is not known how many elements are summed")
    return math.prod(numbers)


TOLERANCE = {
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.BFLOAT16: 2.0**-7,
    ir.DataType.FLOAT: 2.0**-22,
    ir.DataType.DOUBLE: 2.0**-51,
}
"""How far the rounding of 1 / n may take n times it from 1."""

RULES = {**dict.fromkeys(("Add", "Sub"), (common,)), **dict.fromkeys(("Mul", "Div"), (mean,))}
