"""Quantize activations while the model runs, and weights beforehand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from graphopt import (
    Context,
    Decline,
    Effect,
    InputError,
    Names,
    Pass,
    PassReport,
    Tape,
    all_nodes,
    clone,
    selected,
    substitute,
)
from graphopt.calibration import observe
from graphopt.scheme import Scheme

from ..speed import Speed, measured
from .drift import drift, drifts, told
from .dynamic_forms import (
    BIASES,
    ITSELF,
    MICROSOFT,
    Quantized,
    Weights,
    choose,
    constants,
    emit,
    quantized,
    restored,
)
from .dynamic_products import Integers, Product, product, rounded
from .rounding import Moments, geometry, observable


class QuantizeDynamic(Pass):
    """Let products by constant matrices multiply integers: activations are quantized as they come, without calibration.

    ::

        y = MatMul(x, w) + b   ->   y = DynamicQuantizeMatMul(x, wq, sw, 0, b)         com.microsoft

        yᵢ = MatMul(x, wᵢ)     ->   xq, sx, zx = DynamicQuantizeLinear(x)              where several read x
                                    yᵢ = MatMulIntegerToFloat(xq, wᵢq, sx, swᵢ, zx)    com.microsoft
                                    yᵢ = Cast(MatMulInteger(xq, wᵢq, zx)) · (sx · swᵢ)   where the target has neither

        w ≈ wq · sw      a scale for each output, by its largest magnitude; of x one scale for each run, by its range

    The bias of a Gemm and that in an Add behind a MatMul go in, too. Where calibration data are given, weights are
    rounded such that their errors make up for each other, else to nearest; and ``smooth-activations`` before helps,
    since one scale for all of x suffers from a few large channels. Weights that integers cannot hold, tables
    that are looked up in, and convolutions stay floats.

    Where the target is at hand the result is measured, and where it is not faster the model stays as it was: it would
    lose accuracy for nothing. Models of less than 1 MB of such weights are not measured.

    Lossy: with the float products back, the result must be what it was.
    Source: ONNX DynamicQuantizeLinear-11, MatMulInteger-10, ConvInteger-10; onnxruntime's com.microsoft
    DynamicQuantizeMatMul and MatMulIntegerToFloat, version 1; Frantar et al. 2022 (arXiv:2210.17323).
    """

    effect: ClassVar[Effect] = Effect.LOSSY

    weights: Literal["int8", "uint8"] = Field(
        "int8", description="integers of weights; uint8 takes longer, and is exact on AVX2 at all 8 bits"
    )
    per_channel: bool = Field(True, description="a scale for each output channel of a weight")
    reduce_range: bool | None = Field(
        None,
        description="leave one bit of int8 weights unused; by default where the target's sums would saturate",
    )
    operators: tuple[str, ...] = Field(
        (),
        description="operators to quantize, of MatMul, Gemm and Conv; MatMul and Gemm where none are named",
    )
    include: tuple[str, ...] = Field((), description="patterns of nodes, weights or modules to quantize")
    exclude: tuple[str, ...] = Field(
        (), description="patterns of nodes, weights or modules to leave in floats"
    )
    at_least: int = Field(4096, ge=1, description="numbers in weights that are worth it")
    measured: bool = Field(True, description="stay float where the result does not measure faster")

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Plan, round, measure on a copy, then edit."""
        report = PassReport()
        sites = self._plan(model, context, report)
        if not sites:
            return report
        outputs = tuple(site.product.node.outputs[0].name for site in sites)
        speed = context.once((self, outputs), lambda: self._speed(model, sites, context))
        if speed is not None and speed.verdict and not speed.faster and self.measured:
            for site in sites:
                report.decline(site.product.node, "the model does not measure faster with integers")
            report.notes.append(
                f"{speed.text}, and stays in floats (measured=false quantizes it all the same)"
            )
            return report
        notes = [*self._told(sites), *([speed.text] if speed is not None else [])]
        results = {
            site.product.last.outputs[0].name or "": site.product for site in sites if site.is_on_top(model)
        }
        nodes = {name: given.node.outputs[0].name or "" for name, given in results.items()}
        _replace(model, sites, context, report)
        if report.applied:
            report.restored = restored(model)
            report.notes += notes
            _tell_drift(report.restored, model, nodes, context, report)
        return report

    def _speed(self, model: ir.Model, sites: list[Site], context: Context) -> Speed | None:
        """Return how long a copy of the model takes with integers."""
        trial = clone(model)
        partner = dict(zip(all_nodes(model), all_nodes(trial), strict=True))
        moved = [site.moved(partner) for site in sites]
        _replace(trial, moved, Context(trial, target=context.target), PassReport())
        return measured(model, trial, sum(site.product.tensor.nbytes for site in sites), context)

    def _plan(self, model: ir.Model, context: Context, report: PassReport) -> list[Site]:
        """Return what is to be quantized and how, in the order in which it is put in."""
        nodes = list(all_nodes(model))
        found = list(self._products(nodes, report))
        moments = self._moments(model, found, context)
        readers = Counter((given.x, given.node.graph) for given in found)
        sites: list[Site] = []
        known: dict[tuple[int, bool], Integers] = {}
        for i, given in enumerate(found):
            context.progress("quantizing weights", i, len(found))
            try:
                among = readers[given.x, given.node.graph]
                op_type, whole = choose(given, among, Tape(given.node, context))
                key = (id(given.tensor), given.by_columns)
                seen = moments.get(given.node)
                integers = known.get(key) if seen is None else None
                integers = integers or rounded(whole, self._scheme(context), self.per_channel, seen)
                if seen is None:
                    known[key] = integers
                sites.append(Site(whole, op_type, integers))
            except Decline as reason:
                report.decline(given.node, str(reason))
        place = {node: i for i, node in enumerate(nodes)}
        return sorted(sites, key=lambda site: place[site.product.last])

    def _products(self, nodes: list[ir.Node], report: PassReport) -> Iterator[Product]:
        for node in nodes:
            try:
                given = product(node, self.operators, self.at_least)
            except Decline as reason:
                report.decline(node, str(reason))
                continue
            if given is not None and selected(node, self.include, self.exclude):
                yield given
            elif given is not None:
                report.decline(node, "it is excluded" if self.exclude else "it is not included")

    def _scheme(self, context: Context) -> Scheme:
        """The integers of weights: symmetric, so that int8 needs no zero point."""
        known = context.target.integers() if context.target is not None else None
        reduced = known is not None and known.reduce_range if self.reduce_range is None else self.reduce_range
        signed = self.weights == "int8"
        return Scheme(ir.DataType[self.weights.upper()], symmetric=True, reduce_range=signed and reduced)

    def _moments(self, model: ir.Model, found: list[Product], context: Context) -> dict[ir.Node, Moments]:
        """Return what calibration data show of what products read, where there are such."""
        if context.calibration is None or self.weights != "int8":
            return {}
        shared: dict[object, Moments] = {}
        moments = {}
        observers: dict[str, list[Moments]] = {}
        for given in found:
            if given.node.graph is not model.graph or not observable(given.node):
                continue
            key = (given.x, geometry(given.node))
            if key not in shared:
                shared[key] = Moments(given.node, context.seed)
                observers.setdefault(given.x.name or "", []).append(shared[key])
            moments[given.node] = shared[key]
        if observers:
            observe(model, observers, context)
        return moments

    def _told(self, sites: list[Site]) -> list[str]:
        """Return what it came to."""
        floats = {id(site.product.tensor): site.product.tensor.nbytes for site in sites}
        codes = {id(site.integers): site.integers.nbytes for site in sites}
        old, new = sum(floats.values()), sum(codes.values())
        notes = [
            f"{len(sites)} products: {old / 1e6:.2f} MB of weights became {new / 1e6:.2f} MB, {new / old:.4f} of it"
        ]
        read = [(site.product.x, site.product.node.graph) for site in sites if site.op_type != ITSELF]
        if len(set(read)) < len(read):
            notes.append(f"{len(set(read))} values that {len(read)} products read are quantized once each")
        return notes


