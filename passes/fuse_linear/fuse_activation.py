"""Let a layer compute the activation after it, and the residual sum between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import attribute, is_op, opset, optional, same_shape, scalar, used_once

from ..fusion import MICROSOFT, check_private

SMALLEST, LARGEST = (float(bound) for bound in (np.finfo(np.float32).min, np.finfo(np.float32).max))

PARAMETERS: dict[str, Sequence[tuple[str, float]]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "HardSwish": (),
    "LeakyRelu": (("alpha", 0.01),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "Elu": (("alpha", 1.0),),
    "Softplus": (),
    "Softsign": (),
    "ThresholdedRelu": (("alpha", 1.0),),
    "Selu": (("alpha", 1.6732631921768188), ("gamma", 1.0507010221481323)),
}
"""Attributes of activations with ONNX's defaults, in the order in which the fused layers take them."""
OF_CONV = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish", "Clip")
OF_GEMM = (
    "Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Elu", "Softplus", "Softsign", "ThresholdedRelu", "Selu"
)  # fmt: skip


class FuseActivation(Rewrite):
    """Replace ``activation(Conv(x, w, b) + z)`` by onnxruntime's ``FusedConv(x, w, b, z)``, and Gemm likewise.

    ::

        activation(Conv(x, w, b))                   ->  FusedConv(x, w, b)      one of Relu, Sigmoid, Tanh, LeakyRelu,
                                                                                HardSigmoid, HardSwish, Clip
        c = Conv(x, w, b);  c * HardSigmoid(c, 1/6, 1/2)    ->  the same, with HardSwish
        activation(Conv(x, w, b) + z)               ->  FusedConv(x, w, b, z)   z of the same shape
        activation(Gemm(a, b, c))                   ->  FusedGemm(a, b, c)      one of Relu, Sigmoid, Tanh, LeakyRelu,
                                                                                HardSigmoid, Elu, Softplus, Softsign,
                                                                                ThresholdedRelu, Selu

    Exact up to rounding. Source: onnxruntime's com.microsoft FusedConv (activation_params: alpha and beta, or the
    bounds of Clip) and FusedGemm (activation_alpha, _beta, _gamma), version 1; ONNX HardSwish-14.
    """

    family: ClassVar[str] = "linear"
    anchor = (*PARAMETERS, "Clip", "Mul")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the layer that activates by itself."""
        if node.op_type == "Mul":
            return _hard_swish(node, tape)
        value = node.inputs[0]
        before = value.producer() if value is not None else None
        if value is None or before is None or before.graph is not node.graph:
            return None
        if is_op(before, "Gemm") and node.op_type in OF_GEMM:
            return _gemm(before, node, tape)
        if node.op_type not in OF_CONV:
            return None
        z = None
        conv: ir.Node | None = before
        if is_op(before, "Add"):
            conv, z = _residual(before)
        if conv is None or not is_op(conv, "Conv"):
            return None
        check_private([conv, before, node], node)
        parameters = _bounds(node) if node.op_type == "Clip" else [value for _, value in _parameters(node)]
        return _conv(conv, z, node.op_type, parameters, tape)


def _residual(add: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """Return the Conv of a sum, and what is added to it."""
    convolutions = [value for value in add.inputs if value is not None and is_op(value.producer(), "Conv")]
    for value in convolutions:
        z = add.inputs[1 if value is add.inputs[0] else 0]
        if z is not value and used_once(value) and same_shape(value, z):
            return value.producer(), z
    if convolutions:
        raise Decline(
            f"{add.outputs[0].name} is no sum of a Conv for it alone and a tensor of the same shape"
        )
    return None, None


def _hard_swish(node: ir.Node, tape: Tape) -> ir.Value | None:
    for c, gate in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        sigmoid, conv = (value.producer() if value is not None else None for value in (gate, c))
        if sigmoid is None or conv is None or not is_op(sigmoid, "HardSigmoid") or not is_op(conv, "Conv"):
            continue
        slope = [value for _, value in _parameters(sigmoid)]
        if sigmoid.inputs[0] is c and np.allclose(slope, (1 / 6, 0.5), 4e-6, 0) and conv.graph is node.graph:
            check_private([conv, sigmoid, node], node)
            return _conv(conv, None, "HardSwish", [], tape)
    return None


def _conv(
    conv: ir.Node, z: ir.Value | None, activation: str, parameters: Sequence[float], tape: Tape
) -> ir.Value:
    if not tape.has("FusedConv", MICROSOFT, conv.outputs[0].dtype):
        raise Decline("the target has no kernel for FusedConv")
    if activation != "Relu" and not tape.has("FusedGemm", MICROSOFT, conv.outputs[0].dtype):
        raise Decline(f"the target's FusedConv has Relu, not {activation}")  # CUDA's, which has no FusedGemm
    inputs = list(conv.inputs)
    if z is not None:
        inputs += [None] * (3 - len(inputs)) + [z]
    attributes: dict[str, Any] = {**conv.attributes, "activation": activation}
    if parameters:
        attributes["activation_params"] = list(parameters)
    return tape.op("FusedConv", inputs, attributes, domain=MICROSOFT)


def _gemm(gemm: ir.Node, node: ir.Node, tape: Tape) -> ir.Value:
    check_private([gemm, node], node)
    if not tape.has("FusedGemm", MICROSOFT, gemm.outputs[0].dtype):
        raise Decline("the target has no kernel for FusedGemm")
    given = {f"activation_{name}": value for name, value in _parameters(node)}
    attributes: dict[str, Any] = {**gemm.attributes, "activation": node.op_type, **given}
    return tape.op("FusedGemm", list(gemm.inputs), attributes, domain=MICROSOFT)


def _parameters(node: ir.Node) -> list[tuple[str, float]]:
    return [(name, float(attribute(node, name, default))) for name, default in PARAMETERS[node.op_type]]


def _bounds(clip: ir.Node) -> list[float]:
    """Return the bounds of a Clip.

    Raises:
        Decline: a run computes them.
    """
    if opset(clip) < 11:
        return [attribute(clip, "min", SMALLEST), attribute(clip, "max", LARGEST)]
    bounds = []
    for i, default in ((1, SMALLEST), (2, LARGEST)):
        bound = optional(clip, i)
        number = scalar(bound) if bound is not None else default
        if number is None:
            raise Decline(f"{bound.name if bound is not None else 'a bound'} is not a constant")
        bounds.append(float(number))
    return bounds
