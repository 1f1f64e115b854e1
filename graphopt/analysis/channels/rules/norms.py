"""Normalizations."""

from __future__ import annotations

import onnx_ir as ir

from ....interfaces import place
from ....query import attribute, opset, optional
from ..atoms import never
from ..edits import Count
from ..flow import Flow, Refuse, Rule, broadcast


def per_channel(node: ir.Node, flow: Flow) -> None:
    """BatchNormalization-15, InstanceNormalization-22: x (N, C, …), and vectors (C,)."""
    if attribute(node, "training_mode", 0):
        raise Refuse("it runs in training mode")
    x = flow.of(node.inputs[0])
    for index, value in enumerate(node.inputs[1:], 1):
        flow.vector(value, x[1])
        if index == 4:
            flow.nonzero.append((node, index))
    if node.op_type == "InstanceNormalization":
        flow.counts(node, *x[2:])
    flow.give(node.outputs[0], x)


def per_token(node: ir.Node, flow: Flow) -> None:
    """LayerNormalization-17, RMSNormalization-23 and the runtime's: over the last axes, which scale and bias have."""
    x = flow.of(node.inputs[0])
    skip = node.op_type.startswith("Skip")
    first = len(x) - 1 if skip else attribute(node, "axis", -1) % len(x)
    added = [1, *((3, 4) if node.op_type == "SkipLayerNormalization" else (2, 3))] if skip else []
    if skip:
        scales = [2, 3] if node.op_type == "SkipLayerNormalization" else [2]
        added = [i for i in range(1, len(node.inputs)) if i not in scales]
    else:
        scales = list(range(1, len(node.inputs)))
    for index in (*scales, *added):
        value = optional(node, index)
        if value is not None:
            broadcast(flow, [x, flow.of(value)])
    flow.counts(node, *x[first:])
    flow.give(node.outputs[0], x)
    for i, value in enumerate(node.outputs[1:], 1):
        if value.name:
            flow.give(value, x if skip and i == 3 else [*x[:first], *(never(1) for _ in x[first:])])


def per_group(node: ir.Node, flow: Flow) -> None:
    """GroupNormalization-21: x (N, C, …), scale and bias (C,); the runtime's GroupNorm has channels last."""
    if node.domain == "" and opset(node) < 21:
        raise Refuse("its scale is for groups")
    last = node.domain != "" and attribute(node, "channels_last", 1)
    x = flow.of(node.inputs[0])
    channels = x[-1 if last else 1]
    name = "groups" if node.domain else "num_groups"
    groups = attribute(node, name)
    for value in node.inputs[1:3]:
        flow.vector(value, channels)
    rows, within = flow.atoms.grid(channels, (groups, len(channels) // groups))
    flow.edit(Count(node, name, rows))
    flow.counts(node, within)
    flow.give(node.outputs[0], x)


def over_axis(node: ir.Node, flow: Flow) -> None:
    """LpNormalization-22 and MeanVarianceNormalization-13: over axes that attributes name."""
    x = flow.of(node.inputs[0])
    axes = (
        [attribute(node, "axis", -1)]
        if node.op_type == "LpNormalization"
        else attribute(node, "axes", [0, 2, 3])
    )
    flow.counts(node, *(x[axis] for axis in axes))
    flow.give(node.outputs[0], x)


def softmax(node: ir.Node, flow: Flow) -> None:
    """Softmax-13 over one axis, which stays; before opset 13 over all from ``axis`` on."""
    x = flow.of(node.inputs[0])
    version = node.version or (node.graph.opset_imports.get("", 13) if node.graph is not None else 13)
    axis = attribute(node, "axis", -1 if version >= 13 else 1) % len(x)
    for labels in x[axis:] if version < 13 else [x[axis]]:
        flow.freeze(labels, f"{node.op_type} {place(node)} makes them sum to one")
    flow.give(node.outputs[0], x)


def neighbours(node: ir.Node, flow: Flow) -> None:
    """LRN-13 looks at channels beside each."""
    x = flow.of(node.inputs[0])
    flow.freeze(x[1], "LRN looks at the channels beside each")
    flow.give(node.outputs[0], x)


RULES: dict[tuple[str, str], Rule] = {
    ("", "BatchNormalization"): per_channel,
    ("", "InstanceNormalization"): per_channel,
    ("", "LayerNormalization"): per_token,
    ("", "RMSNormalization"): per_token,
    ("", "SimplifiedLayerNormalization"): per_token,
    ("com.microsoft", "SimplifiedLayerNormalization"): per_token,
    ("com.microsoft", "SkipLayerNormalization"): per_token,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): per_token,
    ("", "GroupNormalization"): per_group,
    ("com.microsoft", "GroupNorm"): per_group,
    ("", "LpNormalization"): over_axis,
    ("", "MeanVarianceNormalization"): over_axis,
    ("", "Softmax"): softmax,
    ("", "LogSoftmax"): softmax,
    ("", "Hardmax"): softmax,
    ("", "LRN"): neighbours,
}
