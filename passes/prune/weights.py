"""The constant weights of products, to be changed number by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, Decline, Names, PassReport, all_nodes, clone, selected, sweep
from graphopt.query import (
    attribute,
    constant,
    constant_tensor,
    is_constant,
    is_op,
    place,
    producer,
    used_once,
)

from ..channels import FLOATS, PRODUCTS
from .told import tell

Array = np.ndarray[Any, Any]
Form = Callable[[ir.Value, Callable[[Array], ir.Value]], list[ir.Node]]
"""Nodes that make of a constant what took its place; the function makes constants of its type."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant that products multiply by, and nothing else reads."""

    value: ir.Value
    products: tuple[ir.Node, ...]
    inputs_axis: int
    """The axis of input channels, from the front."""
    outputs_axis: int
    groups: int

    @property
    def array(self) -> Array:
        """Its numbers."""
        return constant(self.value)

    @property
    def dtype(self) -> ir.DataType:
        """Their type."""
        tensor = constant_tensor(self.value)
        assert tensor is not None
        return tensor.dtype


def weights(
    model: ir.Model, include: Sequence[str], exclude: Sequence[str], report: PassReport
) -> list[Weight]:
    """Return the weights of selected products, in the main graph and in subgraphs; the report has the others."""
    found: dict[ir.Value, Weight] = {}
    for node in _products(model):
        try:
            one = _weight(node)
            if not selected(node, include, exclude):
                raise Decline("it is not selected")
            known = found.get(one.value, one)
            if (one.inputs_axis, one.outputs_axis) != (known.inputs_axis, known.outputs_axis):
                raise Decline(f"{one.value.name} is read along other axes by {place(known.products[0])}")
            others = known.products if known is not one else ()
            found[one.value] = Weight(
                one.value, (*others, node), one.inputs_axis, one.outputs_axis, one.groups
            )
        except Decline as reason:
            report.decline(node, str(reason))
    alone = []
    for value, one in found.items():
        if len(value.uses()) > len(one.products) or value.is_graph_output():
            report.decline(one.products[0], f"{value.name} is used elsewhere")
        else:
            alone.append(one)
    return alone


def _products(model: ir.Model) -> Iterator[ir.Node]:
    for graph in (*model.graph.subgraphs(), model.graph):
        yield from (node for node in graph if is_op(node, *PRODUCTS))


def _weight(node: ir.Node) -> Weight:
    """Return what ``node`` multiplies by, as it lies before a Transpose or Cast."""
    index = 0 if node.op_type in ("Gemm", "MatMul") and _origin(node.inputs[0]) is not None else 1
    value, other = _origin(node.inputs[index]), _origin(node.inputs[1 - index])
    if value is None or other is not None:
        raise Decline("it multiplies no activations by constant weights")
    tensor = constant_tensor(value)
    assert tensor is not None
    if tensor.dtype not in FLOATS:
        raise Decline(f"its weights are {tensor.dtype.name.lower()}")
    rank = len(tensor.shape)
    if tensor.size == 0 or rank < 2:
        raise Decline(f"its weights have {rank} dimension{'s' * (rank != 1)}")
    groups = attribute(node, "group", 1) if node.op_type.startswith("Conv") else 1
    if node.op_type.startswith("Conv"):
        axes = [1, 0] if node.op_type == "Conv" else [0, 1]
    else:
        axes = [rank - 2, rank - 1] if index else [rank - 1, rank - 2]
        if node.op_type == "Gemm" and attribute(node, "transB" if index else "transA", 0):
            axes.reverse()
    step = node.inputs[index]
    while step is not value and step is not None:
        maker = producer(step, "Transpose", "Cast")
        if not used_once(step):
            raise Decline(f"{step.name} is used elsewhere")
        if maker.op_type == "Transpose":
            perm = attribute(maker, "perm", list(reversed(range(rank))))
            axes = [perm[axis] for axis in axes]
        step = maker.inputs[0]
    return Weight(value, (node,), axes[0], axes[1], groups)


def _origin(value: ir.Value | None) -> ir.Value | None:
    """Return the constant that ``value`` is, or is a Transpose or Cast of."""
    while value is not None and not is_constant(value):
        node = value.producer()
        value = node.inputs[0] if node is not None and is_op(node, "Transpose", "Cast") else None
    return value


class Change:
    """Puts numbers in place of weights, and keeps a copy of the model where nodes make them of the old ones."""

    def __init__(self, model: ir.Model, context: Context, report: PassReport) -> None:
        self.model, self.context, self.report = model, context, report
        self.before, self.reference = clone(model), clone(model)
        self._names, self._others = Names(model), Names(self.reference)
        self._partner = dict(zip(all_nodes(model), all_nodes(self.reference), strict=True))
        self._changed: dict[str, str] = {}

    def put(self, weight: Weight, array: Array, form: Form, detail: str) -> bool:
        """Let the weight be ``array``, and in the reference what ``form`` makes of it; whether that was done."""
        uses = list(weight.value.uses())
        first = weight.products[0]
        if not self.context.admit(self.report, first, detail):
            return False
        self._refer(weight, [(self._partner[use.node], use.idx) for use in uses], form)
        tensor = ir.Tensor(np.ascontiguousarray(array), dtype=weight.dtype, name=weight.value.name)
        maker = weight.value.producer()
        if maker is None:
            weight.value.const_value = tensor
        else:
            new = initializer(tensor, self._names.fresh(f"{weight.value.name}_changed"))
            assert maker.graph is not None
            maker.graph.register_initializer(new)
            for use in uses:
                use.node.replace_input_with(use.idx, new)
            sweep(maker, self._names)
        for node in weight.products:
            if node.graph is self.model.graph:
                self._changed[node.outputs[0].name or ""] = place(node)
        return True

    def _refer(self, weight: Weight, reads: Sequence[tuple[ir.Node, int]], form: Form) -> None:
        node, index = reads[0]
        value, graph = node.inputs[index], node.graph
        assert value is not None and graph is not None
        dtype = weight.dtype

        def made(array: Array) -> ir.Value:
            tensor = ir.Tensor(np.asarray(array).astype(dtype.numpy()), dtype=dtype)
            new = initializer(tensor, self._others.fresh(f"{weight.value.name}_reference"))
            graph.register_initializer(new)
            return new

        for reader, at in reads:
            steps = form(value, made)
            for step in steps:
                step.name = self._others.fresh_node(f"{step.op_type}_reference")
                out = step.outputs[0]
                out.name, out.type = self._others.fresh("reference"), ir.TensorType(dtype)
            assert reader.graph is graph
            graph.insert_before(reader, steps)
            reader.replace_input_with(at, steps[-1].outputs[0])

    def finish(self) -> None:
        """Give the report its reference, and say how far the outputs moved."""
        if self.report.applied:
            self.report.reference = self.reference
            tell(self.report, self.before, self.model, self._changed, self.context)


def initializer(tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """Return a constant of a name, to be registered."""
    tensor.name = name
    return ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
