"""Which nodes compute in the shorter type: as many as gain by it, with as few casts as can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from graphopt.query import constant_tensor

from .operators import FLOAT, Ports

HEAVY = (
    "Conv",
    "ConvTranspose",
    "MatMul",
    "Gemm",
    "Attention",
    "MultiHeadAttention",
    "FusedMatMul",
    "FusedConv",
)
"""Operators whose time, or whose weights, the shorter type is for."""
LARGE = 4096
"""Numbers in a constant that is worth a node of its own type."""
GAIN, CAST, GRAIN = 1000, 10, 1
"""What a heavy node gains by the shorter type, what a cast costs, what any other node gains."""


def is_heavy(node: ir.Node) -> bool:
    """Return whether ``node`` is worth casts around it."""
    if node.op_type in HEAVY:
        return True
    tensors = (constant_tensor(value) for value in node.inputs)
    return any(t is not None and t.dtype == FLOAT and t.size >= LARGE for t in tensors)


def choose(graph: ir.Graph, able: Mapping[ir.Node, Ports]) -> set[ir.Node]:
    """Return the nodes of ``able`` that are to compute in the shorter type.

    A minimum cut: a node on the short side gains, a value that nodes on both sides touch costs a cast, once for each
    direction. What is not in ``able``, and the inputs and outputs of the graph, are on the float side.
    """
    import networkx

    net = networkx.DiGraph()
    for node in able:
        net.add_edge("short", node, capacity=GAIN if is_heavy(node) else GRAIN)
    for value, makers, readers in _values(graph, able):
        _connect(net, value, makers, readers)
    if "float" not in net:
        return set(able)
    if "short" not in net:
        return set()
    _, (short, _) = networkx.minimum_cut(net, "short", "float")
    return {node for node in able if node in short}


def _connect(net: Any, value: ir.Value, maker: Any, readers: Iterable[Any]) -> None:
    """Let a cast of ``value`` cost once where its maker is short and a reader is not, once where it is the reverse."""
    readers = list(dict.fromkeys(readers))
    if maker is not None:
        longer, shorter = (value, "to float"), (value, "to short")
        net.add_edge(maker, longer, capacity=CAST)
        net.add_edge(shorter, maker, capacity=CAST)
        for reader in readers:
            net.add_edge(longer, reader)
            net.add_edge(reader, shorter)


def _values(graph: ir.Graph, able: Mapping[ir.Node, Ports]) -> Iterable[tuple[ir.Value, Any, list[Any]]]:
    """Yield each float value that is no constant, with the side or node that makes it and those that read it."""
    made = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *made):
        if value.dtype != FLOAT or constant_tensor(value) is not None:
            continue
        node = value.producer()
        own = able.get(node) if node is not None else None
        maker = node if own is not None and value.index() in own.outputs else "float"
        readers = [user if user in able and i in able[user].inputs else "float" for user, i in value.uses()]
        if value.is_graph_output():
            readers.append("float")
        if not (maker == "float" and all(reader == "float" for reader in readers)):
            yield value, maker, readers
