"""Find for each node of one model the node of another that stands in its place."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from . import origin
from .query import constant_tensor


@dataclass
class Matching:
    """Which nodes of A and B belong together."""

    b_of: dict[ir.Node, ir.Node] = field(default_factory=dict)
    a_of: dict[ir.Node, ir.Node] = field(default_factory=dict)

    def pair(self, a: ir.Node, b: ir.Node) -> bool:
        """Let ``a`` and ``b`` belong together, if they are one operator and neither is taken."""
        if a in self.b_of or b in self.a_of or a.op_identifier() != b.op_identifier():
            return False
        self.b_of[a], self.a_of[b] = b, a
        return True


def match(a: ir.Model, b: ir.Model, nodes_a: Sequence[ir.Node], nodes_b: Sequence[ir.Node]) -> Matching:
    """Return which of ``nodes_a`` and ``nodes_b`` belong together; each step takes what the ones before left.

    By name; by a shared origin; by the names of outputs; by equal cones of computation down to the inputs; by
    being at the same input or output of nodes that already belong together. Time grows with the graphs' size.
    """
    pairs = Matching()
    _alike(pairs, nodes_a, nodes_b, lambda node: node.name or None)
    _by_origin(pairs, nodes_a, nodes_b)
    _alike(pairs, nodes_a, nodes_b, lambda node: next((v.name for v in node.outputs if v.name), None))
    cones: dict[ir.Node, Hashable] = {**_cones(nodes_a), **_cones(nodes_b)}
    _alike(pairs, nodes_a, nodes_b, cones.__getitem__)
    _spread(pairs, a, b)
    return pairs


def _alike(
    pairs: Matching,
    nodes_a: Iterable[ir.Node],
    nodes_b: Iterable[ir.Node],
    key: Callable[[ir.Node], Hashable],
) -> None:
    """Pair nodes of one key in their order, where A and B have equally many of it."""
    groups: dict[Hashable, tuple[list[ir.Node], list[ir.Node]]] = defaultdict(lambda: ([], []))
    for side, nodes, taken in ((0, nodes_a, pairs.b_of), (1, nodes_b, pairs.a_of)):
        for node in nodes:
            if node not in taken and (found := key(node)) is not None:
                groups[found, node.op_identifier()][side].append(node)
    for some, others in groups.values():
        if len(some) == len(others):
            for a, b in zip(some, others, strict=True):
                pairs.pair(a, b)


def _by_origin(pairs: Matching, nodes_a: Iterable[ir.Node], nodes_b: Iterable[ir.Node]) -> None:
    of_origin: dict[Hashable, ir.Node] = {}
    for node in nodes_a:
        if node not in pairs.b_of:
            for name in origin.origins(node):
                of_origin.setdefault((name, node.op_identifier()), node)
    for node in nodes_b:
        for name in origin.origins(node) if node not in pairs.a_of else ():
            if (a := of_origin.get((name, node.op_identifier()))) is not None and pairs.pair(a, node):
                break


def _cones(nodes: Iterable[ir.Node]) -> dict[ir.Node, int]:
    """Return a number for each node that stands for the whole computation which leads to it."""
    found: dict[ir.Node, int] = {}

    def source(value: ir.Value | None) -> Hashable:
        if value is None:
            return None
        tensor = constant_tensor(value)
        if tensor is not None:
            return tensor.dtype, tuple(tensor.shape)
        producer = value.producer()
        return value.name if producer is None else (found.get(producer), value.index())

    for node in nodes:
        settings = tuple(
            (name, attr.type, str(attr.value))
            for name, attr in sorted(node.attributes.items())
            if attr.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR)
        )
        found[node] = hash((node.op_identifier(), settings, tuple(map(source, node.inputs))))
    return found


def _spread(pairs: Matching, a: ir.Model, b: ir.Model) -> None:
    """Go from pairs to what feeds and what reads them."""
    queue = deque(pairs.b_of.items())

    def reach(x: ir.Node | None, y: ir.Node | None) -> None:
        if x is not None and y is not None and pairs.pair(x, y):
            queue.append((x, y))

    def follow(x: ir.Value | None, y: ir.Value | None) -> None:
        if x is not None and y is not None:
            readers_x, readers_y = _readers(x, pairs.b_of), _readers(y, pairs.a_of)
            for key, reader in readers_x.items():
                reach(reader, readers_y.get(key))

    for x, y in zip(a.graph.inputs, b.graph.inputs, strict=False):
        follow(x, y)
    for x, y in zip(a.graph.outputs, b.graph.outputs, strict=False):
        reach(x.producer(), y.producer())
    while queue:
        node_a, node_b = queue.popleft()
        for fed_a, fed_b in zip(node_a.inputs, node_b.inputs, strict=False):
            if fed_a is not None and fed_b is not None:
                reach(fed_a.producer(), fed_b.producer())
        for x, y in zip(node_a.outputs, node_b.outputs, strict=False):
            follow(x, y)


def _readers(value: ir.Value, taken: dict[ir.Node, ir.Node]) -> dict[Hashable, ir.Node | None]:
    """Return the nodes without a partner that read ``value``, by operator and input; ``None`` where two are alike."""
    found: dict[Hashable, ir.Node | None] = {}
    for use in value.uses():
        if use.node not in taken:
            key = (use.node.op_identifier(), use.idx)
            found[key] = None if key in found else use.node
    return found
