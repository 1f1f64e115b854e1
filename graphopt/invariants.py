"""What must hold in every graph, whatever pass has been at it; each invariant is one small check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
from typing import TYPE_CHECKING

import onnx_ir as ir

from .interfaces import place
from .query import nodes_in, subgraphs

if TYPE_CHECKING:
    import onnx.defs


@dataclass(frozen=True)
class Problem:
    """One place where an invariant does not hold."""

    invariant: str
    """The name of the check."""
    text: str
    """What is wrong and where, on one line."""

    def __str__(self) -> str:
        return self.text


def problems(model: ir.Model) -> list[Problem]:
    """Return what is wrong with the graphs of ``model``, the cause before its consequences where that can be told."""
    units = [_Unit(model.graph, "the graph", function=False)]
    units += [
        _Unit(function.graph, f"function {function.domain}::{function.name}", function=True)
        for function in model.functions.values()
    ]
    found = [Problem(check.__name__, text) for unit in units for check in CHECKS for text in check(unit)]
    return found + [Problem("no_recursion", text) for text in no_recursion(model)]


class _Unit:
    """The main graph or a function's, with the graphs nested in it."""

    def __init__(self, graph: ir.Graph, label: str, *, function: bool) -> None:
        self.graph = graph
        self.label = label
        self.function = function
        self.nodes: dict[ir.Graph, list[ir.Node]] = {}
        """Each graph's nodes, an outer graph before those nested in it."""
        self.inner: dict[ir.Node, list[ir.Graph]] = {}
        """The graphs that a node carries; nodes that carry none are not in it."""
        self.operators: dict[tuple[str, str], list[ir.Node]] = {}
        """All nodes, by domain and operator."""
        self._enter(graph)

    def _enter(self, graph: ir.Graph) -> None:
        nodes = self.nodes[graph] = list(graph)
        for node in nodes:
            self.operators.setdefault((node.domain, node.op_type), []).append(node)
            if node.attributes and (inner := list(subgraphs(node))):
                self.inner[node] = inner
                for nested in inner:
                    self._enter(nested)


def initializers_have_data(unit: _Unit) -> Iterator[str]:
    """An initializer has a tensor, is filed under its name, and stands in no function body, where ONNX has none."""
    for graph in unit.nodes:
        for name, value in graph.initializers.items():
            if unit.function:
                yield f"{name} is an initializer in {unit.label}, where only Constant nodes may hold data"
            elif value.const_value is None:
                yield f"initializer {name} has no data"
            elif value.name != name:
                yield f"initializer {value.name} is filed under the name {name}"


def values_are_defined(unit: _Unit) -> Iterator[str]:
    """What a node reads is made before it, in its graph or in one around it; no node depends on itself."""
    defined: set[ir.Value] = set()

    def enter(graph: ir.Graph) -> Iterator[str]:
        own = [*graph.inputs, *graph.initializers.values()]
        defined.update(own)
        for node in unit.nodes[graph]:
            for value in node.inputs:
                if value is not None and value not in defined:
                    yield _undefined(value, node, unit)
            for nested in unit.inner.get(node, ()):
                yield from enter(nested)
            defined.update(node.outputs)
        for output in graph.outputs:
            maker = output.producer()
            if output not in defined or (maker is not None and maker.graph is not graph):
                yield f"{output.name}, an output of {_name(graph, unit)}, is made by nothing in it"
        if graph is not unit.graph:
            defined.difference_update(own, *(node.outputs for node in unit.nodes[graph]))

    return enter(unit.graph)


def _undefined(value: ir.Value, node: ir.Node, unit: _Unit) -> str:
    maker = value.producer()
    reader = f"{node.op_type} {place(node)}"
    if maker is None:
        return f"{value.name or 'a value without a name'}, which {reader} reads, is made by nothing"
    if maker.graph is None:
        return f"{value.name}, which {reader} reads, is made by {maker.op_type} {place(maker)}, which was removed"
    if maker.graph not in unit.nodes:
        return f"{value.name}, which {reader} reads, is made in another graph"
    if maker.graph is node.graph:
        return f"{reader} reads {value.name}, which {maker.op_type} {place(maker)} makes only after it"
    return f"{reader} reads {value.name}, which {maker.op_type} {place(maker)} makes where it cannot be seen"


