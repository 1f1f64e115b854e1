"""The graph of a model as a networkx graph and as DOT: for algorithms and pictures of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from . import origin
from .dot import to_dot as to_dot
from .interfaces import place
from .query import is_op, subgraphs

if TYPE_CHECKING:
    import networkx


def to_networkx(
    model: ir.Model, *, inputs: bool = True, outputs: bool = True, initializers: bool = False
) -> networkx.MultiDiGraph:
    """Return the main graph of ``model`` with its subgraphs; an edge is a value on its way from maker to reader.

    Keys are the names of nodes and values, with ``#2`` and so on behind one that is taken. Every node has a ``kind``:
    ``node``, ``input``, ``output`` or ``initializer``, as ``Constant`` nodes are called too.

    - A ``node`` has ``op_type``, ``domain``, ``name``, ``scope``, ``attributes`` (without graphs), ``parent`` (the
      key of the node in whose subgraph it is) and ``node``, the ``ir.Node``; the others ``value``, the ``ir.Value``.
    - An edge has ``value`` (a name), ``shape`` (a tuple or ``None``), ``dtype``, positions ``output`` and ``input``.

    What a subgraph returns goes to the node that carries it, so the graph has no circles.
    """
    builder = _Builder(initializers)
    if inputs:
        builder.values(model.graph.inputs, "input")
    builder.descend(model.graph, None)
    if outputs:
        for value in model.graph.outputs:
            builder.connect(value, builder.key(None, value.name or "output", kind="output", value=value), 0)
    graph: networkx.MultiDiGraph = builder.graph
    return graph


class _Builder:
    def __init__(self, initializers: bool) -> None:
        import networkx

        self.graph: Any = networkx.MultiDiGraph()
        self.initializers = initializers
        self.keys: dict[ir.Node | ir.Value, str] = {}

    def key(self, item: ir.Node | ir.Value | None, stem: str, **facts: Any) -> str:
        """Add a node to the graph, and return its key."""
        name, i = stem, 1
        while name in self.graph:
            i += 1
            name = f"{stem}#{i}"
        if item is not None:
            self.keys[item] = name
        self.graph.add_node(name, **facts)
        return name

    def values(self, values: Iterable[ir.Value], kind: str) -> None:
        """Add what has no node that makes it."""
        for value in values:
            if value not in self.keys:
                self.key(value, value.name or kind, kind=kind, value=value)

    def connect(self, value: ir.Value | None, target: str, position: int) -> None:
        """Add the edge on which ``value`` comes to ``target``."""
        if value is None:
            return
        producer = value.producer()
        start = self.keys.get(value) if producer is None else self.keys.get(producer, self.keys.get(value))
        if start is not None:
            made_at = value.index() if producer is not None else None
            self.graph.add_edge(start, target, **_about(value), output=made_at, input=position)

    def descend(self, body: ir.Graph, parent: str | None) -> None:
        """Add a graph and those in it."""
        if self.initializers:
            self.values(body.initializers.values(), "initializer")
        for node in body:
            if not is_op(node, "Constant"):
                self.node(node, parent)
            elif self.initializers:
                self.values(node.outputs, "initializer")

    def node(self, node: ir.Node, parent: str | None) -> None:
        """Add a node with the edges that lead to it."""
        here = self.key(node, place(node), kind="node", parent=parent, **_facts(node))
        for i, value in enumerate(node.inputs):
            self.connect(value, here, i)
        for inner in subgraphs(node):
            self.descend(inner, here)
            for i, value in enumerate(inner.outputs):
                self.connect(value, here, len(node.inputs) + i)


def _facts(node: ir.Node) -> dict[str, Any]:
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return {
        "op_type": node.op_type,
        "domain": node.domain,
        "name": node.name or "",
        "scope": origin.scope(node),
        "attributes": {
            k: a.value for k, a in node.attributes.items() if not a.is_ref() and a.type not in graphs
        },
        "node": node,
    }


def _about(value: ir.Value) -> dict[str, Any]:
    shape = value.shape
    dims = None if shape is None else tuple(d if isinstance(d, int) else d.value for d in shape)
    return {
        "value": value.name,
        "shape": dims,
        "dtype": value.dtype.name if value.dtype is not None else None,
    }
