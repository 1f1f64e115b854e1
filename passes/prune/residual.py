"""Where a model adds to a value what it makes of that value: residual blocks, and the layers that they repeat in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import Decline, Shapes
from graphopt.query import attribute, constant_tensor, is_constant, is_op, rank, same_shape

if TYPE_CHECKING:
    from graphopt import PassReport

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
TAILS = (*NORMS, "Relu", "Clip")
"""What belongs to a block where it stands behind the Add, and ``x`` comes from the same."""
DEEPEST = 2
"""``Add(Add(x, f(x)), g(x))`` is one block: so many Adds may lie between x and y."""
LONGEST = 8
"""So many blocks at most make one layer."""
LAID = ("Transpose", "Cast", "DequantizeLinear", "Identity")
"""What weights may pass through on their way."""
SAME = ("Add", "Mul", "Div", "Identity", "Dropout", "Cast", "BatchNormalization", "Relu", "Clip")
"""What leaves the axis of channels where it is."""


@dataclass(frozen=True, eq=False)
class Block:
    """``y = x + f(x)``, with a normalization or an activation behind it that x comes from, too."""

    x: ir.Value
    add: ir.Node
    tail: ir.Node | None
    inside: frozenset[ir.Node]
    """The nodes of f."""
    axis: int
    """The axis of channels in x and y, from the front."""

    @property
    def y(self) -> ir.Value:
        """What it makes."""
        return (self.tail or self.add).outputs[0]

    @property
    def print(self) -> tuple[object, ...]:
        """What two blocks of the same structure have in common."""
        nodes = [*self.inside, self.add, *([self.tail] if self.tail else [])]
        counts = Counter((node.op_type, node.domain, _weights(node)) for node in nodes)
        return tuple(sorted(counts.items(), key=str))


@dataclass(frozen=True, eq=False)
class Unit:
    """Blocks, one behind another, that go together."""

    blocks: tuple[Block, ...]

    @property
    def node(self) -> ir.Node:
        """What makes the result."""
        last = self.blocks[-1]
        return last.tail or last.add

    @property
    def x(self) -> ir.Value:
        """What it gets."""
        return self.blocks[0].x

    @property
    def y(self) -> ir.Value:
        """What it makes."""
        return self.blocks[-1].y

    @property
    def axis(self) -> int:
        """The axis of channels, from the front."""
        return self.blocks[-1].axis

    @property
    def nodes(self) -> set[ir.Node]:
        """All its nodes."""
        found = {node for block in self.blocks for node in (*block.inside, block.add)}
        return found | {block.tail for block in self.blocks if block.tail is not None}


def blocks(model: ir.Model, shapes: Shapes, report: PassReport) -> list[Block]:
    """Return the residual blocks of the main graph, in its order; of other sums the report says why they are none."""
    at = {node: i for i, node in enumerate(model.graph)}
    found = []
    for node in at:
        shapes.infer(node)
    for node in at:
        if not is_op(node, "Add") or any(is_constant(value) for value in node.inputs):
            continue
        if node.outputs[0].dtype not in FLOATS:
            continue
        try:
            found.append(_block(node, at))
        except Decline as reason:
            report.decline(node, str(reason))
    return found


def _block(add: ir.Node, at: Mapping[ir.Node, int]) -> Block:
    """Return the block that ``add`` ends."""
    reasons: list[str] = []
    for x in _skipped(add):
        try:
            inside = _inside(x, add, at)
            if inside is not None:
                return Block(x, add, _tail(add, x), inside, _channels(x, add, inside))
        except Decline as reason:
            reasons.append(str(reason))
    raise Decline(reasons[0] if reasons else "none of its operands is made from the other")


def _skipped(add: ir.Node) -> Iterator[ir.Value]:
    """Yield what x may be: the operands, then those of an Add that makes an operand."""
    level = [add]
    for _ in range(DEEPEST):
        values = [v for node in level for v in node.inputs if v is not None and not is_constant(v)]
        yield from values
        level = [made for value in values if is_op(made := value.producer(), "Add") and made is not None]


def _inside(x: ir.Value, add: ir.Node, at: Mapping[ir.Node, int]) -> frozenset[ir.Node] | None:
    """Return the nodes between ``x`` and ``add``; ``None`` where not all that is added to x is made from it.

    Raises:
        Decline: they are not there for that sum alone.
    """
    inside = _between(x, add, at)
    if any(value is not x and (value is None or value.producer() not in inside) for value in add.inputs):
        return None
    if all(is_op(node, "Add", "Identity") for node in inside):
        return None
    if not any(_weights(node) for node in inside):
        raise Decline(f"what it adds to {x.name} has no weights")
    for value in (value for node in inside for value in node.outputs):
        if value.is_graph_output():
            raise Decline(f"{value.name} is a graph output")
        if any(use.node not in inside and use.node is not add for use in value.uses()):
            raise Decline(f"{value.name} is used elsewhere")
    if not same_shape(x, add.outputs[0]):
        raise Decline(f"{x.name} and {add.outputs[0].name} are not known to have the same shape")
    return frozenset(inside)


def _between(x: ir.Value, add: ir.Node, at: Mapping[ir.Node, int]) -> set[ir.Node]:
    """Return the nodes that are made from x, other than from its shape alone, and that ``add`` is made from."""
    maker = x.producer()
    first = at[maker] if maker is not None else -1
    behind, waiting = set(), [add]
    while waiting:
        for value in waiting.pop().inputs:
            node = value.producer() if value is not None and value is not x else None
            if node is not None and node not in behind and at.get(node, -1) > first:
                behind.add(node)
                waiting.append(node)
    inside: set[ir.Node] = set()
    for node in sorted(behind, key=at.__getitem__):
        shape_of_x = is_op(node, "Shape", "Size") and node.inputs[0] is x
        if not shape_of_x and any(v is x or (v is not None and v.producer() in inside) for v in node.inputs):
            inside.add(node)
    return inside


def _tail(add: ir.Node, x: ir.Value) -> ir.Node | None:
    """Return the node behind the sum that makes it what x is."""
    total, before = add.outputs[0], x.producer()
    while before is not None and is_op(before, "Identity", "Dropout") and before.inputs[0] is not None:
        before = before.inputs[0].producer()
    uses = total.uses()
    if len(uses) != 1 or total.is_graph_output() or before is None:
        return None
    (use,) = uses
    node = use.node
    if use.idx != 0 or node.graph is not add.graph or not is_op(node, *TAILS):
        return None
    alike = node.op_type == before.op_type and attribute(node, "axis", -1) == attribute(before, "axis", -1)
    return node if alike and same_shape(node.outputs[0], x) else None


def _weights(node: ir.Node) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the matrices, kernels and the like that a node reads."""
    found = []
    for value in node.inputs:
        while value is not None and (made := value.producer()) is not None and is_op(made, *LAID):
            value = made.inputs[0]
        tensor = constant_tensor(value)
        if tensor is not None and len(tensor.shape) > 1 and tensor.size > max(tensor.shape.numpy()):
            found.append(tuple(tensor.shape.numpy()))
    return tuple(found)


