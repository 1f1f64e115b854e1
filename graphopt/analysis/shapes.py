"""Shapes, types and the symbolic contents of small integer tensors, one node at a time.

The inference functions are those of ``onnx-shape-inference``; what is here keeps them incremental, so that a
rewrite pays for the nodes that it makes and not for the graph.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_shape_inference import ShapeInferenceContext, registry

from ..query import all_graphs, constant_tensor, has_subgraphs
from .assumptions import certain, holds
from .windows import keeps_sizes

if TYPE_CHECKING:
    from ..context import Context

Dim = int | ir.SymbolicDim

_SIZES = (ir.DataType.INT64, ir.DataType.INT32)

_INTEGERS = frozenset(
    {*_SIZES, ir.DataType.INT16, ir.DataType.INT8, ir.DataType.UINT64, ir.DataType.UINT32}
    | {ir.DataType.UINT16, ir.DataType.UINT8}
)

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")

_HANDLER_FAULTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What an inference function may raise on a node it was not written for; the shape then stays unknown."""


class _Inference(ShapeInferenceContext):
    """Keeps the contents of shape tensors to itself, and writes nothing into the model but types and shapes."""

    def __init__(self, opsets: Mapping[str, int], contents: dict[ir.Value, list[Dim]]) -> None:
        super().__init__(opsets, policy="refine")
        self._symbolic_values = contents

    def set_symbolic_value(self, value: ir.Value, data: list[Dim]) -> None:
        if holds(value.producer(), value, data):
            self._symbolic_values[value] = [_plain(dim) for dim in data]
        else:
            self._symbolic_values.pop(value, None)

    def get_symbolic_value(self, value: ir.Value) -> list[Dim] | None:
        held = self._symbolic_values.get(value)
        if held is not None:
            return held
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype not in _INTEGERS or len(tensor.shape) > 1:
            return None
        return [int(element) for element in tensor.numpy().reshape(-1)]

    def set_shape(self, value: ir.Value, shape: ir.Shape) -> bool:
        if not shape.is_static():
            shape = ir.Shape([_plain(dim) for dim in shape])
        shape = certain(value.producer(), shape, self.get_symbolic_value, self.new_symbolic_dim)
        return super().set_shape(value, shape)


