"""Read around an Expand before an operator that broadcasts by itself."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import is_op, opset

from .broadcasting import Dim, broadcast, is_shape

BROADCASTS = (
    "Add Sub Mul Div Pow Mod And Or Xor BitwiseAnd BitwiseOr BitwiseXor BitShift "
    "Equal Greater GreaterOrEqual Less LessOrEqual Where Min Max Sum Mean"
).split()


class EliminateExpands(Rewrite):
    """Replace ``op(Expand(x, shape), y)`` by ``op(x, y)`` where ``op`` broadcasts ``x`` to the same result.

    ::

        Add(Expand(x, shape), y)          ->  Add(x, y)             and every operator that broadcasts its operands
        Where(c, Expand(x, shape), y)     ->  Where(c, x, y)
        Expand(Expand(x, shape), larger)  ->  Expand(x, larger)
        Tile(x, repeats)                      likewise, where it repeats axes of size 1 only

    Done where the shape of the result is known to be the same without the Expand: the other operands have its sizes,
    or those of ``x`` do. What else reads the Expand keeps it.

    Exact: the same elements meet. Source: ONNX Expand-13, Tile-13 (repeats known), the broadcasting of Add-14.
    """

    anchor = (*BROADCASTS, "Expand")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the operator that reads what was expanded."""
        broadcasting = node.inputs[:1] if node.op_type == "Expand" else node.inputs
        expands = [i for i, value in enumerate(broadcasting) if _expanded(value, tape)]
        if not expands or opset(node) < 7:
            return None
        operands = list(node.inputs)
        for i in expands:
            tried = [*operands[:i], _source(operands[i]), *operands[i + 1 :]]
            if is_shape(broadcast(_shapes(node, tried, tape)), node.outputs[0]):
                operands = tried
        if operands == list(node.inputs):
            value = operands[expands[0]]
            raise Decline(f"its result may be smaller without {value.name if value is not None else ''}")
        return tape.op(node.op_type, operands, node.attributes)


def _shapes(node: ir.Node, operands: Sequence[ir.Value | None], tape: Tape) -> list[Sequence[Dim] | None]:
    """Return the shapes that ``node`` broadcasts against each other."""
    shapes: list[Sequence[Dim] | None] = [
        None if value is None or value.shape is None else list(value.shape) for value in operands
    ]
    return [shapes[0], tape.shapes().contents(operands[1])] if node.op_type == "Expand" else shapes


def _source(value: ir.Value | None) -> ir.Value | None:
    """Return what the Expand or Tile that makes ``value`` reads."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None else None


def _expanded(value: ir.Value | None, tape: Tape) -> bool:
    """Return whether ``value`` is another value, expanded."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "Expand", "Tile"):
        return False
    if node.op_type == "Expand":
        return True
    x = node.inputs[0]
    repeats = tape.shapes().contents(node.inputs[1]) if opset(node) >= 6 else None
    if x is None or x.shape is None or repeats is None or len(repeats) != len(x.shape):
        return False
    return all(repeat == 1 or dim == 1 for dim, repeat in zip(x.shape, repeats, strict=True))