@dataclass(frozen=True)
class Site:
    """One product, the operator that it becomes, and its weights."""

    product: Product
    op_type: str
    integers: Integers

    def is_on_top(self, model: ir.Model) -> bool:
        """Whether it stands in the main graph, whose values can be looked at."""
        return self.product.node.graph is model.graph

    def moved(self, partner: Mapping[ir.Node, ir.Node]) -> Site:
        """Return the same of a copy of the model, whose nodes are the partners of this one's."""
        node, last = partner[self.product.node], partner[self.product.last]
        return replace(self, product=replace(self.product, node=node, last=last))


def _replace(model: ir.Model, sites: list[Site], context: Context, report: PassReport) -> None:
    """Put the products in; each is one numbered edit."""
    names = Names(model)
    inputs: dict[tuple[ir.Value, ir.Graph | None], Quantized] = {}
    weights: dict[tuple[int, ir.Graph | None], Weights] = {}
    context.step = QuantizeDynamic.name
    for site in sites:
        given, graph = site.product, site.product.node.graph
        tape = Tape(given.last, context)
        x = None if site.op_type == ITSELF else inputs.get((given.x, graph)) or quantized(given.x, tape)
        w = weights.get((id(site.integers), graph)) or constants(given, site.integers, tape)
        y = emit(given, site.op_type, w, site.integers.shift, x, tape)
        source = given.x
        if not substitute(given.last, [y], tape, names, report, site.op_type):
            continue
        weights[id(site.integers), graph] = w
        if x is not None:
            inputs[source, graph] = x
    if weights and any(site.op_type in BIASES for site in sites):
        for body in (model.graph, *(function.graph for function in model.functions.values())):
            body.opset_imports.setdefault(MICROSOFT, 1)


def _tell_drift(
    before: ir.Model, after: ir.Model, nodes: Mapping[str, str], context: Context, report: PassReport
) -> None:
    """Report how far the products and the outputs are from float, where there are inputs to look at."""
    if context.calibration is None and not context.has_given_samples:
        return
    made = {value.name or "" for node in after.graph for value in node.outputs}
    names = [*nodes, *(value.name or "" for value in after.graph.outputs)]
    stands = {name: name for name in names if name in made}
    try:
        report.drift = drifts(before, nodes, drift(before, after, stands, context))
    except InputError as error:
        report.notes.append(f"how far values are from float was not measured: {error}")
    report.notes += told(report.drift)
