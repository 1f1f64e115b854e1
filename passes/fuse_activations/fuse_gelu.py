"""Make one Gelu of the arithmetic that it is written as."""

from __future__ import annotations

import math
from typing import ClassVar

import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import is_op

from ..fusion import MICROSOFT, Fusion
from .formula import PRODUCT, Formula, Polynomial, equal, gated, is_scaled_next, multiple, scaled
from .fuse_swish import swish

HALVES: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
"""x/2 + x*gate/2."""
ROOT = math.sqrt(2 / math.pi)
CUBIC: Polynomial = {(1, 0): ROOT, (3, 0): ROOT * 0.044715}

FORMS: dict[tuple[str, str], tuple[Polynomial, Polynomial]] = {
    ("Erf", "none"): (HALVES, {(1, 0): math.sqrt(0.5)}),
    ("Tanh", "tanh"): (HALVES, CUBIC),
    ("Sigmoid", "tanh"): (PRODUCT, {powers: 2 * c for powers, c in CUBIC.items()}),
    ("Sigmoid", "quick"): (PRODUCT, {(1, 0): 1.702}),
}
"""The gate and what it approximates: what the last node makes of x and the gate, and what the gate reads of x."""


class FuseGelu(Fusion):
    """Replace ``0.5 * x * (1 + erf(x / sqrt(2)))`` by ``Gelu(x)``, and its two approximations likewise.

    ::

        0.5 x (1 + erf(x / sqrt 2))                          ->  Gelu(x)
        0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))      ->  Gelu(x, approximate="tanh")
        x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))           ->  the same
        x sigmoid(1.702 x)                                   ->  QuickGelu(x, alpha=1.702), or Swish

    The arithmetic is read as a polynomial of x and the gate, so its order, grouping and the places of the constants
    do not matter. Where the half is missing, because a layer after it has taken it in, a factor of 2 is left for that
    layer to take in as well. ``Gelu`` is ONNX's from opset 20 on, else onnxruntime's Gelu and FastGelu.

    Exact up to rounding: each form becomes the operator that is defined by it, never another one. Source: ONNX
    Gelu-20, Swish-24 (y = x * sigmoid(alpha * x)); onnxruntime's com.microsoft Gelu, FastGelu and QuickGelu, version 1;
    Hendrycks and Gimpel, arXiv 1606.08415.
    """

    family: ClassVar[str] = "activations"
    anchor = ("Mul", "Div", "Add")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the Gelu of what ``node`` multiplies with a gate."""
        for x, gate in gated(node, "Erf", "Tanh", "Sigmoid"):
            formula = Formula(x, gate.outputs[0])
            product, inner = formula.of(node.outputs[0]), formula.of(gate.inputs[0])
            for (op_type, kind), (wanted, argument) in FORMS.items():
                factor = multiple(product, wanted, x.dtype)
                if factor is None or not is_op(gate, op_type) or not equal(inner, argument, x.dtype):
                    continue
                if factor != 1 and (wanted is PRODUCT or is_scaled_next(node)):
                    continue
                formula.check(node, gate)
                gelu = self._gelu(x, kind, tape)
                return gelu if factor == 1 else scaled(gelu, factor, tape)
            if is_op(gate, "Erf") and equal(product, HALVES, x.dtype):
                raise Decline(f"{gate.outputs[0].name} is not erf({x.name} / sqrt(2))")
        return None

    def _gelu(self, x: ir.Value, kind: str, tape: Tape) -> ir.Value:
        if kind == "quick":
            return swish(self, x, 1.702, tape)
        if self.may(tape, "Gelu", x.dtype, since=20):
            return tape.op("Gelu", [x], {"approximate": "tanh"} if kind == "tanh" else {})
        own = "FastGelu" if kind == "tanh" else "Gelu"
        if self.may(tape, own, x.dtype, MICROSOFT):
            return tape.op(own, [x], domain=MICROSOFT)
        raise self.refusal(tape, "Gelu", x.dtype, 20)
