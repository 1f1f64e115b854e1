"""Put QuantizeLinear and DequantizeLinear around what is to run on integers."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from graphopt import Context, Decline, Effect, Pass, PassReport, Shapes, all_nodes, clone, selected
from graphopt.calibration import get_calibrator, observe
from graphopt.scheme import Scheme

from .drift import drift, drifts, told
from .editing import MICROSOFT, PER_AXIS, Editor, Seen, made, opset_of
from .floats import in_floats
from .placement import CARRIERS, JOINS, PRODUCTS, Placement, Spot, product, spread, unpaid
from .rounding import Moments, geometry, observable


class InsertQdq(Pass):
    """Put a Q/DQ pair on each value that an integer kernel reads or makes, with a range from calibration data.

    ::

        y = Relu(Conv(x, w, b))   ->   xd = DequantizeLinear(QuantizeLinear(x, sx, zx), sx, zx)
                                       wd = DequantizeLinear(wq, sw, 0)       bd = DequantizeLinear(bq, sx · sw, 0)
                                       y = Relu(Conv(xd, wd, bd))             yd, likewise, for whatever reads y

    Products with constant weights (Conv, Gemm, MatMul) get pairs, and between them what has an integer kernel or
    merely moves numbers, so that no pair is stranded. A Conv of few products, read by an activation without an
    integer kernel (HardSwish, Swish), stays in floats unless ``include`` names nodes: integers would cost time there.
    Weights become integers by their own largest magnitude, biases 32-bit integers by the product of both scales.
    Behind a Relu or a Clip from 0 the range begins at 0, and the runtime drops it.

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
        return self.resolved(context).insert(model, context, PassReport(), {})

    def insert(
        self,
        model: ir.Model,
        context: Context,
        report: PassReport,
        floats: Mapping[str, str],
        seen: Seen | None = None,
    ) -> PassReport:
        """Put the pairs in, but leave products in ``floats``, for the reason given.

        ``seen`` is what calibration found before, if it ran.
        """
        placement = self.place(model, context, report, floats)
        if not placement.spots:
            return report
        editor = Editor(model, self, placement, seen or self.observe(model, placement, context))
        editor.edit()
        report.restored, _ = in_floats(model)
        nodes = {
            made(spot.node) if spot.output is None else spot.output.name or "": made(spot.node)
            for spot in placement.spots.values()
        }
        stands = {name: name for name in nodes} | editor.stands()
        report.drift = drifts(report.restored, nodes, drift(report.restored, model, stands, context))
        report.notes += told(report.drift)
        return report

    def variant(
        self, model: ir.Model, context: Context, seen: Seen, floats: Collection[str] = ()
    ) -> ir.Model:
        """Return a copy of the model with the pairs in, but not around products in ``floats``."""
        copy = clone(model)
        dry = Context(copy, target=context.target, seed=context.seed)
        placement = self.place(copy, dry, PassReport(), dict.fromkeys(floats, ""))
        Editor(copy, self, placement, seen).edit()
        return copy

    def planned(self, model: ir.Model, context: Context) -> Placement:
        """Return where pairs would go."""
        dry = Context(model, target=context.target, seed=context.seed)
        return self.place(model, dry, PassReport(), {})

    def resolved(self, context: Context) -> InsertQdq:
        """Return the pass with what the target decides."""
        known = context.target.integers() if context.target is not None else None
        reduce_range = known is not None and known.reduce_range
        return self.model_copy(
            update={"reduce_range": reduce_range if self.reduce_range is None else self.reduce_range}
        )

    def place(
        self, model: ir.Model, context: Context, report: PassReport, floats: Mapping[str, str]
    ) -> Placement:
        """Decide which nodes run on integers; number them, and say of the others why not.

        ``floats`` are products that are to stay as they are, by the first value that they make, and why.
        """
        placement, nodes = Placement(), list(model.graph)
        own = context.target is None or context.target.supports(MICROSOFT, "QuantizeLinear")
        if opset_of(model) < PER_AXIS and not own:
            report.notes.append(
                f"opset {opset_of(model)} knows no scales along an axis: nothing is quantized; "
                f"put raise-opset{{to={PER_AXIS}}} before"
            )
            return placement
        shapes = context.analysis(Shapes)
        for node in nodes:
            shapes.infer(node)  # an exporter need not say of which type values are
        wanted = frozenset(self.operators or (*PRODUCTS, *JOINS, *CARRIERS))
        for node in all_nodes(model):
            if node.graph is not model.graph and node.op_type in wanted.intersection(PRODUCTS):
                report.decline(
                    node, "it is in a branch, a loop or a function, whose values are not calibrated"
                )
        products = list(self._products(nodes, wanted, floats, report))
        dear = unpaid(products) if not self.include else {}
        for spot in products:
            if spot.node in dear:
                report.decline(spot.node, dear[spot.node])
            elif context.admit(report, spot.node, f"{self.activations} × {self.weights}"):
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

    def _products(
        self, nodes: Iterable[ir.Node], wanted: Container[str], floats: Mapping[str, str], report: PassReport
    ) -> Iterator[Spot]:
        """Yield the products that can run on integers, and say of the others why not."""
        for node in nodes:
            if node.op_type not in PRODUCTS or node.domain != "" or node.op_type not in wanted:
                continue
            if made(node) in floats:
                report.decline(node, floats[made(node)])
                continue
            try:
                yield self._product(node)
            except Decline as reason:
                report.decline(node, str(reason))

    def _product(self, node: ir.Node) -> Spot:
        if not selected(node, self.include, self.exclude):
            raise Decline("it is excluded" if self.exclude else "it is not included")
        return product(node)

    def observe(self, model: ir.Model, placement: Placement, context: Context) -> Seen:
        """Return the range of each value that may get a pair, and what is known of what layers read."""
        seen = Seen()
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
                seen.moments[made(spot.node)] = shared[known]
        observe(model, observers, context)
        ranges = {value: one.range() for value, one in watched.items()}
        seen.ranges = {value.name or "": ranges[placement.source(value)] for value in placement.shares}
        return seen

    @property
    def scheme(self) -> Scheme:
        """The integers of activations."""
        return Scheme(ir.DataType[(self.activations or "uint8").upper()], symmetric=self.symmetric)

    @property
    def weight_scheme(self) -> Scheme:
        """The integers of weights: always symmetric, which kernels are fastest at."""
        return Scheme(ir.DataType[self.weights.upper()], symmetric=True, reduce_range=bool(self.reduce_range))