def names_are_unique(unit: _Unit) -> Iterator[str]:
    """Each value has a name; no other in its graph or in one around it has the same."""
    taken: dict[str, ir.Value] = {}

    def enter(graph: ir.Graph) -> Iterator[str]:
        own: list[str] = []
        values = dict.fromkeys([*graph.inputs, *graph.initializers.values()])
        for value in (*values, *(value for node in unit.nodes[graph] for value in node.outputs)):
            name = value.name
            if not name:
                if name is None or value.uses() or value.is_graph_output() or value in values:
                    yield f"a value in {_name(graph, unit)} has no name: {_origin(value)}"
            elif name in taken:
                yield f"{name} is the name of two values: {_origin(taken[name])} and {_origin(value)}"
            else:
                taken[name] = value
                own.append(name)
        for node in unit.nodes[graph] if unit.inner else ():
            for nested in unit.inner.get(node, ()):
                yield from enter(nested)
        for name in own:
            del taken[name]

    return enter(unit.graph)


def opsets_are_imported(unit: _Unit) -> Iterator[str]:
    """The operator set of each node's domain is imported."""
    for (domain, op_type), nodes in unit.operators.items():
        if domain not in unit.graph.opset_imports:
            name = domain or "ai.onnx"
            yield f"{unit.label} has {op_type} {place(nodes[0])}, and imports no operator set {name}"


def data_have_declared_types(unit: _Unit) -> Iterator[str]:
    """The type and shape that are declared of an initializer or constant are those of its data."""
    for graph in unit.nodes:
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield from _disagreement(value, value.const_value)
    for node in unit.operators.get(("", "Constant"), ()):
        attr = node.attributes.get("value")
        if attr is not None and attr.type == ir.AttributeType.TENSOR and not attr.is_ref() and node.outputs:
            yield from _disagreement(node.outputs[0], attr.as_tensor())


def _disagreement(value: ir.Value, tensor: ir.TensorProtocol) -> Iterator[str]:
    if value.dtype is not None and value.dtype != tensor.dtype:
        yield f"{value.name} is declared {value.dtype}, and its data are {tensor.dtype}"
    shape = value.shape
    if shape is not None and shape is not tensor.shape:
        dims = list(tensor.shape)
        if len(shape) != len(dims) or any(
            isinstance(m, int) and m != n for m, n in zip(shape, dims, strict=True)
        ):
            yield f"{value.name} is declared with shape {shape}, and its data have {tensor.shape}"


def operators_are_used_as_defined(unit: _Unit) -> Iterator[str]:
    """Operators of ONNX have as many inputs and outputs as they take, and the attributes they need, of their types."""
    for (domain, op_type), nodes in unit.operators.items():
        form = _form(domain, op_type, unit.graph.opset_imports.get(domain, 0))
        if form is None:
            continue
        (least_in, most_in), (least_out, most_out) = form.inputs, form.outputs
        for node in nodes:
            if not least_in <= len(node.inputs) <= most_in:
                yield f"{op_type} {place(node)} has {len(node.inputs)} inputs, and takes {_range(*form.inputs)}"
            if not least_out <= len(node.outputs) <= most_out:
                yield f"{op_type} {place(node)} has {len(node.outputs)} outputs, and makes {_range(*form.outputs)}"
            attributes = node.attributes
            if form.required and (missing := form.required - attributes.keys()):
                yield f"{op_type} {place(node)} lacks the attribute {min(missing)}"
            for name, attr in attributes.items() if attributes else ():
                if attr.type != form.types.get(name, attr.type):
                    yield f"{op_type} {place(node)} has {name} as {attr.type.name}, and takes {form.types[name].name}"


