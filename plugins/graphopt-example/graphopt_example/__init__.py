"""An example plugin: one pass."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import Decline, Pass, Rewrite, Tape, hookimpl
from graphopt.query import attribute, constant, optional


class ClipToRelu(Rewrite):
    """Replace ``Clip(x, 0)`` by ``Relu(x)``.

    Exact. Source: ONNX Clip-13, y = min(max(x, min), max) with no upper bound; Relu-14, y = max(0, x).
    """

    anchor = "Clip"

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value:
        """Return the Relu."""
        low, high = optional(node, 1), optional(node, 2)
        if high is not None or attribute(node, "max") is not None:
            raise Decline("it has an upper bound")
        minimum = constant(low) if low is not None else attribute(node, "min")
        if minimum != 0:
            raise Decline(f"its lower bound is {minimum}")
        return tape.op("Relu", [node.inputs[0]])


@hookimpl
def register_passes() -> list[type[Pass]]:
    """Offer the pass."""
    return [ClipToRelu]
