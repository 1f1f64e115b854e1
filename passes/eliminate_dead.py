"""Remove what no output depends on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import Pass, PassReport, all_graphs, sweep
from graphopt.query import is_op, nodes_in, subgraphs

if TYPE_CHECKING:
    from graphopt.context import Context

OPTIONAL_OUTPUTS = (
    "Dropout",
    "GRU",
    "LSTM",
    "LayerNormalization",
    "MaxPool",
    "RNN",
    "SoftmaxCrossEntropyLoss",
    "Unique",
)
"""Operators that compute the same without those of their last outputs that nothing reads."""


class EliminateDead(Pass):
    """Remove nodes, outputs, constants, functions and opset imports that no output of the model depends on.

    A node goes with everything that only it kept alive, random nodes too. Of operators that may leave their last
    outputs out (the mask of Dropout, the indices of MaxPool, …), those that nothing reads are left out. Inputs and
    outputs of the model stay as they are, and so do initializers that are inputs: a caller may set them.

    Exact: nothing that is left computes anything else. Source: ONNX IR, "Graphs" (an operator has no effect besides
    its outputs) and "Functions"; MaxPool-8, Dropout-12, LayerNormalization-17, LSTM-14 for outputs that are optional.
    """

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Sweep each graph from its end, then what the graphs stand on."""
        report = PassReport()
        for graph in _roots(model):
            _sweep_nodes(graph, report, context)
        for graph in all_graphs(model):
            _drop_initializers(graph, report, context)
        _drop_functions(model, report, context)
        for graph in _roots(model):
            keep = (
                {function.domain for function in model.functions.values()} if graph is model.graph else set()
            )
            _drop_opsets(graph, keep, report, context)
        return report


def _roots(model: ir.Model) -> Iterable[ir.Graph]:
    return (*(function.graph for function in model.functions.values()), model.graph)


def _sweep_nodes(graph: ir.Graph, report: PassReport, context: Context) -> None:
    for node in reversed(graph):
        if not any(_alive(value) for value in node.outputs):
            if context.admit(report, node, "nothing reads it"):
                sweep(node)
            continue
        _drop_outputs(node, report, context)
        for inner in subgraphs(node):
            _sweep_nodes(inner, report, context)


def _alive(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _drop_outputs(node: ir.Node, report: PassReport, context: Context) -> None:
    """Leave out the last outputs of ``node`` where nothing reads them and its operator allows it."""
    count = len(node.outputs)
    while not _alive(node.outputs[count - 1]):
        count -= 1
    if count == len(node.outputs) or node.domain != "":
        return
    if is_op(node, "BatchNormalization"):
        report.decline(node, "how many outputs it has says whether it trains")
    elif is_op(node, *OPTIONAL_OUTPUTS):
        spare = ", ".join(value.name or "" for value in node.outputs[count:] if value.name)
        if not spare or context.admit(report, node, f"nothing reads {spare}"):
            node.resize_outputs(count)


def _drop_initializers(graph: ir.Graph, report: PassReport, context: Context) -> None:
    for name, value in list(graph.initializers.items()):
        if _alive(value) or value.is_graph_input():
            continue
        if context.admit(report, value, "nothing reads it"):
            del graph.initializers[name]


def _drop_functions(model: ir.Model, report: PassReport, context: Context) -> None:
    called: set[ir.OperatorIdentifier] = set()
    stack: list[ir.Graph] = [model.graph]
    while stack:
        for node in nodes_in(stack.pop()):
            key = node.op_identifier()
            if key in model.functions and key not in called:
                called.add(key)
                stack.append(model.functions[key].graph)
    for key in [key for key in model.functions if key not in called]:
        if context.admit(report, spell(key), "nothing calls it"):
            del model.functions[key]


def spell(key: ir.OperatorIdentifier) -> str:
    """Return ``domain::name:overload`` without the parts that are empty."""
    domain, name, overload = key
    return "::".join(filter(None, (domain, name))) + (f":{overload}" if overload else "")


def _drop_opsets(graph: ir.Graph, keep: set[str], report: PassReport, context: Context) -> None:
    """Drop imports of domains that no node of ``graph`` is of; that of the ONNX operators stays."""
    used = {"", *keep, *(node.domain for node in nodes_in(graph))}
    for domain in [domain for domain in graph.opset_imports if domain not in used]:
        if context.admit(report, f"opset {domain}", "no node is of it"):
            del graph.opset_imports[domain]
