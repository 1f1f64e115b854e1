"""Copy models: graphs, nodes and values are new, tensors are shared."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir

Swap = Callable[[ir.TensorProtocol], ir.TensorProtocol]


def clone(model: ir.Model, swap: Swap | None = None) -> ir.Model:
    """Return a copy of ``model`` that shares its tensors, or has what ``swap`` makes of each.

    Unlike ``ir.Model.clone`` it copies the types, which are changed in place, and takes nodes in any order.
    """
    with collector_paused():
        copier = _Copier(swap)
        new = ir.Model(
            copier.graph(model.graph),
            ir_version=model.ir_version,
            producer_name=model.producer_name,
            producer_version=model.producer_version,
            domain=model.domain,
            model_version=model.model_version,
            doc_string=model.doc_string,
            functions=[copier.function(function) for function in model.functions.values()],
            metadata_props=dict(model.metadata_props),
            device_configurations=model.device_configurations,
        )
        _copy_meta(model, new)
        return new


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector: it takes longer than building a large graph, and somebody's turn in a race."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Copier:
    def __init__(self, swap: Swap | None) -> None:
        self.swap = swap
        self.values: dict[ir.Value, ir.Value] = {}

    def function(self, function: ir.Function) -> ir.Function:
        return ir.Function(
            domain=function.domain,
            name=function.name,
            overload=function.overload,
            graph=self.graph(function.graph),
            attributes=[self.attribute(attr) for attr in function.attributes.values()],
        )

    def graph(self, graph: ir.Graph) -> ir.Graph:
        values = self.values
        inputs = [self.value(value) for value in graph.inputs]
        initializers = [values.get(value) or self.value(value) for value in graph.initializers.values()]
        if self.swap is not None:
            for value in initializers:
                if value.const_value is not None:
                    value.const_value = self.swap(value.const_value)
        nodes = list(graph)
        outputs = [[self.value(value) for value in node.outputs] for node in nodes]
        new = ir.Graph(
            inputs,
            [values.get(value) or self.value(value) for value in graph.outputs],
            nodes=[self.node(node, made) for node, made in zip(nodes, outputs, strict=True)],
            initializers=initializers,
            doc_string=graph.doc_string,
            opset_imports=dict(graph.opset_imports),
            name=graph.name,
            metadata_props=dict(graph.metadata_props) or None,
        )
        _copy_meta(graph, new)
        return new

    def value(self, value: ir.Value) -> ir.Value:
        shape = value.shape
        new = ir.Value(
            name=value.name,
            type=_copy_type(value.type),
            shape=shape if shape is None or shape.frozen else shape.copy(),
            doc_string=value.doc_string,
            const_value=value.const_value,
            metadata_props=dict(value.metadata_props) or None,
        )
        _copy_meta(value, new)
        self.values[value] = new
        return new

    def node(self, node: ir.Node, outputs: list[ir.Value]) -> ir.Node:
        values = self.values
        new = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else values.get(value, value) for value in node.inputs],
            [self.attribute(attr) for attr in node.attributes.values()],
            overload=node.overload,
            outputs=outputs,
            version=node.version,
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props) or None,
            device_configurations=self.devices(node) if node.device_configurations else (),
        )
        _copy_meta(node, new)
        return new

    def devices(self, node: ir.Node) -> tuple[Any, ...]:
        """Return how ``node`` is spread over devices, in terms of the new values."""
        replace = dataclasses.replace
        return tuple(
            replace(
                configuration,
                sharding_specs=tuple(
                    replace(spec, value=spec.value and self.values.get(spec.value, spec.value))
                    for spec in configuration.sharding_specs
                ),
            )
            for configuration in node.device_configurations
        )

    def attribute(self, attr: ir.Attr) -> ir.Attr:
        kind = attr.type
        if attr.is_ref() or kind not in _WITH_INSIDES or attr.value is None:
            return attr
        if kind == ir.AttributeType.GRAPH:
            return ir.AttrGraph(attr.name, self.graph(attr.as_graph()), attr.doc_string)
        if kind == ir.AttributeType.GRAPHS:
            return ir.AttrGraphs(attr.name, [self.graph(g) for g in attr.as_graphs()], attr.doc_string)
        if self.swap is None:
            return attr
        if kind == ir.AttributeType.TENSOR:
            return ir.AttrTensor(attr.name, self.swap(attr.as_tensor()), attr.doc_string)
        return ir.AttrTensors(attr.name, [self.swap(t) for t in attr.as_tensors()], attr.doc_string)


_WITH_INSIDES = frozenset(
    {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR, ir.AttributeType.TENSORS}
)


def _copy_type(type_: ir.TypeProtocol | None) -> Any:
    if type(type_) is ir.TensorType:
        return ir.TensorType(type_.dtype, denotation=type_.denotation)
    return copy.deepcopy(type_)


def _copy_meta(old: Any, new: Any) -> None:
    if old.meta:
        new.meta.update(old.meta)
