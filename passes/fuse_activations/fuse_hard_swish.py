"""Make HardSigmoid and HardSwish of the clips that they are written as."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt import Tape
from graphopt.query import attribute, is_constant, is_op, opset, optional, scalar, used_once

from ..fusion import Fusion
from .formula import Formula, close, gated, is_scaled_next, reached, rtol, scaled


class FuseHardSwish(Fusion):
    """Replace ``clip(p * x + q, 0, h) / h`` by ``HardSigmoid(x)``, and its product with ``x`` by ``HardSwish(x)``.

    ::

        k clip(p x + q, 0, h),  k h = 1      ->  HardSigmoid(x, alpha = k p, beta = k q)
        k x clip(p x + q, 0, h),  k h = 1    ->  x * HardSigmoid(x, alpha = k p, beta = k q)
        k x clip(p x + q, 0, h)              ->  the same times k h, which a layer after it can take in
        x HardSigmoid(x, 1/6, 1/2)           ->  HardSwish(x)     from opset 14 on, where the target has it

    Exact up to rounding. Source: ONNX HardSigmoid-6, max(0, min(1, alpha * x + beta)); HardSwish-14,
    x * max(0, min(1, x / 6 + 0.5)); Clip-6 and Clip-11.
    """

    family: ClassVar[str] = "activations"
    anchor = ("Mul", "Div", "Clip")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the HardSigmoid or HardSwish that ends in ``node``."""
        if (sigmoid := self._sigmoid(node, tape)) is not None or is_op(node, "Clip"):
            return sigmoid
        for x, gate in gated(node, "Clip", "HardSigmoid"):
            formula = Formula(x, gate.outputs[0])
            y = formula.of(node.outputs[0])
            if y is None or y.keys() != {(1, 1)}:
                continue
            if is_op(gate, "HardSigmoid"):
                if gate.inputs[0] is x and is_half_of_six(gate, y[1, 1], x):
                    return self._hard_swish(node, formula, gate, tape)
            elif (found := slope_and_offset(formula, gate)) and not is_scaled_next(node):
                alpha, beta, high = found
                formula.check(node, gate)
                product = tape.op("Mul", [x, self._hard_sigmoid(x, alpha, beta, tape)])
                factor = y[1, 1] * high
                return product if close(factor, 1.0, rtol(x.dtype)) else scaled(product, factor, tape)
        return None

    def _sigmoid(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the HardSigmoid for a Clip, or for one times a constant."""
        for value in (node.outputs[0], *node.inputs):
            clip = value.producer() if value is not None else None
            if not is_op(clip, "Clip"):
                continue
            assert value is not None and clip is not None, "is_op() found it"
            k = (Formula(value).of(node.outputs[0]) or {}).get((1,), 0.0)
            for x in reached(clip, 4):
                formula = Formula(x, value)
                found = slope_and_offset(formula, clip)
                if (
                    found is None
                    or not found[1]
                    or is_scaled(x)
                    or not close(k * found[2], 1.0, rtol(x.dtype))
                ):
                    continue
                if formula.of(node.outputs[0]):
                    formula.check(node, clip)
                    return self._hard_sigmoid(x, *found[:2], tape)
        return None

    def _hard_sigmoid(self, x: ir.Value, alpha: float, beta: float, tape: Tape) -> ir.Value:
        if not self.may(tape, "HardSigmoid", x.dtype, since=6):
            raise self.refusal(tape, "HardSigmoid", x.dtype, 6)
        return tape.op("HardSigmoid", [x], {"alpha": alpha, "beta": beta})

    def _hard_swish(self, node: ir.Node, formula: Formula, gate: ir.Node, tape: Tape) -> ir.Value:
        x = formula.atoms[0]
        formula.check(node, gate)
        if not self.may(tape, "HardSwish", x.dtype, since=14):
            raise self.refusal(tape, "HardSwish", x.dtype, 14)
        return tape.op("HardSwish", [x])


def slope_and_offset(formula: Formula, clip: ir.Node) -> tuple[float, float, float] | None:
    """Return alpha, beta and h where ``clip(…, 0, h) / h`` of the formula's first atom is a HardSigmoid of it."""
    x = formula.atoms[0]
    low, high = bounds(clip)
    argument = formula.of(clip.inputs[0]) if low == 0 and high is not None and high > 0 else None
    if argument is None or high is None or x.dtype is None or not x.dtype.is_floating_point():
        return None
    if not argument.keys() <= {(0, 0), (1, 0)} or not argument.get((1, 0)):
        return None
    return argument[1, 0] / high, argument.get((0, 0), 0.0) / high, high


def is_scaled(x: ir.Value) -> bool:
    """Return whether ``x`` is a multiple of something, for nobody but one reader: the slope takes that in."""
    node = x.producer()
    return (
        is_op(node, "Mul", "Div") and used_once(x) and node is not None and any(map(is_constant, node.inputs))
    )


def bounds(clip: ir.Node) -> tuple[float | None, float | None]:
    """Return the constant bounds of a Clip."""
    if opset(clip) < 11:
        return attribute(clip, "min"), attribute(clip, "max")
    low, high = (scalar(optional(clip, i)) for i in (1, 2))
    return low, high


def is_half_of_six(gate: ir.Node, k: float, x: ir.Value) -> bool:
    """Return whether ``k * x * gate`` is ``x * max(0, min(1, x / 6 + 1/2))``."""
    alpha, beta = attribute(gate, "alpha", 0.2), attribute(gate, "beta", 0.5)
    return all(close(a, b, rtol(x.dtype)) for a, b in ((k, 1.0), (alpha, 1 / 6), (beta, 0.5)))