@dataclass(frozen=True)
class _Form:
    """How an operator is used."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    required: frozenset[str]
    types: Mapping[str, ir.AttributeType]


def _schema(domain: str, op_type: str, version: int) -> onnx.defs.OpSchema | None:
    import onnx.defs

    if domain or not 0 < version < 1 << 31 or not onnx.defs.has(op_type, version):
        return None
    return onnx.defs.get_schema(op_type, version)


@cache
def _form(domain: str, op_type: str, version: int) -> _Form | None:
    schema = _schema(domain, op_type, version)
    if schema is None:
        return None
    return _Form(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        frozenset(name for name, attribute in schema.attributes.items() if attribute.required),
        {name: ir.AttributeType[str(a.type).rpartition(".")[2]] for name, a in schema.attributes.items()},
    )


def _range(least: int, most: int) -> str:
    if least == most:
        return str(least)
    return f"at least {least}" if most > _MANY else f"{least} to {most}"


def operators_get_their_types(unit: _Unit) -> Iterator[str]:
    """Inputs and outputs that an operator wants to be of one type are declared so."""
    for (domain, op_type), nodes in unit.operators.items():
        for inputs, outputs in _alike(domain, op_type, unit.graph.opset_imports.get(domain, 0)):
            for node in nodes:
                first: ir.Value | None = None
                for value in (*compress(node.inputs, inputs), *compress(node.outputs, outputs)):
                    if value is None or (kind := value.type) is None or type(kind) is not ir.TensorType:
                        continue
                    if first is None:
                        first, dtype = value, kind.dtype
                    elif kind.dtype != dtype:
                        yield (
                            f"{op_type} {place(node)} wants one type for {first.name} and {value.name}, "
                            f"which are {dtype} and {kind.dtype}"
                        )


@cache
def _alike(domain: str, op_type: str, version: int) -> tuple[tuple[list[bool], list[bool]], ...]:
    """Return, for each type variable of an operator that is used twice, which inputs and outputs are of it."""
    import onnx.defs

    schema = _schema(domain, op_type, version)
    if schema is None:
        return ()

    def chosen(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], letter: str) -> list[bool]:
        variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
        return [
            parameter.type_str == letter
            for parameter in parameters
            for _ in range(_MANY if parameter.option == variadic and parameter.is_homogeneous else 1)
        ]

    letters = {
        p.type_str for p in (*schema.inputs, *schema.outputs) if "(" not in p.type_str and p.is_homogeneous
    }
    pairs = [(chosen(schema.inputs, letter), chosen(schema.outputs, letter)) for letter in sorted(letters)]
    return tuple((i, o) for i, o in pairs if sum(i) + sum(o) > 1)


_MANY = 256
"""A variadic input is checked up to here."""


def no_recursion(model: ir.Model) -> Iterator[str]:
    """No function calls itself, directly or through others."""
    calls: Mapping[ir.OperatorIdentifier, set[ir.OperatorIdentifier]] = {
        key: {node.op_identifier() for node in nodes_in(function.graph)} & model.functions.keys()
        for key, function in model.functions.items()
    }
    done: set[ir.OperatorIdentifier] = set()
    while ready := {key for key, called in calls.items() if key not in done and called <= done}:
        done |= ready
    for domain, name, _ in calls.keys() - done:
        yield f"function {domain}::{name} calls itself, or functions that do"
        return


CHECKS: tuple[Callable[[_Unit], Iterator[str]], ...] = (
    initializers_have_data,
    values_are_defined,
    names_are_unique,
    opsets_are_imported,
    data_have_declared_types,
    operators_are_used_as_defined,
    operators_get_their_types,
)


def _origin(value: ir.Value) -> str:
    maker = value.producer()
    if maker is not None:
        return f"an output of {maker.op_type} {place(maker)}"
    return "an input" if value.is_graph_input() else "an initializer"


def _name(graph: ir.Graph, unit: _Unit) -> str:
    return unit.label if graph is unit.graph else f"subgraph {graph.name}"
