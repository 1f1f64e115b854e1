"""What a model costs: multiply-accumulates, parameters, bytes; in all and per node. Nothing is executed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from ..interfaces import place
from ..query import all_graphs, all_nodes, constant_tensor, subgraphs
from .macs import Unknown, macs
from .sizes import Sizes, shaped

NOT_WEIGHTS = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING, ir.DataType.UNDEFINED})
"""Types of constants that are no parameters: ONNX asks for int64 where a constant is a shape, axis, index or count."""


@dataclass(frozen=True)
class NodeCost:
    """What one node costs."""

    place: str
    op_type: str
    """With its domain, where that is not ONNX's own: ``com.microsoft::FusedConv``."""
    macs: int | None
    """Multiply-accumulates of all its runs in one run of the model; ``None`` where a shape is not known."""
    parameters: int
    """Elements of its weights: the constants of which it is the reader with the most MACs, or the first of those."""
    weight_bytes: int
    """Bytes of its weights, and of its other constants."""
    output_bytes: int | None
    """Bytes of its outputs, of one run; ``None`` where a shape is not known."""


@dataclass(frozen=True)
class Cost:
    """What a model costs; functions count where they are called, loops as often as they run at most."""

    macs: int
    """Multiply-accumulates of one run; of an ``If`` the dearer branch. A lower bound where ``unknown`` is not empty."""
    parameters: int
    """Elements of all weights, each counted once: constants of other types than int64, bool and string."""
    bytes: int
    """Bytes of all constants."""
    nodes: list[NodeCost]
    """In the order of execution, function calls expanded, a node after the nodes of its subgraphs."""
    unknown: list[str] = field(default_factory=list)
    """Places of nodes that multiply matrices of unknown shapes."""
    assumed: dict[str, int] = field(default_factory=dict)
    """What was taken for dimensions and trip counts that the model leaves open."""

    def by_operator(self) -> dict[str, tuple[int, int, int, int]]:
        """Return (nodes, MACs, parameters, bytes of constants) of each operator, most MACs first."""
        sums: dict[str, list[int]] = {}
        for node in self.nodes:
            row = sums.setdefault(node.op_type, [0, 0, 0, 0])
            for i, value in enumerate((1, node.macs or 0, node.parameters, node.weight_bytes)):
                row[i] += value
        ranked = sorted(sums.items(), key=lambda item: (-item[1][1], -item[1][2], -item[1][0], item[0]))
        return {op: (row[0], row[1], row[2], row[3]) for op, row in ranked}


def cost(model: ir.Model, dims: Mapping[str, int] | None = None) -> Cost:
    """Return what ``model`` costs; it is not changed, and weights are not read.

    Args:
        model: with or without shapes; those that are missing are inferred on a clone.
        dims: sizes of symbolic dimensions of the inputs, as ``{"batch": 8}``; 1 where not given.

    Raises:
        UsageError: ``dims`` names a dimension that the model does not have, or a size is no positive integer.
        ModelError: functions of the model call each other in a circle.
    """
    sizes = Sizes(model, dims or {})
    walk = _Walk(sizes)
    total = 0 if model.functions else walk.graph(model.graph)
    if model.functions or walk.unknown:
        sizes = Sizes(model, dims or {})
        walk = _Walk(sizes)
        total = walk.graph(shaped(model, sizes).graph)
    held = {id(tensor): tensor for tensor in constants(model)}.values()
    return Cost(
        macs=total,
        parameters=sum(map(parameters, held)),
        bytes=sum(tensor.nbytes for tensor in held),
        nodes=walk.rows(),
        unknown=walk.unknown,
        assumed=sizes.assumed,
    )


def constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield the tensors of all initializers and ``Constant`` nodes, those of subgraphs and functions too."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in all_nodes(model):
        if node.op_type == "Constant" and node.domain == "":
            tensor = constant_tensor(node.outputs[0])
            if tensor is not None:
                yield tensor


def parameters(tensor: ir.TensorProtocol) -> int:
    """Return how many parameters ``tensor`` holds: its elements, or none where its type says it is no weight."""
    return 0 if tensor.dtype in NOT_WEIGHTS else tensor.size


def label(node: ir.Node) -> str:
    """Return the operator of ``node`` with its domain, where that is not ONNX's own."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


class _Walk:
    """Adds up a graph, and keeps a row for each node."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.nodes: list[NodeCost] = []
        self.unknown: list[str] = []
        self._owners: dict[int, tuple[int, ir.TensorProtocol]] = {}

    def rows(self) -> list[NodeCost]:
        """Return what each node costs, each constant counted once."""
        held: dict[int, list[ir.TensorProtocol]] = defaultdict(list)
        for row, tensor in self._owners.values():
            held[row].append(tensor)
        return [
            replace(
                node, parameters=sum(map(parameters, own)), weight_bytes=sum(tensor.nbytes for tensor in own)
            )
            if (own := held.get(i))
            else node
            for i, node in enumerate(self.nodes)
        ]

    def graph(self, graph: ir.Graph, runs: int = 1) -> int:
        """Return the MACs of ``runs`` runs of ``graph``."""
        return sum(self._node(node, runs) for node in graph)

    def _node(self, node: ir.Node, runs: int) -> int:
        inner = list(subgraphs(node))
        times = runs * self.sizes.trips(node) if inner else runs
        bodies = [self.graph(body, times) for body in inner]
        own: int | None
        try:
            own = runs * macs(node, self.sizes)
        except Unknown:
            own = None
            self.unknown.append(place(node))
        for tensor in {
            id(t): t for value in node.inputs if (t := constant_tensor(value)) is not None
        }.values():
            owner = self._owners.get(id(tensor))
            if owner is None or (self.nodes[owner[0]].macs or 0) < (own or 0):
                self._owners[id(tensor)] = len(self.nodes), tensor
        self.nodes.append(
            NodeCost(
                place=place(node),
                op_type=label(node),
                macs=own,
                parameters=0,
                weight_bytes=0,
                output_bytes=self._output_bytes(node),
            )
        )
        return (own or 0) + (max(bodies, default=0) if node.op_type == "If" else sum(bodies))

    def _output_bytes(self, node: ir.Node) -> int | None:
        total = 0
        for value in node.outputs:
            try:
                total += -(
                    -math.prod(self.sizes(value)) * (value.dtype or ir.DataType.UNDEFINED).bitwidth // 8
                )
            except (Unknown, TypeError):
                return None
        return total