def _channels(x: ir.Value, add: ir.Node, inside: frozenset[ir.Node]) -> int:
    """Return the axis that x is normalized along, or along which the last product of the block makes channels."""
    size = rank(x)
    if any(is_op(use.node, *NORMS) for use in (*x.uses(), *add.outputs[0].uses())):
        return size - 1
    node: ir.Node | None = add
    axes = list(range(size))
    while node is not None:
        if is_op(node, "Conv", "ConvTranspose"):
            return axes.index(1)
        if is_op(node, "MatMul", "Gemm"):
            return axes.index(size - 1)
        if is_op(node, "Transpose"):
            perm = attribute(node, "perm", list(reversed(range(size))))
            axes = [perm[axis] for axis in axes]
        elif not is_op(node, *SAME):
            break
        node = next((v.producer() for v in node.inputs if v is not None and v.producer() in inside), None)
    return 1 if size > 3 else size - 1


# --- layers -----------------------------------------------------------------------------------------------------------


def chains(found: Sequence[Block]) -> list[list[Block]]:
    """Return the blocks in chains, in which each gets what the one before makes; the outer ones of nested blocks."""
    widest: dict[ir.Value, Block] = {}
    for block in found:
        if block.x not in widest or len(block.inside) > len(widest[block.x].inside):
            widest[block.x] = block
    made = {block.y for block in widest.values()}
    heads = [block for block in widest.values() if block.x not in made]
    result = []
    for block in heads:
        chain = [block]
        while (after := widest.get(chain[-1].y)) is not None:
            chain.append(after)
        result.append(chain)
    listed = {block for chain in result for block in chain}
    return result + [[block] for block in found if block not in listed]


def layers(chain: Sequence[Block]) -> list[Unit]:
    """Return the layers of a chain: as many blocks as repeat, at least twice, over the longest part of it."""
    prints = [block.print for block in chain]
    best = range(0)
    for period in range(1, min(LONGEST, len(chain) // 2) + 1):
        for start in range(len(chain) - 2 * period + 1):
            end = start + period
            while end < len(chain) and prints[end] == prints[end - period]:
                end += 1
            starts = range(start, end - period + 1, period)
            if len(starts) > 1 and len(starts) * period > len(best) * best.step:
                best = starts
    return [Unit(tuple(chain[i : i + best.step])) for i in best]
