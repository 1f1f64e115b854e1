"""Compute what is computed twice once."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt import Names, Pass, PassReport, Tape, is_random, op_info, substitute
from graphopt.query import has_subgraphs, is_op, nodes_in, subgraphs

if TYPE_CHECKING:
    from graphopt.context import Context

    Scope = ChainMap[Hashable, ir.Node]


class EliminateCommon(Pass):
    """Let nodes that do the same with the same inputs be one: ``f(x), f(x)`` becomes ``a = f(x); a, a``.

    Two nodes are the same where operator, attributes, inputs (of commutative operators in any order) and number of
    outputs are, and the first is computed wherever the second is: before it in the same graph, or in a graph around
    it. One sweep numbers the values. Nodes that are random or carry a graph stay; Constant nodes are the business of
    ``deduplicate-constants``. A second output of the model keeps its name behind an Identity.

    Exact. Source: ONNX IR, "Graphs": a node's outputs depend on its operator, attributes and inputs alone; subgraphs
    see the values of the graphs around them.
    """

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Number the values of each graph, and of the graphs in it, in one sweep."""
        sweep = _Sweep(model, context)
        for graph in (*(function.graph for function in model.functions.values()), model.graph):
            sweep.graph(graph, ChainMap())
        return sweep.report


class _Sweep:
    def __init__(self, model: ir.Model, context: Context) -> None:
        self.names = Names(model)
        self.context = context
        self.report = PassReport()
        self.random = _random_functions(model)

    def graph(self, graph: ir.Graph, scope: Scope) -> None:
        for node in graph:
            self._node(node, scope)
            for inner in subgraphs(node):
                self.graph(inner, scope.new_child())

    def _node(self, node: ir.Node, scope: Scope) -> None:
        if is_op(node, "Constant", "Identity"):
            return
        key = _key(node)
        first = scope.get(key)
        if first is None:
            scope[key] = node
        elif is_random(node) or node.op_identifier() in self.random:
            self.report.decline(node, f"it is the same as {first.outputs[0].name} but random")
        elif has_subgraphs(node):
            self.report.decline(
                node, f"it may be the same as {first.outputs[0].name}; graphs are not compared"
            )
        else:
            values = [
                new if old.name != "" else None for old, new in zip(node.outputs, first.outputs, strict=True)
            ]
            substitute(
                node, values, Tape(node, self.context), self.names, self.report, f"= {first.outputs[0].name}"
            )


def _random_functions(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Return the functions that hold a random node, themselves or through one that they call."""
    random: set[ir.OperatorIdentifier] = set()
    found = True
    while found:
        found = False
        for key in model.functions.keys() - random:
            if any(is_random(n) or n.op_identifier() in random for n in nodes_in(model.functions[key].graph)):
                random.add(key)
                found = True
    return random


def _key(node: ir.Node) -> Hashable:
    """Return what nodes that compute the same have in common; values are told apart by identity."""
    inputs: Hashable = tuple(node.inputs)
    if len(node.inputs) == 2 and op_info(node).commutative:
        inputs = frozenset(node.inputs)
    attributes = frozenset(_attribute(attr) for attr in node.attributes.values()) if node.attributes else None
    return (
        node.domain,
        node.op_type,
        node.overload,
        inputs,
        attributes,
        tuple(v.name != "" for v in node.outputs),
    )


def _attribute(attr: ir.Attr) -> Hashable:
    value: Hashable
    if attr.is_ref():
        return attr.name, "of the function", attr.ref_attr_name
    if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        value = None
    elif attr.type == ir.AttributeType.TENSOR:
        value = _tensor(attr.value)
    elif attr.type == ir.AttributeType.TENSORS:
        value = tuple(map(_tensor, attr.value))
    elif attr.type == ir.AttributeType.FLOAT:
        value = _exact(attr.value)
    elif attr.type == ir.AttributeType.FLOATS:
        value = tuple(map(_exact, attr.value))
    elif isinstance(attr.value, Hashable):
        value = attr.value
    else:
        value = tuple(attr.value) if isinstance(attr.value, list) else id(attr.value)
    return attr.name, attr.type, value


def _exact(number: float) -> str:
    """Tell 0.0 from -0.0, and NaN not from NaN."""
    return float(number).hex()


def _tensor(tensor: ir.TensorProtocol) -> Any:
    data = tuple(tensor.string_data()) if isinstance(tensor, ir.StringTensor) else tensor.tobytes()
    return tensor.dtype, tuple(tensor.shape), data
