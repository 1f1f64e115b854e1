"""Write conditions and masks with fewer operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import constant, constant_tensor, is_constant, is_op, opset, scalar, used_once

from .broadcasting import gives
from .fold_constants.kernels import compute

Rule = Callable[[ir.Node, Tape], "ir.Value | None"]

OPPOSITE = {
    "Less": ("GreaterOrEqual", 12),
    "LessOrEqual": ("Greater", 9),
    "Greater": ("LessOrEqual", 12),
    "GreaterOrEqual": ("Less", 9),
}
"""A comparison, what holds where it does not, and the opset that brought that."""
OUTER = {
    ("Less", "And"): min,
    ("LessOrEqual", "And"): min,
    ("Greater", "And"): max,
    ("GreaterOrEqual", "And"): max,
}
OUTER |= {
    ("Less", "Or"): max,
    ("LessOrEqual", "Or"): max,
    ("Greater", "Or"): min,
    ("GreaterOrEqual", "Or"): min,
}
"""A comparison of one value with two numbers, and how both are joined: which of the numbers counts."""
OF_MASKS = (
    "Mul",
    "Add",
    "Sub",
    "Div",
    "Neg",
    "Abs",
    "Cast",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
)
"""What a mask may go through to become a choice of two numbers."""
DEEP = 6


class SimplifyLogic(Rewrite):
    """Replace conditions, comparisons and masks by fewer operators.

    Of conditions ``c``, ``d``, of numbers ``m``, ``n`` that are constant, and of any ``x``, ``y``, ``z``::

        not (x < y)                  ->  x >= y           not for floats, where NaN is neither
        not c and not d              ->  not (c or d)     c and c  ->  c         the same for or
        x < m and x < n              ->  x < min(m, n)    the same for >, <=, >= and for or
        Where(not c, x, y)           ->  Where(c, y, x)   Where(c, x, x)  ->  x
        Where(c, Where(c, x, y), z)  ->  Where(c, x, z)   Where(c, x, Where(c, y, z))  ->  Where(c, x, z)
        Where(c, 1, 0)               ->  Cast(c)          of booleans: c itself, or not c
        f(Cast(c))                   ->  Where(c, f(1), f(0))   of arithmetic and comparisons f with constants: c,
        f(Where(c, m, n))            ->  Where(c, f(m), f(n))   not c or a Cast where the two numbers allow it

    Exact: what f makes of the two numbers is computed as constant folding does. Source: ONNX Not-1, And-7, Or-7,
    Where-16, Cast-13, Equal-13, Less-13, LessOrEqual-16.
    """

    anchor = ("Not", "And", "Or", "Where", *OF_MASKS)

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Ask the operator's own rule."""
        return RULES.get(node.op_type, choice)(node, tape) if opset(node) >= 9 else None


