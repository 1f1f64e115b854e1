"""The float model and the quantized one in one graph: what either makes of the same data, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from graphopt import clone, is_random
from graphopt.query import has_subgraphs, subgraphs

PREFIX = "quantized/"


def pair_name(name: str) -> str:
    """Return the name of the value that holds ``name`` of both models."""
    return f"{name} in both models"


def twin(before: ir.Model, after: ir.Model, names: Iterable[str]) -> ir.Model:
    """Return a model that makes each of the values ``names`` as ``before`` does, beside what ``after`` makes of it.

    The two models have the same nodes, in the same order, and differ in weights. What does not depend on these is
    computed once, what nothing of it depends on is left out.
    """
    merged, other = clone(before), clone(after)
    graph, second = merged.graph, other.graph
    _share_constants(graph, second)
    second.outputs.clear()
    mine, theirs = list(graph), list(second)
    for node in theirs:
        second.remove(node)
    pairs = {value.name: value for node in mine for value in node.outputs}
    for a, b in zip(mine, theirs, strict=True):
        if list(a.inputs) == list(b.inputs) and not has_subgraphs(a) and not is_random(a):
            for one, twin_of_it in zip(a.outputs, b.outputs, strict=True):
                twin_of_it.replace_all_uses_with(one)
            continue
        graph.append(b)
        b.name = f"{PREFIX}{b.name}" if b.name else b.name
        for value in b.outputs:
            value.name = f"{PREFIX}{value.name}" if value.name else value.name
    partners = {
        one.name: b.outputs[i] for a, b in zip(mine, theirs, strict=True) for i, one in enumerate(a.outputs)
    }
    outputs = []
    for name in names:
        one = pairs.get(name) or next(v for v in graph.inputs if v.name == name)
        partner = partners.get(name)
        joined = ir.node("Concat", [one, partner if _kept(partner) else one], {"axis": -1})
        joined.outputs[0].name = pair_name(name)
        joined.outputs[0].type = one.type
        graph.append(joined)
        outputs.append(joined.outputs[0])
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    _cut(graph)
    return merged


def _kept(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.graph is not None


def _share_constants(graph: ir.Graph, second: ir.Graph) -> None:
    """Let the second graph read the inputs of the first, and its constants where they are the same."""
    for one, other in zip(graph.inputs, second.inputs, strict=True):
        other.replace_all_uses_with(one)
    for name, value in list(second.initializers.items()):
        twin_of_it = graph.initializers.get(name)
        if twin_of_it is not None and twin_of_it.const_value is value.const_value:
            value.replace_all_uses_with(twin_of_it)
            continue
        del second.initializers[name]
        value.name = f"{PREFIX}{name}"
        graph.register_initializer(value)


def _cut(graph: ir.Graph) -> None:
    """Remove the nodes that no output depends on."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    used = {value for node in graph for value in _reads([node])}
    for name, value in list(graph.initializers.items()):
        if value not in used:
            del graph.initializers[name]


def _reads(nodes: Sequence[ir.Node]) -> Iterable[ir.Value]:
    for node in nodes:
        yield from (value for value in node.inputs if value is not None)
        for inner in subgraphs(node):
            yield from _reads(list(inner))
