"""Change the types of a graph's values, with a cast wherever two of its parts meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Names, all_graphs, all_nodes, clone
from graphopt.query import constant_tensor

from .operators import FLOAT, Ports

LAZY_BYTES = 1 << 20


class Editor:
    """Casts the nodes of one graph, and remembers how to take it back."""

    def __init__(self, model: ir.Model, short: Mapping[ir.Node, Ports], to: ir.DataType) -> None:
        self.model, self.short, self.to = model, short, to
        self.graph = model.graph
        self.names = Names(model)
        self.suffix = to.name.lower()
        self.constants: dict[ir.Value, ir.Value] = {}
        self.originals: dict[str, ir.TensorProtocol] = {}
        """The weights in float, by the names of the shorter ones."""
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.shortened: set[ir.Value] = set()

    def run(self) -> None:
        """Change the graph."""
        for node in list(self.graph):
            ports = self.short.get(node)
            if ports is None:
                continue
            for i in ports.inputs:
                value = node.inputs[i]
                if value is not None:
                    node.replace_input_with(i, self._short(value))
            for i in ports.outputs:
                self._shorten(node.outputs[i])
            if node.op_type == "Cast" and node.domain == "":
                node.attributes["to"] = ir.AttrInt64("to", int(self.to))
        self._sweep()

    def _short(self, value: ir.Value) -> ir.Value:
        """Return ``value`` in the shorter type, for a node that reads it."""
        if value in self.shortened:
            return value
        if constant_tensor(value) is not None:
            if value not in self.constants:
                self.constants[value] = self._constant(value)
            return self.constants[value]
        return self._cast(value, self.to)

    def _constant(self, value: ir.Value) -> ir.Value:
        tensor = constant_tensor(value)
        assert tensor is not None
        made = ir.Value(
            name=self.names.fresh(f"{value.name}/{self.suffix}"),
            type=ir.TensorType(self.to),
            shape=ir.Shape(tensor.shape.numpy()),
        )
        made.const_value = _converted(tensor, self.to, made.name)
        self.originals[made.name or ""] = tensor
        self.graph.register_initializer(made)
        return made

    def _shorten(self, value: ir.Value) -> None:
        """Make ``value`` of the shorter type, and cast it back for those that read it in float."""
        self.shortened.add(value)
        readers = [(user, i) for user, i in value.uses() if not self._reads_short(user, i)]
        value.type = ir.TensorType(self.to)
        if not readers and not value.is_graph_output():
            return
        name = value.name or "value"
        back = self._cast(value, FLOAT)
        for user, i in readers:
            user.replace_input_with(i, back)
        if value.is_graph_output():
            for i, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[i] = back
            value.name, back.name = self.names.fresh(f"{name}/{self.suffix}"), name
            back.metadata_props.update(value.metadata_props)

    def _reads_short(self, user: ir.Node, i: int) -> bool:
        return user in self.short and i in self.short[user].inputs

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """Return ``value`` cast, by one node for all that ask."""
        if (value, to) in self.casts:
            return self.casts[value, to]
        node = ir.node("Cast", [value], {"to": int(to)})
        made = node.outputs[0]
        made.name = self.names.fresh(f"{value.name}/{to.name.lower()}")
        node.name = self.names.fresh_node(f"cast/{made.name}")
        made.type, made.shape = ir.TensorType(to), value.shape.copy() if value.shape is not None else None
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        else:
            self.graph.insert_before(self.graph[0], node)
        self.casts[value, to] = made
        return made

    def _sweep(self) -> None:
        """Remove the float constants that nothing reads any more."""
        for value in self.constants:
            if value.uses() or value.is_graph_output():
                continue
            node = value.producer()
            if node is not None:
                self.graph.remove(node, safe=True)
            elif value.graph is not None:
                value.graph.initializers.pop(value.name or "")

    def restored(self) -> ir.Model:
        """Return the result with every number in float again: casts that change nothing, the weights as they were."""
        copy = clone(self.model)
        cast = {value.producer() for value in self.casts.values()}
        own = {node for node in self.short if node.op_type == "Cast" and node.domain == ""}
        for node, other in zip(all_nodes(self.model), all_nodes(copy), strict=True):
            if node in cast or node in own:
                other.attributes["to"] = ir.AttrInt64("to", int(FLOAT))
            for old, new in zip(node.outputs, other.outputs, strict=True):
                if old in self.shortened or old in self.casts.values():
                    new.type = ir.TensorType(FLOAT)
        for graph in all_graphs(copy):
            for name, value in graph.initializers.items():
                if name in self.originals:
                    value.const_value, value.type = self.originals[name], ir.TensorType(FLOAT)
        return copy


def _converted(tensor: ir.TensorProtocol, to: ir.DataType, name: str | None) -> ir.TensorProtocol:
    """Return ``tensor`` in another type; a large one is converted when somebody reads it."""

    def convert() -> ir.TensorProtocol:
        with np.errstate(over="ignore"):
            array: np.ndarray[Any, Any] = tensor.numpy().astype(to.numpy(), order="C")
        return ir.Tensor(array, to, name=name)

    if tensor.nbytes < LAZY_BYTES:
        return convert()
    return ir.LazyTensor(convert, to, ir.Shape(tensor.shape.numpy()), name=name)