def opposite(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Return the opposite comparison."""
    comparison = _producer(node.inputs[0])
    if comparison is None or comparison.op_type not in OPPOSITE or comparison.domain:
        return None
    operator, since = OPPOSITE[comparison.op_type]
    x = comparison.inputs[0]
    if x is None or x.dtype is None or x.dtype.is_floating_point():
        raise Decline(f"{x.name if x is not None else ''} may be NaN, of which neither comparison holds")
    if tape.opset < since:
        raise Decline(f"ONNX has {operator} from opset {since} on")
    _check_unshared(node.inputs[0])
    return tape.op(operator, comparison.inputs)


def joined(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Return one condition instead of two."""
    a, b = node.inputs
    if a is b:
        return a
    first, second = _producer(a), _producer(b)
    if first is None or second is None:
        return None
    if is_op(first, "Not") and is_op(second, "Not"):
        _check_unshared(a, b)
        other = tape.op("Or" if node.op_type == "And" else "And", [first.inputs[0], second.inputs[0]])
        return tape.op("Not", [other])
    which = OUTER.get((first.op_type, node.op_type))
    if which is None or not is_op(second, first.op_type) or first.inputs[0] is not second.inputs[0]:
        return None
    m, n = (scalar(comparison.inputs[1]) for comparison in (first, second))
    if m is None or n is None or m != m or n != n:
        return None
    _check_unshared(a, b)
    chosen = first if which(m, n) == m else second
    if not gives(chosen.inputs, node.outputs[0]):
        raise Decline(f"the result may have a larger shape than {chosen.outputs[0].name}")
    return tape.op(first.op_type, chosen.inputs)


def where(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Return what fewer choices make."""
    c, x, y = node.inputs
    if x is y:
        if not gives([x], node.outputs[0]):
            raise Decline("the result may have a larger shape than what is chosen")
        return x
    negation = _producer(c)
    if negation is not None and is_op(negation, "Not"):
        return tape.op("Where", [negation.inputs[0], y, x])
    return _nested(node, tape) or _numbers(node, tape)


def _nested(node: ir.Node, tape: Tape) -> ir.Value | None:
    c, *branches = node.inputs
    taken = [
        inner.inputs[i + 1]
        if inner is not None and is_op(inner, "Where") and inner.inputs[0] is c
        else branch
        for i, (branch, inner) in enumerate((branch, _producer(branch)) for branch in branches)
    ]
    if taken == branches:
        return None
    if not gives([c, *taken], node.outputs[0]):
        raise Decline("the result may have a smaller shape without the choice that does not count")
    return tape.op("Where", [c, *taken])


def _numbers(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Return what chooses between two numbers cheaper than Where does."""
    c, x, y = node.inputs
    tensor = constant_tensor(x)
    if c is None or tensor is None or not gives([c], node.outputs[0]):
        return None
    on, off = scalar(x), scalar(y)
    return _chosen(c, (on, off), tensor.dtype, tape) if on is not None and off is not None else None


def _chosen(c: ir.Value, numbers: tuple[float, float], dtype: ir.DataType, tape: Tape) -> ir.Value | None:
    """Return the numbers of a choice without a Where."""
    if dtype == ir.DataType.BOOL and numbers in ((True, False), (False, True)):
        return c if numbers[0] else tape.op("Not", [c])
    if numbers != (1, 0) or math.copysign(1, numbers[1]) < 0:
        return None
    return tape.op("Cast", [c], {"to": int(dtype)})


def choice(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Return the choice that arithmetic makes of a mask."""
    if not any(_may_be_mask(value) for value in node.inputs):
        return None
    chain: list[ir.Node] = []
    c = _mask(node, chain)
    dtype = node.outputs[0].dtype
    if c is None or len(chain) < 2 or dtype is None:
        return None
    if not gives([c], node.outputs[0]):
        raise Decline(f"a constant may give the result a larger shape than {c.name} has")
    for inner in chain[:-1]:
        _check_unshared(inner.outputs[0])
    on, off = (_evaluated(chain, c, state) for state in (True, False))
    if on == off:
        return None
    simple = _chosen(c, (on.item(), off.item()), dtype, tape)
    if simple is not None:
        return simple
    y = node.outputs[0].name
    return tape.op("Where", [c, tape.constant(on, f"{y}_on", dtype), tape.constant(off, f"{y}_off", dtype)])


def _may_be_mask(value: ir.Value | None) -> bool:
    node = _producer(value)
    return is_op(node, "Where", *OF_MASKS)


def _mask(node: ir.Node | None, chain: list[ir.Node]) -> ir.Value | None:
    """Return the condition that ``node`` computes a number of, with the nodes on the way, the first one first."""
    if node is None or not is_op(node, "Where", *OF_MASKS) or len(chain) > DEEP:
        return None
    varying = [value for value in node.inputs if not is_constant(value)]
    if len(varying) != 1 or any(value is not varying[0] and scalar(value) is None for value in node.inputs):
        return None
    (x,) = varying
    if x is None or (node.op_type in ("Div", "Where") and x is not node.inputs[0]):
        return None
    found = x if x.dtype == ir.DataType.BOOL and is_op(node, "Cast", "Where") else _mask(x.producer(), chain)
    if found is not None:
        chain.append(node)
    return found


def _evaluated(chain: list[ir.Node], c: ir.Value, state: bool) -> np.ndarray[Any, Any]:
    value, array = c, np.array(state)
    for node in chain:
        (array,) = compute(node, [array if v is value else constant(v).reshape(()) for v in node.inputs])
        value = node.outputs[0]
    return np.asarray(array)


def cast(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Casts of casts are those of merge-casts; after other arithmetic, one may end a choice."""
    before = _producer(node.inputs[0])
    return (
        None
        if before is None or is_op(before, "Cast") or "saturate" in node.attributes
        else choice(node, tape)
    )


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _check_unshared(*values: ir.Value | None) -> None:
    for value in values:
        if value is not None and not used_once(value):
            raise Decline(f"{value.name} is used elsewhere")


RULES: Mapping[str, Rule] = {"Not": opposite, "And": joined, "Or": joined, "Where": where, "Cast": cast}
