"""Operators that give elements another shape, and those that read or make shapes."""

from __future__ import annotations

import onnx_ir as ir

from ....interfaces import place
from ....query import attribute, ints, is_constant, optional
from ..atoms import Labels, never
from ..edits import Length
from ..flow import Flow, Refuse, Rule, prod


def reshape(node: ir.Node, flow: Flow) -> None:
    """Reshape-21, Flatten-21, Squeeze-21, Unsqueeze-21: axes are merged and divided in row-major order."""
    x = flow.of(node.inputs[0])
    shape = flow.shape(node.outputs[0])
    made: list[Labels] = []
    for before, after in _blocks([len(labels) for labels in x], shape):
        whole = flow.atoms.merge([x[i] for i in before]) if before else never(1)
        made += flow.atoms.grid(whole, [shape[i] for i in after]) if after else []
    flow.give(node.outputs[0], made)
    if node.op_type == "Reshape":
        for position, labels in enumerate(made):
            flow.edit(Length(node, 1, position, labels))


def _blocks(a: list[int], b: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return which axes become which: the finest blocks of equal products."""
    if prod(a) != prod(b) or 0 in a:
        raise Refuse("it changes the number of elements")
    blocks, i, j = [], 0, 0
    while i < len(a) or j < len(b):
        first, second = i, j
        m = n = 1
        if i < len(a):
            m, i = a[i], i + 1
        if j < len(b):
            n, j = b[j], j + 1
        while m != n:
            if m < n:
                m, i = m * a[i], i + 1
            else:
                n, j = n * b[j], j + 1
        blocks.append((list(range(first, i)), list(range(second, j))))
    return blocks


def expand(node: ir.Node, flow: Flow) -> None:
    """Expand-13: axes that keep their size pass; copies along others may be as many as is asked for."""
    x, shape = flow.of(node.inputs[0]), flow.shape(node.outputs[0])
    x = [never(1)] * (len(shape) - len(x)) + x
    made = [labels if len(labels) == n else flow.atoms.fresh(n) for labels, n in zip(x, shape, strict=True)]
    length = flow.shape(node.inputs[1])[0]
    for position, labels in enumerate(made[len(made) - length :]):
        flow.edit(Length(node, 1, position, labels))
    flow.give(node.outputs[0], made)


def shape_of(node: ir.Node, flow: Flow) -> None:
    """Shape-21, Size-21: sizes of channels may be read to make shapes of, and nothing else."""
    x = flow.of(node.inputs[0])
    read = x if node.op_type == "Size" else x[attribute(node, "start", 0) : attribute(node, "end", len(x))]
    sizes = node.outputs[0]
    if sizes.is_graph_output():
        raise Refuse("its sizes are an output of the model")
    for use in sizes.uses():
        picked = list(range(len(read)))
        if use.node.op_type == "Gather" and use.idx == 0 and is_constant(use.node.inputs[1]):
            picked = ints(use.node.inputs[1])
        if (use.node.op_type, use.idx) not in SHAPES and not _makes_shapes(use.node):
            for labels in [read[i] for i in picked]:
                flow.freeze(
                    labels, f"{node.op_type} {place(node)} reads how many there are; simplify goes before"
                )
    flow.give(node.outputs[0], [never(n) for n in flow.shape(node.outputs[0])])


def _makes_shapes(node: ir.Node) -> bool:
    """Return whether all that ``node`` makes of sizes are shapes, whose sizes of channels are written anew."""
    seen, waiting = {node}, [node]
    while waiting:
        node = waiting.pop()
        if node.op_type not in ARITHMETIC or any(value.is_graph_output() for value in node.outputs):
            return False
        uses = [use for value in node.outputs for use in value.uses()]
        fresh = {use.node for use in uses if (use.node.op_type, use.idx) not in SHAPES} - seen
        seen |= fresh
        waiting += fresh
    return True


def filled(node: ir.Node, flow: Flow) -> None:
    """ConstantOfShape-24: it may be as large as is asked for."""
    made = [flow.atoms.fresh(n) if n > 1 else never(n) for n in flow.shape(node.outputs[0])]
    for position, labels in enumerate(made):
        flow.edit(Length(node, 0, position, labels))
    flow.give(node.outputs[0], made)


def no_channels(node: ir.Node, flow: Flow) -> None:
    """Range-11, RandomNormal-22: nothing that is cut."""
    for value in node.outputs:
        flow.give(value, [never(n) for n in flow.shape(value)])


def constant_node(node: ir.Node, flow: Flow) -> None:
    """Constant-24: as an initializer."""
    if optional(node, 0) is None:
        flow.of(node.outputs[0])


SHAPES = {("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0)}
"""Inputs that are shapes."""
ARITHMETIC = "Gather Slice Concat Squeeze Unsqueeze Identity Cast Equal Where Mul Div Add Sub Reshape".split()
"""What makes shapes of sizes."""
RULES: dict[tuple[str, str], Rule] = {
    ("", op): reshape for op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
}
RULES |= {("", op): shape_of for op in ("Shape", "Size")}
RULES |= {("", op): no_channels for op in ("Range", "RandomNormal", "RandomUniform")}
RULES |= {("", "ConstantOfShape"): filled, ("", "Expand"): expand, ("", "Constant"): constant_node}
