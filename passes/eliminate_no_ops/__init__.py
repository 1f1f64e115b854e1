"""Remove nodes that give back what they get."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graphopt import Rewrite, Tape

from . import arithmetic, movement, single

RULES: Mapping[str, Callable[[ir.Node, Tape], ir.Value | None]] = {
    **single.RULES,
    **arithmetic.RULES,
    **movement.RULES,
}
"""Operator to its rule: the value to use instead, a Decline, or ``None`` for a node that is not of the kind."""


class EliminateNoOps(Rewrite):
    """Replace a node that gives back one of its inputs by that input.

    - Identity; Dropout that does not train; Cast and CastLike to the type that the input has
    - ``x + 0``, ``x - 0``, ``x * 1``, ``x / 1``, ``x ** 1``; ``x and true``, ``x or false``, ``x xor false``; bitwise
    - Where with a condition that is true, or false, everywhere
    - Neg, Not and BitwiseNot of itself; Relu, Abs, Sign, Floor, Ceil and Round of itself
    - Sum, Max, Min, Mean and Concat of one; Split into one; Clip of integers without bounds
    - Reshape, Flatten, Expand, Slice and Resize to the shape that the input has; Pad by nothing; Tile by ones
    - Gather of all elements of a flattened value in their order, into the shape that it had (torch's as_strided)
    - Transpose in order; Squeeze and Unsqueeze of no axis; DepthToSpace and SpaceToDepth by 1
    - ReduceSum, -Mean, -Max, -Min and -Prod over axes of size 1 that stay, or over none

    Shape and type of the result are those of the input at every run, or the node stays: ``x + zeros`` of a larger
    shape is an Expand. Clip of floats without bounds stays, since it cuts infinities.

    Exact; all that may change is the sign of a zero (``-0.0 + 0.0`` is ``0.0``). Source: the operators named, in
    every version that ONNX has of them: what was an attribute became an input in Dropout-12, Pad-11, Slice-10,
    Clip-11, Squeeze-13, Unsqueeze-13, ReduceSum-13 and ReduceMean-18; Add-1 to Add-6 broadcast only where told.
    """

    anchor = tuple(RULES)

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Ask the operator's own rule."""
        return RULES[node.op_type](node, tape)
