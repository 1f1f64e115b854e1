"""Put the bodies of functions where they are called."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir
from pydantic import Field

from graphopt import Decline, Names, Pass, PassReport, Tape, substitute
from graphopt.query import nodes_in, subgraphs

if TYPE_CHECKING:
    from graphopt.context import Context


class InlineFunctions(Pass):
    """Replace each call of a function that the model carries by the function's nodes: ``f(x)`` becomes its body.

    Also in subgraphs, and what a body calls in its turn, outermost first. Attributes of the call, else the
    defaults of the function, take the place of references to them; an input that the call leaves out is left out in
    the body. A value ``v`` of the body is named ``<first output of the call>_v``. A function that nothing calls
    afterwards goes.

    Declined: a function that calls itself; one written for another opset than the graph's, where an operator that it
    uses changed between the two; a graph that is passed as an attribute; a call that does not fit the function;
    one that comes to more than ``limit_nodes`` nodes, as functions that call the next one twice do in a small file.

    Exact. Source: ONNX IR, "Functions" (FunctionProto, ``attribute``, ``attribute_proto``, ``overload``).
    """

    limit_nodes: int = Field(
        100_000, ge=0, description="nodes that a call may come to, with all that its function calls"
    )

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Inline into the main graph, then into the functions that are still called."""
        if not model.functions:
            return PassReport()
        inliner = _Inliner(model, context, self.limit_nodes)
        inliner.graph(model.graph, model.opset_imports)
        for key in inliner.kept():
            if key in inliner.recursive:
                continue
            inliner.graph(model.functions[key].graph, model.functions[key].opset_imports)
        inliner.drop_inlined()
        return inliner.report


class _Inliner:
    def __init__(self, model: ir.Model, context: Context, limit_nodes: int) -> None:
        self.model = model
        self.context = context
        self.names = Names(model)
        self.report = PassReport()
        self.limit_nodes = limit_nodes
        self.sizes, self.recursive = _sizes(model)
        self.inlined: set[ir.OperatorIdentifier] = set()

    def graph(self, graph: ir.Graph, opsets: dict[str, int]) -> None:
        """Inline the calls in ``graph`` and the graphs in it; ``opsets`` are those imported around them."""
        stack = list(reversed(graph))
        while stack:
            node = stack.pop()
            for inner in subgraphs(node):
                self.graph(inner, opsets)
            key = node.op_identifier()
            if key in self.model.functions:
                stack += reversed(self._call(node, key, opsets))

    def _call(self, node: ir.Node, key: ir.OperatorIdentifier, opsets: dict[str, int]) -> Sequence[ir.Node]:
        """Inline one call, and return the nodes that it became."""
        function = self.model.functions[key]
        tape = Tape(node, self.context)
        try:
            if key in self.recursive:
                raise Decline(f"{function.name} calls itself")
            if self.sizes[key] > self.limit_nodes:
                raise Decline(
                    f"{function.name} comes to {self.sizes[key]} nodes, more than limit_nodes, {self.limit_nodes}"
                )
            missing = _missing_opsets(function, opsets)
            copier = _Copier(node, function, self.names)
        except Decline as reason:
            self.report.decline(node, str(reason))
            return ()
        for inner in function:
            tape.adopt(copier.node(inner))
        values = [copier.values[value] for value in function.outputs[: len(node.outputs)]]
        made = tuple(tape.nodes)
        if not substitute(node, values, tape, self.names, self.report):
            return ()
        self.inlined.add(key)
        opsets.update(missing)
        return made

    def kept(self) -> Sequence[ir.OperatorIdentifier]:
        """Return the functions that are still called, or were never inlined, in the order of the model."""
        found = set(self.model.functions) - self.inlined
        graphs = [self.model.graph, *(self.model.functions[key].graph for key in found)]
        while graphs:
            called = {node.op_identifier() for node in nodes_in(graphs.pop())}
            fresh = (called & self.model.functions.keys()) - found
            found |= fresh
            graphs += [self.model.functions[key].graph for key in fresh]
        return [key for key in self.model.functions if key in found]

    def drop_inlined(self) -> None:
        """Remove the functions that were inlined wherever they were called."""
        kept = set(self.kept())
        for key in [key for key in self.model.functions if key not in kept]:
            del self.model.functions[key]


