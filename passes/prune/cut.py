"""Cut channels away: slice the constants, and change what of nodes depends on how many there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Names, Shapes
from graphopt.analysis.channels import (
    Bound,
    ChannelGroups,
    Count,
    Counts,
    Edit,
    Fix,
    Indices,
    Length,
    Lengths,
)
from graphopt.query import constant, constant_tensor, is_constant, optional

from ..channels import put

Array = np.ndarray[Any, Any]


def cut(model: ir.Model, groups: ChannelGroups, gone: Array) -> None:
    """Cut the atoms that ``gone`` marks out of ``model``, of which ``groups`` are; it is changed in place."""
    knife = Knife(model, groups, gone)
    if any(isinstance(e, Length) and knife.computed(e) for e in groups.flow.edits):
        shapes = Shapes(model)
        for node in model.graph:
            shapes.infer(node)
        shapes.forget_names()
    knife.cut()


class Knife:
    """Changes one graph by what was decided; the analysis was made of another one with the same names."""

    def __init__(self, model: ir.Model, groups: ChannelGroups, gone: Array) -> None:
        self.model, self.groups, self.gone = model, groups, gone
        self.names = Names(model)
        graph = model.graph
        made = {value.name: value for node in graph for value in node.outputs if value.name}
        self.values: dict[str, ir.Value] = {**graph.initializers, **made}
        self.kept: dict[str, list[Array | None]] = {}
        """By value, which places of each axis are left; ``None`` where all are."""
        for value, axes in groups.flow.axes.items():
            kept = [groups.kept(labels, gone) for labels in axes]
            if not all(each.all() for each in kept):
                self.kept[value.name or ""] = [None if each.all() else each for each in kept]

    def cut(self) -> None:
        """Change the graph."""
        for name, kept in self.kept.items():
            value = self.values.get(name)
            if value is not None and is_constant(value):
                self.replace(value, sliced(constant(value), kept))
        self.edit(self.groups.flow.edits)
        for name, kept in self.kept.items():
            value = self.values.get(name)
            if value is not None and value.shape is not None and not value.is_initializer():
                value.shape = ir.Shape(
                    [
                        int(each.sum()) if each is not None and isinstance(dim, int) else dim
                        for dim, each in zip(value.shape, kept, strict=True)
                    ]
                )

    def replace(self, value: ir.Value, array: Array) -> None:
        """Let a constant be ``array``."""
        old = constant_tensor(value)
        assert old is not None
        tensor = ir.Tensor(np.ascontiguousarray(array), name=value.name, dtype=old.dtype)
        value.const_value, value.shape = tensor, ir.Shape(array.shape)

    # --- edits --------------------------------------------------------------------------------------------------------

    def edit(self, edits: list[Edit]) -> None:
        """Change attributes and inputs that depend on sizes."""
        listed: dict[tuple[ir.Node, int], list[Length | Bound]] = defaultdict(list)
        for edit in edits:
            node = self.node(edit.node)
            if node is None or not any(map(self.changed, edit.all_axes)):
                continue
            match edit:
                case Count():
                    node.attributes[edit.attribute] = ir.AttrInt64(edit.attribute, self.size(edit.axis))
                case Counts():
                    node.attributes[edit.attribute] = ir.AttrInt64s(edit.attribute, self.sizes(edit.axes))
                case Fix():
                    node.attributes[edit.attribute] = ir.AttrFloat32(edit.attribute, edit.value)
                case Lengths():
                    node.attributes.pop("num_outputs", None)
                    self.put(node, edit.input, np.array(self.sizes(edit.axes), np.int64))
                case Indices():
                    self._renumber(node, edit)
                case _:
                    listed[node, edit.input].append(edit)
        for (node, index), those in listed.items():
            self._lengths(node, index, [e for e in those if isinstance(e, Length)])
            self._bounds(node, index, [e for e in those if isinstance(e, Bound)])

    def node(self, node: ir.Node) -> ir.Node | None:
        """Return the node of this graph that the analysis calls ``node``."""
        value = self.values.get(node.outputs[0].name or "")
        return value.producer() if value is not None else None

    def computed(self, edit: Length) -> bool:
        """Return whether a list of sizes is computed when the model runs."""
        node = self.node(edit.node)
        value = optional(node, edit.input) if node is not None else None
        return value is not None and not is_constant(value)

    def left(self, labels: Array) -> Array:
        """Return which places of an axis are left."""
        return self.groups.kept(labels, self.gone)

    def size(self, labels: Array) -> int:
        """Return how many places of an axis are left."""
        return int(self.left(labels).sum())

    def sizes(self, axes: tuple[Array, ...]) -> list[int]:
        """Return how many places of each axis are left."""
        return [self.size(labels) for labels in axes]

    def changed(self, labels: Array) -> bool:
        """Return whether some of an axis are cut away."""
        return self.size(labels) < len(labels)

    def _lengths(self, node: ir.Node, index: int, edits: list[Length]) -> None:
        """Write new sizes into a list of sizes, where it holds the old ones.

        What is a symbol in the model, as the size of a batch times heads, is computed when it runs, and stays so.
        """
        value = optional(node, index)
        if value is None or not edits:
            return
        if is_constant(value):
            sizes = constant(value).copy()
            for edit in edits:
                if sizes[edit.position] > 0:
                    sizes[edit.position] = self.size(edit.axis)
            self.put(node, index, sizes)
            return
        shape = node.outputs[0].shape
        if shape is None:
            return
        count = len(self.groups.flow.of(edits[0].node.inputs[index])[0])
        behind = list(shape)[len(shape) - count :]  # Expand may name the last axes only
        known = {e.position: self.size(e.axis) for e in edits if isinstance(behind[e.position], int)}
        if not known:
            return
        parts: list[ir.Value] = []
        for written, run in groupby(range(count), known.__contains__):
            places = list(run)
            part = self.constant(np.array([known.get(i, i) for i in places], np.int64), f"{value.name}_part")
            parts.append(part if written else self.made(node, "Gather", [value, part], len(places)))
        node.replace_input_with(
            index, self.made(node, "Concat", parts, count, axis=0) if parts[1:] else parts[0]
        )

    def made(
        self, before: ir.Node, op_type: str, inputs: list[ir.Value], count: int, **attributes: int
    ) -> ir.Value:
        """Put a node that makes a list of ``count`` sizes before another one, and return what it makes."""
        node = ir.Node(
            "", op_type, inputs, [ir.AttrInt64(k, v) for k, v in attributes.items()], num_outputs=1
        )
        node.name = self.names.fresh_node(f"{before.name}_{op_type}")
        (value,) = node.outputs
        value.name, value.type = self.names.fresh(f"{inputs[0].name}_cut"), ir.TensorType(ir.DataType.INT64)
        value.shape = ir.Shape([count])
        self.insert(before, node)
        return value

    def _bounds(self, node: ir.Node, index: int, edits: list[Bound]) -> None:
        """Count what is left before each bound."""
        if not edits:
            return
        bounds = constant(node.inputs[index]).copy()
        for edit in edits:
            size = len(edit.axis)
            at = int(bounds[edit.position])
            at = min(max(at + size if at < 0 else at, 0), size)
            bounds[edit.position] = int(self.left(edit.axis)[:at].sum())
        self.put(node, index, bounds)

    def _renumber(self, node: ir.Node, edit: Indices) -> None:
        left, indices = self.left(edit.axis), constant(node.inputs[edit.input])
        indices = np.where(indices < 0, indices + len(left), indices)
        indices = sliced(indices, [self.left(labels) for labels in edit.made])
        self.put(node, edit.input, (np.cumsum(left) - 1)[indices].astype(indices.dtype))

    def put(self, node: ir.Node, index: int, array: Array) -> None:
        """Let an input of ``node`` be the constant ``array``."""
        while len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        if node.inputs[index] is None:
            node.replace_input_with(index, self.constant(array, "sizes"))
        else:
            put(node, index, array, self.names)

    def constant(self, array: Array, stem: str) -> ir.Value:
        """Return a new initializer."""
        tensor = ir.Tensor(array)
        value = ir.Value(type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        value.name = tensor.name = self.names.fresh(stem)
        self.model.graph.register_initializer(value)
        return value

    def insert(self, before: ir.Node, *nodes: ir.Node) -> None:
        """Put nodes before another one."""
        self.model.graph.insert_before(before, nodes)


def sliced(array: Array, kept: Sequence[Array | None]) -> Array:
    """Return what is left of an array."""
    for axis, each in enumerate(kept):
        if each is not None:
            array = np.compress(each, array, axis)
    return array
