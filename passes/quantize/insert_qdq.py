"""Put QuantizeLinear and DequantizeLinear around what is to run on integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt import Context, Decline, Effect, Names, Pass, PassReport, Shapes, clone, selected
from graphopt.calibration import get_calibrator, observe
from graphopt.query import attribute, constant, opset
from graphopt.scheme import Scheme

from .drift import drift, told
from .floats import FLOAT
from .placement import CARRIERS, JOINS, PRODUCTS, Placement, Spot, product, spread
from .rounding import Moments, fed_back, geometry, observable

MICROSOFT = "com.microsoft"
PER_AXIS, WIDE = 13, 21
"""ONNX's operators scale along an axis from opset 13 on, and take 16 and 4 bits from 21 on."""
Array = Any


class InsertQdq(Pass):
    """Put a Q/DQ pair on each value that an integer kernel reads or makes, with a range from calibration data.

    ::

        y = Relu(Conv(x, w, b))   ->   xd = DequantizeLinear(QuantizeLinear(x, sx, zx), sx, zx)
                                       wd = DequantizeLinear(wq, sw, 0)       bd = DequantizeLinear(bq, sx · sw, 0)
                                       y = Relu(Conv(xd, wd, bd))             yd, likewise, for whatever reads y

    Products with constant weights (Conv, Gemm, MatMul) get pairs, and between them what has an integer kernel or
    merely moves numbers, so that no pair is stranded. Weights become integers by their own largest magnitude, biases
    32-bit integers by the product of both scales. Behind a Relu or a Clip from 0 the range begins at 0, and the
    runtime drops it.

    Lossy: without its pairs, and with the float weights in place of the integers, the result must be what it was.
    Source: ONNX QuantizeLinear-10 to 25; Jacob et al. 2018 (arXiv:1712.05877), section 2.
    """

    effect: ClassVar[Effect] = Effect.LOSSY

    activations: Literal["uint8", "int8", "uint16", "int16"] = Field(
        "uint8", description="integers of activations"
    )
    weights: Literal["int8", "int4"] = Field("int8", description="integers of weights")
    per_channel: bool = Field(True, description="a scale for each output channel of a weight")
    symmetric: bool = Field(False, description="let 0 be the middle of the activations' integers")
    calibrator: str = Field(
        "percentile", description="how ranges are found: the name of a registered calibrator"
    )
    operators: tuple[str, ...] = Field(
        (), description="operators to quantize; all that can be where none are named"
    )
    include: tuple[str, ...] = Field((), description="patterns of nodes, weights or modules to quantize")
    exclude: tuple[str, ...] = Field(
        (), description="patterns of nodes, weights or modules to leave in floats"
    )
    rounding: Literal["feedback", "nearest"] = Field(
        "feedback", description="round weights so that errors make up for each other, or each by itself"
    )
    reduce_range: bool | None = Field(
        None, description="leave one bit of weights unused; by default where the target's sums would saturate"
    )

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Place, calibrate, and put the pairs in."""
        known = context.target.integers() if context.target is not None else None
        scheme = {
            "activations": self.activations or (known.activations if known else "uint8"),
            "reduce_range": known is not None and known.reduce_range
            if self.reduce_range is None
            else self.reduce_range,
        }
        return self.model_copy(update=scheme)._run(model, context)

    def _run(self, model: ir.Model, context: Context) -> PassReport:
        report = PassReport()
        own = context.target is None or context.target.supports(MICROSOFT, "QuantizeLinear")
        if opset_of(model) < PER_AXIS and not own:
            report.notes.append(
                f"opset {opset_of(model)} knows no scales along an axis: nothing is quantized; "
                f"put raise-opset{{to={PER_AXIS}}} before"
            )
            return report
        placement = self._place(model, context, report)
        if not placement.spots:
            return report
        ranges, moments = self._ranges(model, placement, context)
        editor = _Editor(model, self, placement, ranges, moments)
        for spot in placement.spots.values():
            editor.edit(spot)
        report.restored = editor.restored()
        outputs = {value.name or "": value.name or "" for value in model.graph.outputs}
        stands = {name: name for name in outputs if name in editor.made()} | {
            value.name or "": pair.name or ""
            for value, pair in editor.pairs.items()
            if value.producer() is not None
        }
        nodes = {
            spot.output.name or "": spot.node.outputs[0].name or ""
            for spot in placement.spots.values()
            if spot.output is not None and spot.weight is not None
        }
        found = drift(report.restored, model, stands, context)
        report.notes += told(report.restored, nodes, found)
        return report

    def _place(self, model: ir.Model, context: Context, report: PassReport) -> Placement:
        """Decide which nodes run on integers; number them, and say of the others why not."""
        placement, nodes = Placement(), list(model.graph)
        shapes = context.analysis(Shapes)
        for node in nodes:
            shapes.infer(node)  # an exporter need not say of which type values are
        wanted = frozenset(self.operators or (*PRODUCTS, *JOINS, *CARRIERS))
        for node in nodes:
            if node.op_type not in PRODUCTS or node.domain != "" or node.op_type not in wanted:
                continue
            try:
                spot = self._product(node)
            except Decline as reason:
                report.decline(node, str(reason))
                continue
            if context.admit(report, node, f"{self.activations} × {self.weights}"):
                placement.add(spot)
        for spot in spread(placement, nodes, wanted):
            if not selected(spot.node, (), self.exclude):
                report.decline(spot.node, "it is excluded")
            elif context.admit(report, spot.node, self.activations):
                placement.add(spot)
                if spot.node.op_type in CARRIERS and spot.output is not None:
                    placement.shares[spot.output] = spot.inputs[0]
        placement.settle()
        return placement

    def _product(self, node: ir.Node) -> Spot:
        if not selected(node, self.include, self.exclude):
            raise Decline("it is excluded" if self.exclude else "it is not included")
        return product(node)

    def _ranges(
        self, model: ir.Model, placement: Placement, context: Context
    ) -> tuple[dict[ir.Value, tuple[float, float]], dict[ir.Node, Moments]]:
        """Return the range of each value that has one of its own, and what is known of what layers read."""
        moments: dict[ir.Node, Moments] = {}
        make, scheme = get_calibrator(self.calibrator), self.scheme
        sources = list(dict.fromkeys(placement.source(value) for value in placement.shares))
        watched = {value: make(scheme) for value in sources}
        observers: dict[str, list[Any]] = {value.name or "": [one] for value, one in watched.items()}
        shared: dict[Any, Moments] = {}
        for spot in placement.spots.values():
            if self.rounding == "feedback" and spot.weight is not None and observable(spot.node):
                (x,) = spot.inputs.values()
                known = (x, geometry(spot.node))
                if known not in shared:
                    shared[known] = Moments(spot.node, context.seed)
                    observers.setdefault(x.name or "", []).append(shared[known])
                moments[spot.node] = shared[known]
        observe(model, observers, context)
        return {value: one.range() for value, one in watched.items()}, moments

    @property
    def scheme(self) -> Scheme:
        """The integers of activations."""
        return Scheme(ir.DataType[(self.activations or "uint8").upper()], symmetric=self.symmetric)

    @property
    def weight_scheme(self) -> Scheme:
        """The integers of weights: always symmetric, which kernels are fastest at."""
        return Scheme(ir.DataType[self.weights.upper()], symmetric=True, reduce_range=bool(self.reduce_range))


class _Editor:
    """Puts the pairs in, and remembers what the integers stand for."""

    def __init__(
        self,
        model: ir.Model,
        options: InsertQdq,
        placement: Placement,
        ranges: Mapping[ir.Value, tuple[float, float]],
        moments: Mapping[ir.Node, Moments],
    ) -> None:
        self.model, self.options, self.placement, self.ranges = model, options, placement, ranges
        self.moments = moments
        self.graph = model.graph
        self.integers = placement.integers()
        self.names = Names(model)
        self.pairs: dict[ir.Value, ir.Value] = {}
        """What stands for a value behind its pair."""
        self.floats: dict[str, ir.TensorProtocol] = {}
        """The float weights, by the name of the value that stands for them."""
        self.scales: dict[ir.Value, tuple[ir.Value, ir.Value, Array]] = {}

    def made(self) -> set[str]:
        """Return the names of what nodes make."""
        return {value.name or "" for node in self.graph for value in node.outputs}

    def edit(self, spot: Spot) -> None:
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
        for made in (q, dq):
            made.outputs[0].shape = value.shape
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, [q, dq])
        else:
            self.graph.insert_before(self.graph[0], [q, dq])
        for use in readers:
            use.node.replace_input_with(use.idx, dq.outputs[0])
        self.pairs[value] = dq.outputs[0]
        return dq.outputs[0]

    def _parameters(self, value: ir.Value) -> tuple[ir.Value, ir.Value, Array]:
        if value not in self.scales:
            scheme = self.options.scheme
            scale, zero_point = scheme.parameters(*self.ranges[value])
            self.scales[value] = (
                self._initializer(scale, f"{value.name}_scale"),
                self._initializer(zero_point.astype(scheme.dtype.numpy()), f"{value.name}_zero_point"),
                scale,
            )
        return self.scales[value]

    def _weights(self, spot: Spot, activation_scale: Array) -> None:
        node, scheme = spot.node, self.options.weight_scheme
        assert spot.weight is not None
        value = node.inputs[spot.weight]
        assert value is not None
        w = constant(value)
        axis = _channels(node, w.ndim)
        rows = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)  # a row for each output
        largest = np.abs(rows).max(1, keepdims=True) if self.options.per_channel else np.abs(w).max()
        scale, zero_point = scheme.parameters(-largest, largest)
        shift: Array = 0.0
        if node in self.moments and self.moments[node].count and scheme.dtype.is_signed():
            q, shift = fed_back(rows, scale, scheme, self.moments[node], spot.bias is not None)
        else:
            q = scheme.quantize(rows, scale, zero_point)
        shape = [w.shape[axis], *(size for i, size in enumerate(w.shape) if i != axis)]
        self._constant(spot, spot.weight, np.moveaxis(q.reshape(shape), 0, axis), scheme.dtype, scale, axis)
        if spot.bias is None:
            return
        b = constant(node.inputs[spot.bias]) + shift
        scales = np.broadcast_to((scale * activation_scale).reshape(-1), b.shape).astype(np.float64)
        rounded = np.clip(np.rint(b / scales), -(2**31), 2**31 - 1).astype(np.int64)
        self._constant(spot, spot.bias, rounded, ir.DataType.INT32, scales.astype(np.float32), 0)

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
        self.floats[dq.outputs[0].name or ""] = dq.outputs[0].meta[FLOAT] = value.const_value
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

    def restored(self) -> ir.Model:
        """Return the result with the float weights in place of the integers, and without the pairs."""
        model = clone(self.model)
        for node in list(model.graph):
            if node.op_type != "DequantizeLinear":
                continue
            (output,) = node.outputs
            made = node.inputs[0].producer() if node.inputs[0] is not None else None
            if output.name in self.floats:
                tensor = self.floats[output.name]
                value = ir.Value(
                    name=f"{output.name}_float",
                    type=ir.TensorType(tensor.dtype),
                    shape=ir.Shape(tensor.shape.numpy()),
                    const_value=tensor,
                )
                model.graph.register_initializer(value)
            elif made is not None and made.op_type == "QuantizeLinear" and made.inputs[0] is not None:
                value = made.inputs[0]
            else:
                continue
            output.replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
            if made is not None and not made.outputs[0].uses():
                model.graph.remove(made, safe=True)
        return model


def opset_of(model: ir.Model) -> int:
    """Return the ONNX opset that the main graph imports."""
    return model.graph.opset_imports.get("") or 1


def _channels(node: ir.Node, rank: int) -> int:
    """Return the axis of the weight along which the output channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1