def _sizes(model: ir.Model) -> tuple[dict[ir.OperatorIdentifier, int], set[ir.OperatorIdentifier]]:
    """Return how many nodes each function comes to, and apart from them the functions that reach themselves."""
    calls = {
        key: dict.fromkeys(k for node in nodes_in(f.graph) if (k := node.op_identifier()) in model.functions)
        for key, f in model.functions.items()
    }
    recursive: set[ir.OperatorIdentifier] = set()
    while True:
        try:
            graph = {
                key: [c for c in called if c not in recursive]
                for key, called in calls.items()
                if key not in recursive
            }
            order = list(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError as error:
            recursive.update(error.args[1])
        else:
            break
    sizes: dict[ir.OperatorIdentifier, int] = {}
    for key in order:
        called_here = (node.op_identifier() for node in nodes_in(model.functions[key].graph))
        sizes[key] = sum(sizes.get(called, 1) for called in called_here)
    return sizes, recursive


def _missing_opsets(function: ir.Function, opsets: Mapping[str, int]) -> dict[str, int]:
    """Return the imports that the body needs and the graph around the call lacks.

    Raises:
        Decline: the graph imports another version of a domain, in which an operator of the body is not the same.
    """
    missing: dict[str, int] = {}
    for node in nodes_in(function.graph):
        mine = function.opset_imports.get(node.domain)
        theirs = opsets.get(node.domain)
        if mine is None or mine == theirs:
            continue
        if theirs is None:
            missing[node.domain] = mine
        elif not _unchanged(node, mine, theirs):
            raise Decline(
                f"{function.name} is written for opset {mine} and {node.op_type} is not the same in {theirs}"
            )
    return missing


def _unchanged(node: ir.Node, mine: int, theirs: int) -> bool:
    import onnx

    try:
        a, b = (onnx.defs.get_schema(node.op_type, version, node.domain) for version in (mine, theirs))
    except onnx.defs.SchemaError:
        return False
    return a.since_version == b.since_version


class _Copier:
    """Copies the body of a function, with what a call passes to it in the place of its parameters.

    Raises:
        Decline: the call does not fit the function.
    """

    def __init__(self, call: ir.Node, function: ir.Function, names: Names) -> None:
        if len(call.inputs) > len(function.inputs) or len(call.outputs) > len(function.outputs):
            raise Decline(
                f"it has {len(call.inputs)} inputs and {len(call.outputs)} outputs, "
                f"{function.name} {len(function.inputs)} and {len(function.outputs)}"
            )
        self.call = call
        self.names = names
        self.stem = next((value.name for value in call.outputs if value.name), call.op_type)
        self.values: dict[ir.Value, ir.Value | None] = dict.fromkeys(function.inputs)
        self.values.update(zip(function.inputs, call.inputs, strict=False))
        self.attributes = _arguments(call, function)
        for output, value in zip(call.outputs, function.outputs, strict=False):
            if (
                value in self.values
                and self.values[value] is None
                and (output.uses() or output.is_graph_output())
            ):
                raise Decline(f"{function.name} returns its input {value.name}, which the call leaves out")

    def node(self, node: ir.Node, *, nested: bool = False) -> ir.Node:
        """Return a copy of ``node``; the names of values in a subgraph are settled at once."""
        inputs = [self.values[value] if value is not None else None for value in node.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            [made for attr in node.attributes.values() if (made := self._attribute(attr)) is not None],
            overload=node.overload,
            num_outputs=len(node.outputs),
            version=node.version,
            name=self.names.fresh_node(f"{self.stem}_{node.name}") if nested and node.name else node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            self._describe(old, new, nested)
        return copy

    def _describe(self, old: ir.Value, new: ir.Value, nested: bool) -> None:
        """Tell ``new`` what holds for ``old`` at every call: symbols may stand for other sizes at another."""
        if old.name:
            name = f"{self.stem}_{old.name}"
            new.name = self.names.fresh(name) if nested else name
        else:
            new.name = old.name
        new.type = old.type
        if old.shape is not None and old.shape.is_static():
            new.shape = old.shape.copy()
        new.doc_string = old.doc_string
        self.values[old] = new

    def _attribute(self, attr: ir.Attr) -> ir.Attr | None:
        if attr.is_ref():
            passed = self.attributes.get(attr.ref_attr_name or "")
            if passed is None:
                return None
            if passed.is_ref():
                return ir.RefAttr(attr.name, passed.ref_attr_name or "", passed.type)
            return ir.Attr(attr.name, passed.type, passed.value)
        if attr.type == ir.AttributeType.GRAPH:
            return ir.AttrGraph(attr.name, self._graph(attr.as_graph()))
        if attr.type == ir.AttributeType.GRAPHS:
            return ir.AttrGraphs(attr.name, [self._graph(graph) for graph in attr.as_graphs()])
        return attr

    def _graph(self, graph: ir.Graph) -> ir.Graph:
        inputs = [self._value(value) for value in graph.inputs]
        initializers = [
            self._value(value) for value in graph.initializers.values() if value not in self.values
        ]
        nodes = [self.node(node, nested=True) for node in graph]
        outputs = [value for v in graph.outputs if (value := self.values[v]) is not None]
        around = self.call.graph
        assert around is not None
        copy = ir.Graph(
            inputs,
            outputs,
            nodes=nodes,
            initializers=initializers,
            opset_imports=dict(around.opset_imports),
            name=graph.name,
        )
        copy.meta.update(around.meta)
        return copy

    def _value(self, old: ir.Value) -> ir.Value:
        new = ir.Value(const_value=old.const_value)
        self._describe(old, new, nested=True)
        return new


def _arguments(call: ir.Node, function: ir.Function) -> dict[str, ir.Attr]:
    defaults = {a.name: a for a in function.attributes.values() if a.is_ref() or a.value is not None}
    arguments = {
        **defaults,
        **{name: attr for name, attr in call.attributes.items() if name in function.attributes},
    }
    for attr in arguments.values():
        if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            raise Decline(f"it passes a graph as {attr.name}")
    return arguments
