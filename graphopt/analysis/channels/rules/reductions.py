"""Reductions, pools and interpolation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....query import attribute, constant, ints, opset, optional
from ..atoms import never
from ..edits import Length
from ..flow import Flow, Refuse, Rule


def reduce(node: ir.Node, flow: Flow) -> None:
    """ReduceMean-18 and its kin: what they reduce over counts, whatever is left passes."""
    x = flow.of(node.inputs[0])
    given = optional(node, 1)
    axes = ints(given) if given is not None else attribute(node, "axes", [])
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        flow.give(node.outputs[0], x)
        return
    over = {axis % len(x) for axis in axes} or set(range(len(x)))
    flow.counts(node, *(x[axis] for axis in over))
    kept = attribute(node, "keepdims", 1)
    made = [never(1) if i in over else labels for i, labels in enumerate(x) if kept or i not in over]
    flow.give(node.outputs[0], made)


def arg(node: ir.Node, flow: Flow) -> None:
    """ArgMax-13, ArgMin-13: a place along an axis, which stays."""
    x = flow.of(node.inputs[0])
    axis = attribute(node, "axis", 0) % len(x)
    flow.freeze(x[axis], f"{node.op_type} gives places along it")
    kept = attribute(node, "keepdims", 1)
    flow.give(
        node.outputs[0], [never(1) if i == axis else each for i, each in enumerate(x) if kept or i != axis]
    )


def along_axis(node: ir.Node, flow: Flow) -> None:
    """TopK-24, CumSum-14: the axis stays, the others pass."""
    x = flow.of(node.inputs[0])
    axis = (ints(node.inputs[1])[0] if node.op_type == "CumSum" else attribute(node, "axis", -1)) % len(x)
    flow.freeze(x[axis], f"{node.op_type} works along it")
    for value in node.outputs:
        flow.give(value, [*x[:axis], never(flow.shape(value)[axis]), *x[axis + 1 :]])


def pool(node: ir.Node, flow: Flow) -> None:
    """MaxPool-22, AveragePool-22 and the global ones: channel by channel."""
    x = flow.of(node.inputs[0])
    for labels in x[2:]:
        flow.freeze(labels, "a pool slides along it")
    for value in node.outputs:
        if value.name:
            flow.give(value, [*x[:2], *(never(n) for n in flow.shape(value)[2:])])


def resize(node: ir.Node, flow: Flow) -> None:
    """Resize-19, Upsample-9, and GridSample-20: axes that keep their size pass."""
    x, shape = flow.of(node.inputs[0]), flow.shape(node.outputs[0])
    made = []
    for labels, size in zip(x, shape, strict=True):
        if len(labels) == size:
            made.append(labels)
        else:
            flow.freeze(labels, f"{node.op_type} interpolates along it")
            made.append(never(size))
    sizes = optional(node, 3) if node.op_type == "Resize" else None
    if sizes is not None:
        axes = attribute(node, "axes", list(range(len(x))))
        for position, axis in enumerate(axes):
            flow.edit(Length(node, 3, position, made[axis]))
    flow.give(node.outputs[0], made)


def pad(node: ir.Node, flow: Flow) -> None:
    """Pad-21 by constants: what is put on at the ends never goes."""
    x = flow.of(node.inputs[0])
    pads = attribute(node, "pads") if opset(node) < 11 else ints(node.inputs[1])
    axes = optional(node, 3)
    where = ints(axes) if axes is not None else list(range(len(x)))
    mode = attribute(node, "mode", "constant")
    made = list(x)
    for i, axis in enumerate(where):
        before, after = pads[i], pads[i + len(where)]
        if not before and not after:
            continue
        if mode != "constant" or min(before, after) < 0:
            flow.freeze(x[axis], "Pad repeats or cuts what lies along it")
            made[axis] = never(len(x[axis]) + before + after)
        else:
            made[axis] = np.concatenate([never(before), x[axis], never(after)])
    flow.give(node.outputs[0], made)


def tile(node: ir.Node, flow: Flow) -> None:
    """Tile-13 by constants."""
    x, repeats = flow.of(node.inputs[0]), constant(node.inputs[1]).reshape(-1)
    if len(repeats) != len(x):
        raise Refuse("it has not one number for each axis")
    made = []
    for position, (labels, n) in enumerate(zip(x, repeats.tolist(), strict=True)):
        made.append(np.tile(labels, n) if len(labels) > 1 else flow.atoms.fresh(n))
        if len(labels) == 1:
            flow.edit(Length(node, 1, position, made[-1]))
    flow.give(node.outputs[0], made)


REDUCTIONS = "Mean Sum Max Min Prod L1 L2 SumSquare LogSum LogSumExp".split()
RULES: dict[tuple[str, str], Rule] = {("", f"Reduce{op}"): reduce for op in REDUCTIONS}
RULES |= {("", op): arg for op in ("ArgMax", "ArgMin")}
RULES |= {("", op): along_axis for op in ("TopK", "CumSum")}
RULES |= {
    ("", op): pool
    for op in ("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool").split()
}
RULES |= {("", op): resize for op in ("Resize", "Upsample")}
RULES |= {("", "Pad"): pad, ("", "Tile"): tile}