class Shapes:
    """Infers shapes of single nodes of one model, and remembers what shape arithmetic is known to hold.

    An analysis: ``context.analysis(Shapes)``.
    """

    survives_edits = True

    def __init__(self, model: ir.Model, context: Context | None = None) -> None:
        registry.collect()
        self._model = model
        self._asked: set[ir.Value] = set()
        self._seen: dict[ir.Node, Sequence[object]] = {}
        contents: dict[ir.Value, list[Dim]] = {}
        self._contents = contents
        self._inference = {
            graph: _Inference(graph.opset_imports or model.opset_imports, contents)
            for graph in (model.graph, *(f.graph for f in model.functions.values()))
        }
        main = self._inference[model.graph]
        self._main = main
        main.reserve_symbol_names(self._symbols())
        for graph in all_graphs(model):
            for value in (*graph.inputs, *graph.initializers.values()):
                self._settle(value)

    def _symbols(self) -> Iterable[str]:
        for shape in _shapes(self._model):
            yield from (d.value for d in shape if not isinstance(d, int) and d.value is not None)

    def _settle(self, value: ir.Value) -> None:
        """Give an initializer its true shape, and unnamed dimensions names of their own."""
        if value.const_value is not None and not value.is_graph_input():
            if value.shape is None or value.shape != value.const_value.shape:
                value.shape = ir.Shape(value.const_value.shape.numpy())
        else:
            self._main.name_anonymous_dims(value)

    def infer(self, node: ir.Node) -> bool:
        """Fill in what is missing of types and shapes of ``node``'s outputs; return whether all are known.

        Nodes with subgraphs and calls of functions keep what is declared. Where nothing that is known of inputs and
        outputs changed since the last time, there is nothing to infer.
        """
        seen, now = self._seen.get(node), self._facts(node)
        if seen is not None and len(seen) == len(now) and all(map(operator.is_, seen, now)):
            return known(node)
        try:
            return self._infer(node)
        finally:
            self._seen[node] = self._facts(node)

    def _facts(self, node: ir.Node) -> Sequence[object]:
        """Return the objects that inference on ``node`` depends on; none of them is ever changed in place."""
        facts: list[object] = [node.graph, *node.attributes.data.values()]
        for value in node.inputs:
            if value is not None:
                facts += (value, value.shape, value.type, self._contents.get(value))
            else:
                facts.append(None)
        for value in node.outputs:
            facts += (value.shape, value.type)
        return facts

    def _infer(self, node: ir.Node) -> bool:
        graph = node.graph
        version = graph.opset_imports.get(node.domain) if graph is not None else None
        handler = registry.get(
            node.domain, node.op_type, version=version or self._main.get_opset_version(node.domain)
        )
        if handler is None or has_subgraphs(node) or _misjudged(node):
            return known(node)
        context = self._inference.get(graph, self._main) if graph is not None else self._main
        if any(attr.is_ref() for attr in node.attributes.values()):
            return known(node)
        for value in node.inputs:
            if value is not None and value.shape is not None and _has_unnamed(value.shape):
                context.name_anonymous_dims(value)
        try:
            if not keeps_sizes(context, node):
                handler(context, node)
        except _HANDLER_FAULTS:
            return False
        if node.op_type == "ConstantOfShape" and node.outputs[0].shape is None:
            dims = self.contents(node.inputs[0])
            node.outputs[0].shape = ir.Shape(dims) if dims is not None else None
        return known(node)

    def contents(self, value: ir.Value | None) -> list[Dim] | None:
        """Return the elements of a small integer tensor, numbers or symbols, where they are known."""
        if value is None:
            return None
        found = self._main.get_symbolic_value(value)
        if found is None and value not in self._asked:
            self._ask(value)
            found = self._main.get_symbolic_value(value)
        return list(found) if found is not None else None

    def _ask(self, value: ir.Value) -> None:
        """Infer what makes ``value``, and before that what makes its inputs; each once until it is touched."""
        pending = [value]
        while pending:
            value = pending[-1]
            node = value.producer()
            inputs = [] if node is None else [v for v in node.inputs if v is not None and self._may_hold(v)]
            fresh = [] if value in self._asked else inputs
            self._asked.add(value)
            pending += fresh
            if not fresh:
                pending.pop()
                if node is not None:
                    self.infer(node)

    def _may_hold(self, value: ir.Value) -> bool:
        """Return whether ``value`` may be a tensor of sizes whose elements nobody asked for yet."""
        if value in self._asked or value.producer() is None:
            return False
        return value.dtype in (None, *_SIZES) and (value.shape is None or len(value.shape) <= 1)

    def touched(self, nodes: Iterable[ir.Node] | None = None) -> None:
        """Ask again for the elements of what ``nodes`` make, or of everything."""
        if nodes is None:
            self._asked.clear()
            return
        for node in nodes:
            self._asked.difference_update(node.outputs)

    def set_contents(self, value: ir.Value, dims: list[Dim]) -> None:
        """Record the elements of a small integer tensor."""
        self._main.set_symbolic_value(value, dims)

    def is_named(self, dim: Dim) -> bool:
        """Return whether ``dim`` is a number or made of the model's own symbols, not a name for something unknown."""
        if isinstance(dim, int):
            return True
        return dim.value is not None and not any(
            self._main.is_generated_symbol(word) for word in _WORD.findall(dim.value)
        )

    def forget_names(self) -> None:
        """Take back the names that inference gave to unnamed dimensions."""
        made = self._main.generated_dim_names
        if not made:
            return
        for graph in all_graphs(self._model):
            for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
                if value.shape is not None and not value.shape.is_static():
                    value.shape = ir.Shape([None if _names(d, made) else d for d in value.shape])


def _plain(dim: Dim) -> Dim:
    """Return the number that an expression came down to: ``N*6/N`` is the symbol ``6`` when inference is done."""
    if isinstance(dim, int) or dim.value is None or not dim.value.isdecimal():
        return dim
    return int(dim.value)


def _names(dim: Dim, made: Collection[str]) -> bool:
    text = None if isinstance(dim, int) else dim.value
    return text is not None and (text in made or any(word in made for word in _WORD.findall(text)))


def _shapes(model: ir.Model) -> Iterator[ir.Shape]:
    for graph in all_graphs(model):
        yield from (value.shape for value in graph.inputs if value.shape is not None)
        yield from (v.shape for node in graph for v in node.outputs if v.shape is not None)


def _misjudged(node: ir.Node) -> bool:
    """Return whether the inference of ``node``'s operator, as it is written, takes what it does not know for known."""
    if node.domain != "":
        return False
    if node.op_type == "Split":  # sizes that a run computes would be taken for equal ones
        return len(node.inputs) > 1 and node.inputs[1] is not None and constant_tensor(node.inputs[1]) is None
    if node.op_type == "Unique":  # the result along an axis would be taken for flat
        return "axis" in node.attributes
    return _squeezes_the_unknown(node)


def _squeezes_the_unknown(node: ir.Node) -> bool:
    """Return whether the sizes that a Squeeze drops show at a run only, where inference would take symbols to stay."""
    if node.op_type != "Squeeze" or node.domain != "":
        return False
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return constant_tensor(node.inputs[1]) is None
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return "axes" not in node.attributes and shape is not None and not shape.is_static()


def known(node: ir.Node) -> bool:
    """Return whether type and shape of all outputs are known, and each size has a name or is a number."""
    return all(
        value.type is not None and value.shape is not None and not _has_unnamed(value.shape)
        for value in node.outputs
    )


def _has_unnamed(shape: ir.Shape) -> bool:
    """Return whether a size is unknown, as ``shape.has_unknown_dim`` does by comparisons that take longer."""
    for dim in shape:  # noqa: SIM110  (asked of each value many times: no generator)
        if not isinstance(dim, int) and dim.value is None:
            return True
    return False
