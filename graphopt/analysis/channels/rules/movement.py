"""Operators that pick, join and reorder places along axes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from ....interfaces import place
from ....query import attribute, constant, constant_tensor, ints, is_constant, opset, optional
from ..atoms import never
from ..edits import Bound, Counts, Indices, Lengths
from ..flow import Flow, Refuse, Rule


def concat(node: ir.Node, flow: Flow) -> None:
    """Concat-13: other axes go together."""
    read = [flow.of(value) for value in node.inputs]
    axis = attribute(node, "axis") % len(read[0])
    for other in read[1:]:
        for i, (a, b) in enumerate(zip(read[0], other, strict=True)):
            if i != axis:
                flow.tie(a, b)
    made = list(read[0])
    made[axis] = np.concatenate([each[axis] for each in read])
    flow.give(node.outputs[0], made)


def split(node: ir.Node, flow: Flow) -> None:
    """Split-18: each part has its own places."""
    x = flow.of(node.inputs[0])
    axis = attribute(node, "axis", 0) % len(x)
    ends = list(itertools.accumulate(flow.shape(value)[axis] for value in node.outputs))
    parts = [x[axis][begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    if flow.may_go(x[axis]):
        if opset(node) < 13:
            flow.edit(Counts(node, "split", tuple(parts)))
        elif optional(node, 1) is not None and not is_constant(node.inputs[1]):
            raise Refuse("its parts are computed")
        else:
            flow.edit(Lengths(node, 1, tuple(parts)))
    for value, part in zip(node.outputs, parts, strict=True):
        flow.give(value, [*x[:axis], part, *x[axis + 1 :]])


def slice_(node: ir.Node, flow: Flow) -> None:
    """Slice-13 by constants along axes of channels."""
    x = flow.of(node.inputs[0])
    if opset(node) < 10:
        raise Refuse("its bounds are attributes; raise the opset first")
    begins, ends = constant_tensor(node.inputs[1]), constant_tensor(node.inputs[2])
    axes = (
        ints(node.inputs[3]) if optional(node, 3) is not None else list(range(flow.shape(node.inputs[1])[0]))
    )
    steps = ints(node.inputs[4]) if optional(node, 4) is not None else [1] * len(axes)
    shape = flow.shape(node.outputs[0])
    made = list(x)
    for i, axis in enumerate(axes):
        labels = x[axis]
        if not flow.may_go(labels):
            made[axis] = never(shape[axis])
            continue
        if begins is None or ends is None:
            raise Refuse("its bounds are computed")
        begin, end = int(begins.numpy()[i]), int(ends.numpy()[i])
        if steps[i] != 1:
            flow.freeze(labels, "Slice takes every n-th")
            made[axis] = never(shape[axis])
            continue
        flow.edit(Bound(node, 1, i, labels))
        flow.edit(Bound(node, 2, i, labels))
        made[axis] = labels[begin:end]
    flow.give(node.outputs[0], made)


def gather(node: ir.Node, flow: Flow) -> None:
    """Gather-13: by constants along channels, or rows of a table by what comes in."""
    x, picked = flow.of(node.inputs[0]), flow.shape(node.inputs[1])
    axis = attribute(node, "axis", 0) % len(x)
    labels = x[axis]
    made = [never(n) for n in picked]
    if is_constant(node.inputs[1]) and flow.may_go(labels):
        chosen = labels[constant(node.inputs[1]).reshape(-1)]
        if picked:
            made = flow.atoms.grid(chosen, picked)
        else:
            flow.freeze(chosen, f"Gather {place(node)} picks it")
        flow.edit(Indices(node, 1, labels, tuple(made)))
    else:
        flow.freeze(labels, "Gather picks what lies along it")
    if is_constant(node.inputs[0]):
        for own in x[:axis] + x[axis + 1 :]:
            flow.source(node, own)
    flow.give(node.outputs[0], [*x[:axis], *made, *x[axis + 1 :]])


def transpose(node: ir.Node, flow: Flow) -> None:
    """Transpose-13."""
    x = flow.of(node.inputs[0])
    order = attribute(node, "perm", list(range(len(x)))[::-1])
    flow.give(node.outputs[0], [x[axis] for axis in order])


def depth_to_space(node: ir.Node, flow: Flow) -> None:
    """DepthToSpace-13: C·b² channels make C; those of one place in space go together."""
    x, b = flow.of(node.inputs[0]), attribute(node, "blocksize")
    count = len(x[1]) // (b * b)
    order = (count, b * b) if attribute(node, "mode", "DCR") == "CRD" else (b * b, count)
    axes = flow.atoms.grid(x[1], order)
    space, channels = axes[::-1] if order[0] == count else axes
    flow.freeze(space, "DepthToSpace lays them out in space")
    flow.give(node.outputs[0], [x[0], channels, *(never(len(labels) * b) for labels in x[2:])])


def space_to_depth(node: ir.Node, flow: Flow) -> None:
    """SpaceToDepth-13: channel c makes b², at c, C + c, 2C + c, …"""
    x, b = flow.of(node.inputs[0]), attribute(node, "blocksize")
    for labels in x[2:]:
        flow.freeze(labels, "SpaceToDepth takes it apart")
    flow.give(node.outputs[0], [x[0], np.tile(x[1], b * b), *(never(len(labels) // b) for labels in x[2:])])


RULES: dict[tuple[str, str], Rule] = {
    ("", "Concat"): concat,
    ("", "Split"): split,
    ("", "Slice"): slice_,
    ("", "Gather"): gather,
    ("", "Transpose"): transpose,
    ("", "DepthToSpace"): depth_to_space,
    ("", "SpaceToDepth"): space_to_depth,
}
