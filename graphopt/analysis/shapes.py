"""Shapes, types and the symbolic contents of small integer tensors, one node at a time.

The inference functions are those of ``onnx-shape-inference``; what is here keeps them incremental, so that a
rewrite pays for the nodes that it makes and not for the graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_shape_inference import SYM_DATA_KEY, ShapeInferenceContext, registry

from ..query import all_graphs, has_subgraphs

if TYPE_CHECKING:
    from ..context import Context

Dim = int | ir.SymbolicDim

_HANDLER_FAULTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What an inference function may raise on a node it was not written for; the shape then stays unknown."""


class Shapes:
    """Infers shapes of single nodes of one model, and remembers what shape arithmetic is known to hold.

    An analysis: ``context.analysis(Shapes)``.
    """

    survives_edits = True

    def __init__(self, model: ir.Model, context: Context | None = None) -> None:
        registry.collect()
        self._model = model
        self._inference = {
            graph: ShapeInferenceContext(graph.opset_imports or model.opset_imports, policy="refine")
            for graph in (model.graph, *(f.graph for f in model.functions.values()))
        }
        main = self._inference[model.graph]
        self._main = main
        main.reserve_symbol_names(self._symbols())
        for graph in all_graphs(model):
            for value in (*graph.inputs, *graph.initializers.values()):
                self._settle(value)

    def _symbols(self) -> Iterable[str]:
        for graph in all_graphs(self._model):
            for value in graph.inputs:
                if value.shape is not None:
                    yield from (
                        d.value for d in value.shape if not isinstance(d, int) and d.value is not None
                    )
            for node in graph:
                for value in node.outputs:
                    if value.shape is not None:
                        yield from (
                            d.value for d in value.shape if not isinstance(d, int) and d.value is not None
                        )

    def _settle(self, value: ir.Value) -> None:
        """Give an initializer its true shape, and unnamed dimensions names of their own."""
        if value.const_value is not None and not value.is_graph_input():
            if value.shape is None or value.shape != value.const_value.shape:
                value.shape = ir.Shape(value.const_value.shape)
        else:
            self._main.name_anonymous_dims(value)

    def infer(self, node: ir.Node) -> bool:
        """Fill in what is missing of the types and shapes of ``node``'s outputs; return whether all are known.

        Nodes with subgraphs and calls of functions keep what is declared.
        """
        graph = node.graph
        version = graph.opset_imports.get(node.domain) if graph is not None else None
        handler = registry.get(
            node.domain, node.op_type, version=version or self._main.get_opset_version(node.domain)
        )
        if handler is None or has_subgraphs(node):
            return known(node)
        context = self._inference.get(graph, self._main) if graph is not None else self._main
        if any(attr.is_ref() for attr in node.attributes.values()):
            return known(node)
        for value in node.inputs:
            if value is not None and value.shape is not None:
                context.name_anonymous_dims(value)
        try:
            handler(context, node)
        except _HANDLER_FAULTS:
            return False
        return known(node)

    def contents(self, value: ir.Value | None) -> list[Dim] | None:
        """Return the elements of a small integer tensor, numbers or symbols, where they are known."""
        if value is None:
            return None
        found = self._main.get_symbolic_value(value)
        return list(found) if found is not None else None

    def set_contents(self, value: ir.Value, dims: list[Dim]) -> None:
        """Record the elements of a small integer tensor."""
        self._main.set_symbolic_value(value, dims)


def known(node: ir.Node) -> bool:
    """Return whether type and shape of all outputs in use are known."""
    return all(value.type is not None and value.shape is not None for value in node.outputs)


def forget_contents(model: ir.Model) -> None:
    """Remove the notes that inference leaves in the values' metadata, which would be saved with the model."""
    for graph in all_graphs(model):
        for value in graph.inputs:
            value.metadata_props.pop(SYM_DATA_KEY, None)
        for node in graph:
            for value in node.outputs:
                if value.metadata_props:
                    value.metadata_props.pop(SYM_DATA_KEY, None)
