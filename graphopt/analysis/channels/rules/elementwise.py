"""Operators that work place by place, with broadcasting; and conversions to and from integers."""

from __future__ import annotations

import onnx_ir as ir

from ....ops import BUILT_IN
from ....query import attribute, optional
from ..flow import Flow, Refuse, Rule, broadcast

POLES = {"Div": (1,), "Mod": (1,), "Pow": (0, 1), "Log": (0,), "Reciprocal": (0,), "Acosh": (0,)}
"""Inputs that must not be 0."""


def elementwise(node: ir.Node, flow: Flow) -> None:
    """Tie all operands place by place: Add-14, Where-16, Clip-13 and the like."""
    read = [value for value in node.inputs if value is not None]
    for index in POLES.get(node.op_type, ()):
        flow.nonzero.append((node, index))
    masks = node.op_type == "Where"  # which choose between weights, and are cut like these
    flow.give(node.outputs[0], broadcast(flow, [flow.of(value, weights=masks) for value in read]))


def first_input(node: ir.Node, flow: Flow) -> None:
    """Pass on the axes of the first input: Clip, Dropout, whose other inputs are numbers."""
    for value in node.outputs:
        if value.name:
            flow.give(value, flow.of(node.inputs[0]))


def quantize(node: ir.Node, flow: Flow) -> None:
    """QuantizeLinear-21 and DequantizeLinear-21: scales of one number or one for each place along an axis."""
    x = flow.of(node.inputs[0], weights=True)  # a bias, and its zero point, have 32 bits
    if attribute(node, "block_size", 0):
        raise Refuse("a scale serves a block of places")
    for index in (1, 2):
        value = optional(node, index)
        if value is None:
            continue
        scale = flow.of(value, weights=True)
        if node.op_type == "QuantizeLinear" or index == 2:
            flow.nonzero.append((node, index))
        if len(scale) == 1 and len(scale[0]) > 1:
            flow.tie(x[attribute(node, "axis", 1)], scale[0])
    flow.give(node.outputs[0], x)


def bias_gelu(node: ir.Node, flow: Flow) -> None:
    """The runtime's BiasGelu and FastGelu: x (…, C), bias (C,)."""
    read = [value for value in node.inputs if value is not None]
    flow.give(node.outputs[0], broadcast(flow, [flow.of(value) for value in read]))


RULES: dict[tuple[str, str], Rule] = {key: elementwise for key, info in BUILT_IN.items() if info.elementwise}
RULES |= {("", op): first_input for op in ("Clip", "Dropout", "Cast", "Identity")}
RULES |= {("", op): quantize for op in ("QuantizeLinear", "DequantizeLinear")}
RULES |= {("com.microsoft", op): quantize for op in ("QuantizeLinear", "DequantizeLinear")}
RULES |= {("com.microsoft", op): bias_gelu for op in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")}
