"""Operations with constants that follow each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import is_constant, is_op, used_once

from .steps import FLOATS, Array, Form, Step, combined, fits, negligible

SCALE, SHIFT, MIRROR, INVERSE = Form

COMPOSED: dict[tuple[Form, Form], tuple[Form, Callable[[Array, Array], Array]]] = {
    (SCALE, SCALE): (SCALE, lambda b, a: a * b),
    (SCALE, INVERSE): (INVERSE, lambda b, a: a * b),
    (INVERSE, SCALE): (INVERSE, lambda b, a: b / a),
    (INVERSE, INVERSE): (SCALE, lambda b, a: b / a),
    (SHIFT, SHIFT): (SHIFT, lambda b, a: a + b),
    (SHIFT, MIRROR): (MIRROR, lambda b, a: a + b),
    (MIRROR, SHIFT): (MIRROR, lambda b, a: b - a),
    (MIRROR, MIRROR): (SHIFT, lambda b, a: b - a),
}
"""The second form, with constant ``b``, of the first, with ``a``: the form of both, and its constant."""

NEGATED = {
    (SCALE, SHIFT): (MIRROR, -1),
    (SCALE, MIRROR): (SHIFT, -1),
    (MIRROR, SCALE): (SHIFT, 1),
    (SHIFT, SCALE): (MIRROR, 1),
}
"""The same where the scale is -1: the form of both, and the sign that the other constant takes."""

NEVER = ("Erf", "MatMul")
"""Div after or before these is part of a pattern that runtimes look for, and MatMul takes factors itself."""


def composed(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Make one operation of two."""
    outer = Step.of(node)
    inner = Step.of(outer.x.producer()) if outer is not None else None
    if outer is None or inner is None:
        return None
    step = _composed(outer, inner)
    if step is None:
        return None
    if not used_once(outer.x):
        raise Decline(f"{outer.x.name} is used elsewhere")
    return step.record(tape, _stem(node))


def _composed(outer: Step, inner: Step) -> Step | None:
    forms = outer.form, inner.form
    if forms in COMPOSED:
        form, function = COMPOSED[forms]
        c = combined(outer.c, inner.c, function)
        if outer.dtype in FLOATS:
            _check_rounding(form, c, outer, inner)
        return Step(form, inner.x, c, outer.dtype)
    if forms not in NEGATED:
        return None
    scale, other = (outer, inner) if outer.form is SCALE else (inner, outer)
    if scale.c.size != 1 or scale.c.reshape(()) != -1 or scale.c.ndim > other.c.ndim:
        return None
    form, sign = NEGATED[forms]
    return Step(form, inner.x, sign * other.c, outer.dtype)


def _check_rounding(form: Form, c: Array, outer: Step, inner: Step) -> None:
    """Decline where the constant for both hides what rounding did between them."""
    if form in (SHIFT, MIRROR):
        first = -inner.c if outer.form is MIRROR else inner.c
        if (np.sign(first) * np.sign(outer.c) < 0).any():
            raise Decline("the constants cancel; the rounding between them may be meant")
    elif ((c == 0) & (inner.c != 0) & (outer.c != 0)).any():
        raise Decline(f"the constant for both underflows {outer.dtype.name.lower()}")


def distributed(node: ir.Node, tape: Tape) -> ir.Value | None:
    """(y + b) · c is y · c + bc, for a factor that ``y`` has, or weights that take one."""
    outer = Step.of(node)
    inner = Step.of(outer.x.producer()) if outer is not None else None
    if outer is None or inner is None or outer.form is not SCALE or inner.form not in (SHIFT, MIRROR):
        return None
    first = Step.of(inner.x.producer())
    scaled = first is not None and first.form is SCALE
    if not scaled and not _takes_factor(inner.x.producer()):
        return None
    for value in (outer.x, inner.x):
        if not used_once(value):
            raise Decline(f"{value.name} is used elsewhere")
    shift = Step(SHIFT, inner.x, combined(outer.c, inner.c, np.multiply), outer.dtype)
    if not negligible(shift.c, shift.dtype):
        raise Decline(f"adding {inner.x.name} only after the factor could overflow")
    factor = Step(SCALE, inner.x, -outer.c if inner.form is MIRROR else outer.c, outer.dtype)
    if scaled and first is not None:
        factor = Step(SCALE, first.x, combined(factor.c, first.c, np.multiply), factor.dtype)
    factor.rounded(), shift.rounded()
    product = factor.record(tape, _stem(node))
    return Step(SHIFT, product, shift.c, shift.dtype).record(tape, f"{node.outputs[0].name}_shift")


def _takes_factor(node: ir.Node | None) -> bool:
    return node is not None and is_op(node, "MatMul") and any(is_constant(v) for v in node.inputs)


def cheaper(node: ir.Node, tape: Tape) -> ir.Value | None:
    """X / c is x · (1 / c), x · -1 is -x, and 1 / x is Reciprocal(x)."""
    step = Step.of(node)
    if step is None or (step.form is SCALE and node.op_type == "Mul" and not _is(step, -1, node)):
        return None
    if step.form is INVERSE and not _is(step, 1, node):
        return None
    if node.op_type == "Div" and step.form is SCALE and _is_sought(node, step.x):
        return None
    return step.record(tape, _stem(node))


def _is(step: Step, number: int, node: ir.Node) -> bool:
    return step.c.size == 1 and step.c.reshape(()) == number and fits(step.x, step.c.ndim, node)


def _is_sought(node: ir.Node, x: ir.Value) -> bool:
    return is_op(x.producer(), *NEVER) or any(is_op(n, *NEVER) for n in node.outputs[0].consumers())


def _stem(node: ir.Node) -> str:
    return f"{node.outputs[0].name}_constant"


RULES = {
    "Mul": (composed, distributed, cheaper),
    "Div": (composed, distributed, cheaper),
    "Add": (composed,),
    "Sub": (composed,),
    "Neg": (composed, distributed),
    "Reciprocal": (composed,),
}
