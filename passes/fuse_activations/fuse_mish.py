"""Make one Mish of the operators that it is written as."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt import Tape
from graphopt.query import is_op

from ..fusion import Fusion
from .formula import PRODUCT, Formula, equal, gated


class FuseMish(Fusion):
    """Replace ``x * tanh(softplus(x))`` by ``Mish(x)``.

    Exact up to rounding. Source: ONNX Mish-18, mish(x) = x * tanh(ln(1 + e^x)), Softplus-1, ln(1 + e^x).
    """

    family: ClassVar[str] = "activations"
    anchor = "Mul"

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the Mish of what ``node`` multiplies with its gate."""
        for x, gate in gated(node, "Tanh"):
            argument = gate.inputs[0]
            softplus = argument.producer() if argument is not None else None
            formula = Formula(x, gate.outputs[0])
            if not is_op(softplus, "Softplus") or not equal(formula.of(node.outputs[0]), PRODUCT, x.dtype):
                continue
            assert softplus is not None, "is_op() found it"
            if softplus.inputs[0] is x:
                formula.check(node, gate, softplus)
                if not self.may(tape, "Mish", x.dtype, since=18):
                    raise self.refusal(tape, "Mish", x.dtype, 18)
                return tape.op("Mish", [x])
        return None
