"""Put Q/DQ pairs around the nodes of a placement, and integers in place of their weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt import Names
from graphopt.query import attribute, constant, is_constant, is_op, opset

from .floats import FLOAT
from .placement import Placement, Spot
from .rounding import Moments, fed_back

if TYPE_CHECKING:
    from .insert_qdq import InsertQdq

MICROSOFT = "com.microsoft"
PER_AXIS, WIDE = 13, 21
"""ONNX's operators scale along an axis from opset 13 on, and take 16 and 4 bits from 21 on."""
Array = Any


@dataclass
class Seen:
    """What calibration found out about a model, by the names of its values; it holds for copies of the model too."""

    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of each value that may get a pair."""
    moments: dict[str, Moments] = field(default_factory=dict)
    """Of what a layer reads, by the first value that the layer makes."""
    rounded: dict[str, tuple[Array, Array, Array]] = field(default_factory=dict)
    """The integers of a layer's weights, their scales and what the bias takes on, once they were computed."""


def made(node: ir.Node) -> str:
    """Return the name by which a node is known in all copies of a model: that of the first value it makes."""
    return node.outputs[0].name or ""


BIAS_LIMIT = 2**30
"""Larger integers of biases leave no room for the products that a kernel adds to them in 32 bits."""


class Editor:
    """Puts the pairs in, and remembers what stands for what."""

    def __init__(self, model: ir.Model, options: InsertQdq, placement: Placement, seen: Seen) -> None:
        self.model, self.options, self.placement, self.seen = model, options, placement, seen
        self.graph = model.graph
        self.integers = placement.integers()
        self.names = Names(model)
        self.pairs: dict[ir.Value, ir.Value] = {}
        """What stands for a value behind its pair."""
        self.scales: dict[ir.Value, tuple[ir.Value, ir.Value, Array]] = {}

    def edit(self) -> None:
        """Edit each node of the placement."""
        for spot in self.placement.spots.values():
            self._edit(spot)
        for pair in self.pairs.values():
            self._shield(pair)

    def _edit(self, spot: Spot) -> None:
        """Let a node read integers, and give integers where it has an output to be quantized."""
        node = spot.node
        scale: Array = None
        for i, value in spot.inputs.items():
            node.replace_input_with(i, self._pair(value))
            scale = self.scales[self.placement.source(value)][2]
        if spot.output is not None:
            self._pair(spot.output)
        if spot.weight is not None:
            self._weights(spot, scale)

    def _pair(self, value: ir.Value) -> ir.Value:
        """Return what stands for ``value`` behind its pair, which is made where there is none yet."""
        if value in self.pairs:
            return self.pairs[value]
        scale, zero_point, _ = self._parameters(self.placement.source(value))
        readers = list(value.uses()) if value in self.integers else []
        q = self._node("QuantizeLinear", [value, scale, zero_point], f"{value.name}_quantized")
        q.outputs[0].type = ir.TensorType(self.options.scheme.dtype)
        dq = self._node("DequantizeLinear", [q.outputs[0], scale, zero_point], f"{value.name}_dequantized")
        dq.outputs[0].type = value.type
        for node in (q, dq):
            node.outputs[0].shape = value.shape
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, [q, dq])
        else:
            self.graph.insert_before(self.graph[0], [q, dq])
        for use in readers:
            use.node.replace_input_with(use.idx, dq.outputs[0])
        self.pairs[value] = dq.outputs[0]
        return dq.outputs[0]

    def _shield(self, pair: ir.Value) -> None:
        """Let products in floats read the pair through a Clip without bounds, which changes nothing.

        onnxruntime (WeightBiasQuantization) rounds the float weights of what reads a DequantizeLinear itself, to 8
        bits with one scale for all channels.
        """
        uses = [use for use in pair.uses() if use.idx == 0 and _in_floats(use.node)]
        if not uses:
            return
        clip = ir.node("Clip", [pair])
        clip.name = self.names.fresh_node(f"{pair.name}_as_float")
        value = clip.outputs[0]
        value.name, value.type, value.shape = self.names.fresh(f"{pair.name}_as_float"), pair.type, pair.shape
        maker = pair.producer()
        assert maker is not None
        self.graph.insert_after(maker, clip)
        for use in uses:
            use.node.replace_input_with(0, value)

    def _parameters(self, value: ir.Value) -> tuple[ir.Value, ir.Value, Array]:
        if value not in self.scales:
            scheme = self.options.scheme
            scale, zero_point = scheme.parameters(*self.seen.ranges[value.name or ""])
            self.scales[value] = (
                self._initializer(scale, f"{value.name}_scale"),
                self._initializer(zero_point.astype(scheme.dtype.numpy()), f"{value.name}_zero_point"),
                scale,
            )
        return self.scales[value]

    def _weights(self, spot: Spot, activation_scale: Array) -> None:
        node, dtype = spot.node, self.options.weight_scheme.dtype
        assert spot.weight is not None
        value = node.inputs[spot.weight]
        assert value is not None
        axis = output_axis(node, len(value.shape or ()))
        if made(node) not in self.seen.rounded:
            self.seen.rounded[made(node)] = self._rounded(spot, constant(value), axis, activation_scale)
        q, scale, shift = self.seen.rounded[made(node)]
        self._constant(spot, spot.weight, q, dtype, scale, axis)
        if spot.bias is None:
            return
        b = constant(node.inputs[spot.bias]) + shift
        scales = np.broadcast_to((scale * activation_scale).reshape(-1), b.shape).astype(np.float64)
        rounded = np.clip(np.rint(b / scales), -(2**31), 2**31 - 1).astype(np.int64)
        self._constant(spot, spot.bias, rounded, ir.DataType.INT32, scales.astype(np.float32), 0)

    def _rounded(self, spot: Spot, w: Array, axis: int, x_scale: Array) -> tuple[Array, Array, Array]:
        """Return the integers of weights, their scales, and what their errors add to the bias on average."""
        scheme, moments = self.options.weight_scheme, self.seen.moments.get(made(spot.node))
        rows = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)  # a row for each output
        largest = np.abs(rows).max(1, keepdims=True) if self.options.per_channel else np.abs(w).max()
        if spot.bias is not None:  # weights near 0 would get a scale by which the bias overflows
            b = np.abs(constant(spot.node.inputs[spot.bias])).reshape(-1, 1)
            least = b * scheme.limits[1] / (x_scale * BIAS_LIMIT)
            largest = np.maximum(largest, least if self.options.per_channel else least.max())
        scale, zero_point = scheme.parameters(-largest, largest)
        shift: Array = 0.0
        if moments is not None and moments.count and scheme.dtype.is_signed():
            q, shift = fed_back(rows, scale, scheme, moments, spot.bias is not None)
        else:
            q = scheme.quantize(rows, scale, zero_point)
        shape = [w.shape[axis], *(size for i, size in enumerate(w.shape) if i != axis)]
        return np.moveaxis(q.astype(scheme.dtype.numpy()).reshape(shape), 0, axis), scale, shift

    def _constant(
        self, spot: Spot, index: int, q: Array, dtype: ir.DataType, scale: Array, axis: int
    ) -> None:
        """Let operand ``index`` be integers behind a DequantizeLinear."""
        node, value = spot.node, spot.node.inputs[index]
        assert value is not None and value.const_value is not None
        scales = scale.reshape(-1)
        single = scales.size == 1 or (scales == scales[0]).all()
        scales = scales[0] if single and not (self.options.per_channel and q.ndim > 1) else scales
        stem = value.name or "weight"
        integers = self._initializer(q.astype(dtype.numpy()), f"{stem}_quantized", dtype)
        operands = [
            integers,
            self._initializer(np.asarray(scales, np.float32), f"{stem}_scale"),
            self._initializer(np.zeros(np.shape(scales), dtype.numpy()), f"{stem}_zero_point", dtype),
        ]
        dq = self._node(
            "DequantizeLinear", operands, f"{stem}_dequantized", {"axis": axis} if np.ndim(scales) else {}
        )
        dq.outputs[0].type, dq.outputs[0].shape = value.type, value.shape
        self.graph.insert_before(node, dq)
        node.replace_input_with(index, dq.outputs[0])
        dq.outputs[0].meta[FLOAT] = value.const_value
        if not value.uses() and not value.is_graph_output() and value.is_initializer():
            self.graph.initializers.pop(value.name or "")

    def _initializer(self, array: Array, stem: str, dtype: ir.DataType | None = None) -> ir.Value:
        tensor = ir.Tensor(np.asarray(array), dtype=dtype, name=self.names.fresh(stem))
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def _node(self, op_type: str, inputs: Iterable[ir.Value], name: str, attributes: Any = None) -> ir.Node:
        since = WIDE if self.options.scheme.dtype.bitwidth > 8 or self.options.weights == "int4" else PER_AXIS
        domain = "" if opset(self.graph[0]) >= since or opset_of(self.model) >= since else MICROSOFT
        if domain:
            self.model.graph.opset_imports.setdefault(domain, 1)
        node = ir.node(op_type, list(inputs), attributes or {}, domain=domain)
        node.name, node.outputs[0].name = self.names.fresh_node(name), self.names.fresh(name)
        return node

    def stands(self) -> dict[str, str]:
        """Return what is to be compared: each value that nodes make, and what stands for it behind its pair."""
        ends = {value.name or "" for value in self.graph.outputs}
        alive = {value.name or "" for node in self.graph for value in node.outputs}
        return {name: name for name in ends & alive} | {
            value.name or "": pair.name or ""
            for value, pair in self.pairs.items()
            if value.producer() is not None
        }


def _in_floats(node: ir.Node) -> bool:
    """Return whether a node multiplies by float weights that onnxruntime would round."""
    return is_op(node, "Conv", "ConvTranspose", "Gemm") and is_constant(node.inputs[1])


def opset_of(model: ir.Model) -> int:
    """Return the ONNX opset that the main graph imports."""
    return model.graph.opset_imports.get("") or 1


def output_axis(node: ir.Node, rank: int) -> int:
    """Return the axis of the weight along which the output channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1
