"""Write arithmetic with fewer, cheaper operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain

import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import opset

from . import bounds, chains, factors, powers, signs

Rule = Callable[[ir.Node, Tape], "ir.Value | None"]


def _joined(*tables: Mapping[str, Iterable[Rule]]) -> Mapping[str, tuple[Rule, ...]]:
    operators = dict.fromkeys(chain.from_iterable(tables))
    return {name: tuple(chain.from_iterable(t.get(name, ()) for t in tables)) for name in operators}


RULES = _joined(signs.RULES, factors.RULES, chains.RULES, powers.RULES, bounds.RULES)
"""Operator to its rules, tried in order: the value to use instead, a Decline, or ``None``."""


class SimplifyArithmetic(Rewrite):
    """Replace a few arithmetic operators by fewer of them, or one by a cheaper one.

    With constants ``a``, ``b``, ``c``, and variables ``x``, ``y``, ``z``::

        (x · a) · b  ->  x · ab        (x + a) + b  ->  x + (a + b)      and with /, -, a / x, a - x in their places
        (x · a + b) · c  ->  x · ac + bc        matmul(x, W) + b  likewise, for the weights to take the factor
        x / c  ->  x · (1 / c)         x · -1  ->  -x                    1 / x  ->  Reciprocal(x)
        a + -b  ->  a - b              -a · -b  ->  a · b                -(a - b)  ->  b - a           |-a|  ->  |a|
        x · y + x · z  ->  x · (y + z)                  x · a + x  ->  x · (a + 1)
        ReduceSum(x) / n  ->  ReduceMean(x)             of n elements
        Pow(x, 2)  ->  x · x           Pow(x, -1)  ->  Reciprocal(x)     Pow(x, ½)  ->  Sqrt(x)        where x ≥ 0
        y · Reciprocal(x)  ->  y / x   y / Reciprocal(x)  ->  y · x      Sqrt(x · x)  ->  |x|
        Relu, Clip, Min(x, a), Max(x, a) of each other  ->  one of them, or none

    Exact: constants are computed in float64 and rounded once, integers wrap around as they did. Floats are not summed
    where the constants cancel, ``(x + a) - b``, because the rounding between may be what is wanted; and no sum is
    made that can overflow where the original did not. A product that overflowed between two factors may become
    finite; the sign of a zero may change. NaN goes through Relu, Clip, Min and Max as in ONNX's reference.
    Source: ONNX Add-14, Sub-14, Mul-14, Div-14, Neg-13, Abs-13, Pow-15, Sqrt-13, Reciprocal-13, ReduceSum-13,
    ReduceMean-18, Relu-14, Clip-13, Min-13, Max-13; their broadcast attributes before opset 7 are left alone.
    """

    anchor = tuple(RULES)

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Ask the operator's rules; the first reason not to apply one is reported where none applies."""
        if opset(node) < 7:
            return None
        reason = None
        for rule in RULES[node.op_type]:
            try:
                found = rule(node, tape)
            except Decline as declined:
                reason = reason or declined
            else:
                if found is not None:
                    return found
        if reason is not None:
            raise reason
        return None
