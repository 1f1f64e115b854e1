"""Make one Swish of a product with a Sigmoid."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt import Tape

from ..fusion import MICROSOFT, Fusion
from .formula import PRODUCT, Formula, equal, gated


class FuseSwish(Fusion):
    """Replace ``x * sigmoid(alpha * x)`` by ``Swish(x)``, or by onnxruntime's ``QuickGelu(x)``.

    ::

        x sigmoid(alpha x)  ->  QuickGelu(x, alpha)    on onnxruntime: one pass over memory instead of two or three
                                Swish(x, alpha)        from opset 24 on, where the target has it

    Exact up to rounding: both are defined as that product. Source: ONNX Swish-24 (y = x * sigmoid(alpha * x));
    onnxruntime's com.microsoft QuickGelu, version 1 (the same, alpha 1.702 by default).
    """

    family: ClassVar[str] = "activations"
    anchor = ("Mul", "Div")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the Swish of what ``node`` multiplies with its own Sigmoid."""
        for x, gate in gated(node, "Sigmoid"):
            formula = Formula(x, gate.outputs[0])
            product, inner = formula.of(node.outputs[0]), formula.of(gate.inputs[0])
            if equal(product, PRODUCT, x.dtype) and inner is not None and inner.keys() == {(1, 0)}:
                formula.check(node, gate)
                return swish(self, x, inner[1, 0], tape)
        return None


def swish(fusion: Fusion, x: ir.Value, alpha: float, tape: Tape) -> ir.Value:
    """Return ``x * sigmoid(alpha * x)`` as one operator."""
    if fusion.may(tape, "Swish", x.dtype, since=24):
        return tape.op("Swish", [x], {"alpha": float(alpha)} if alpha != 1 else {})
    if fusion.may(tape, "QuickGelu", x.dtype, MICROSOFT):
        return tape.op("QuickGelu", [x], {"alpha": float(alpha)}, domain=MICROSOFT)
    raise fusion.refusal(tape, "Swish", x.dtype, 24)
