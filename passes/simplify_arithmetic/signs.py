"""Minus signs."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import is_op, used_once

NEGATED = {
    ("Add", (False, True)): ("Sub", (0, 1)),
    ("Add", (True, False)): ("Sub", (1, 0)),
    ("Sub", (False, True)): ("Add", (0, 1)),
    ("Sub", (True, True)): ("Sub", (1, 0)),
    ("Mul", (True, True)): ("Mul", (0, 1)),
    ("Div", (True, True)): ("Div", (0, 1)),
    ("Abs", (True,)): ("Abs", (0,)),
    ("Cos", (True,)): ("Cos", (0,)),
}
"""Operator, and which of its operands are negated: the operator without the signs, and the order of its operands."""


def negated(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Take minus signs into the operator."""
    negs = [v.producer() if v is not None else None for v in node.inputs]
    found = NEGATED.get((node.op_type, tuple(is_op(neg, "Neg") for neg in negs)))
    if found is None:
        return None
    operator, order = found
    bare = [
        n.inputs[0] if n is not None and is_op(n, "Neg") else v
        for n, v in zip(negs, node.inputs, strict=True)
    ]
    return tape.op(operator, [bare[i] for i in order])


def difference(node: ir.Node, tape: Tape) -> ir.Value | None:
    """-(a - b) is b - a."""
    x = node.inputs[0]
    sub = x.producer() if x is not None else None
    if x is None or sub is None or not is_op(sub, "Sub"):
        return None
    if not used_once(x):
        raise Decline(f"{x.name} is used elsewhere")
    return tape.op("Sub", sub.inputs[::-1])


RULES = {**dict.fromkeys(("Add", "Sub", "Mul", "Div", "Abs", "Cos"), (negated,)), "Neg": (difference,)}
