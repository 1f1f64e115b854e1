"""Keep weights in few bits, and leave activations in float."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field, field_validator

from graphopt import Decline, Effect, Names, Pass, PassReport, Tape, all_nodes, clone, selected, substitute

from ..speed import compared
from .blocks import Blocks, Format, rounded
from .calibrated import rounding
from .forms import MICROSOFT, WIDEST_BLOCK, Form, choose, constants, emit
from .places import Place, find
from .stored import CHUNK, Shelf, Stored, dequantized, store

if TYPE_CHECKING:
    from graphopt.context import Context

Quantize = Callable[[np.ndarray[Any, Any]], Blocks]
Site = tuple[Place, Form]

FED_BACK = 1 << 22
"""Numbers that GPTQ rounds at a time: many rows, since it goes through their columns one by one."""


class QuantizeWeights(Pass):
    """Replace the constant matrices of products and lookups by codes of a few bits, a scale for each block of a row.

    ::

        MatMul(x, w)      ->  MatMulNBits(x, codes, scale)              com.microsoft, 2, 4 and 8 bits
        Gather(w, i)      ->  GatherBlockQuantized(codes, i, scale)
        MatMul(x, w)      ->  MatMul(x, DequantizeLinear(codes, scale))         where the target has no such kernel

        w ≈ (codes - zero) * scale      a scale for each ``block_size`` numbers that one output is summed over

    Matrices behind a Transpose and those of Gemm, too. Without ``symmetric`` each block has a zero point as well. With
    one bit, ``w ≈ sign(w) * mean |w|``, the mean over each row. A width that the target cannot store takes the next one
    that it can, which the report says. DequantizeLinear takes blocks from opset 21 on (``raise-opset`` goes before);
    below, 8 bits with a scale for each row are what there is.

    How codes are chosen: ``rtn`` rounds to the nearest on the grid of each block's range; ``hqq`` looks for the grid of
    least squared error, codes and scale in turns; ``gptq`` needs calibration data, and lets the weights to come make up
    for the error of each, and each product for what the ones before it changed. By default gptq where calibration data
    are given, else hqq.

    Memory holds one matrix at a time; codes of more than 256 MB go to a temporary file until the model is saved.

    Lossy: the result equals the model with each matrix replaced by the one that its codes stand for. Where the kernel
    rounds activations too (``activations=int8``), that is proved of the kernel without: onnxruntime rounds them only
    where it may pack the weights, which it may not in a proof. Source: Frantar et al. 2022 (arXiv:2210.17323);
    Badri and Shaji 2023, Half-Quadratic Quantization; Rastegari et al. 2016 (arXiv:1603.05279);
    onnxruntime's com.microsoft MatMulNBits and GatherBlockQuantized, version 1; ONNX DequantizeLinear-21.
    """

    effect: ClassVar[Effect] = Effect.LOSSY

    bits: Literal[8, 4, 2, 1] = Field(4, description="of a weight")
    block_size: int = Field(32, description="numbers of a row that share a scale: 16, 32, 64, 128 or 256")
    method: Literal["rtn", "hqq", "gptq"] | None = Field(
        None, description="how weights are rounded; gptq where calibration data are given, else hqq"
    )
    symmetric: bool = Field(True, description="no zero points: 0 is the middle code")
    activations: Literal["float", "int8"] | None = Field(
        None,
        description="what the kernel multiplies with; by default float at 4 bits, else int8, which is far faster",
    )
    at_least: int = Field(4096, ge=1, description="numbers in a matrix that is worth it")
    include: tuple[str, ...] = Field(
        (), description="only these: operators, names of nodes or weights, modules; * and ?"
    )
    exclude: tuple[str, ...] = Field((), description="not these")

    @field_validator("block_size")
    @classmethod
    def _is_a_block(cls, value: int) -> int:
        if value not in (16, 32, 64, 128, WIDEST_BLOCK):
            raise ValueError("it must be 16, 32, 64, 128 or 256")
        return value

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Quantize lookups, then products in their order."""
        report = PassReport()
        sites = self._plan(model, context, report)
        if not sites:
            return report
        work = _Work(self, model, context, report, sites)
        for i, (place, form, quantize) in enumerate(work.rounding()):
            context.progress("quantizing weights", i, len(sites))
            work.replace(place, form, quantize)
        if report.applied:
            work.finish()
        return report

    def _plan(self, model: ir.Model, context: Context, report: PassReport) -> list[Site]:
        """Return what is to be quantized and how, lookups first."""
        sites: list[Site] = []
        for node in all_nodes(model):
            try:
                place = find(node, self.at_least)
                if place is not None and selected(node, self.include, self.exclude):
                    tape = Tape(node, context)
                    sites.append((place, choose(place, self.bits, self.block_size, self.symmetric, tape)))
            except Decline as reason:
                report.decline(node, str(reason))
        return sorted(sites, key=lambda site: site[0].kind == "product")


class _Work:
    """One run of the pass: the model, its two copies, and what was quantized so far."""

    def __init__(
        self,
        options: QuantizeWeights,
        model: ir.Model,
        context: Context,
        report: PassReport,
        sites: Sequence[Site],
    ) -> None:
        self.options, self.model, self.context, self.report, self.sites = (
            options,
            model,
            context,
            report,
            sites,
        )
        self.before, self.after = clone(model), clone(model)
        """The float model, and the one whose weights are replaced by what their codes stand for."""
        self.partner = dict(zip(all_nodes(model), all_nodes(self.after), strict=True))
        self.names, self.names_after = Names(model), Names(self.after)
        self.shelf = Shelf()
        self.known: dict[tuple[object, ...], tuple[Stored, list[ir.Value]]] = {}
        self.done: list[tuple[Place, Stored]] = []
        self.tied = self._tied()

    def _tied(self) -> set[int]:
        """Return the matrices that are both multiplied with and looked up in: their codes are stored once."""
        kinds: dict[int, set[str]] = {}
        for place, form in self.sites:
            if form.kernel and not place.by_columns and place.columns % form.format.block == 0:
                kinds.setdefault(id(place.tensor), set()).add(place.kind)
        return {key for key, found in kinds.items() if len(found) > 1}

    @property
    def method(self) -> str:
        """The way of rounding."""
        chosen = self.options.method or ("gptq" if self.context.calibration is not None else "hqq")
        return "signs" if self.options.bits == 1 else chosen

    def rounding(self) -> Iterator[tuple[Place, Form, Quantize]]:
        """Yield each place, how it is stored, and what rounds its rows."""
        fed = [site for site in self.sites if self.method == "gptq" and self._is_calibrated(site[0])]
        form_of = {id(place): form for place, form in fed}
        for place, form in self.sites:
            if id(place) not in form_of:
                yield place, form, self._by_itself(form.format)
        if fed:
            places, forms = [place for place, _ in fed], [form.format for _, form in fed]
            for place, quantize in rounding(places, forms, self.before, self.after, self.context):
                yield place, form_of[id(place)], quantize

    def _is_calibrated(self, place: Place) -> bool:
        return (
            place.kind == "product"
            and place.node.graph is self.model.graph
            and id(place.tensor) not in self.tied
        )

    def _by_itself(self, form: Format) -> Quantize:
        return lambda w: rounded(w, form, fit=self.method != "rtn")

    def replace(self, place: Place, form: Form, quantize: Quantize) -> None:
        """Quantize one matrix, and put the node that reads its codes in place."""
        tape = Tape(place.node, self.context)
        tied = id(place.tensor) in self.tied
        kind = "" if tied else place.kind
        laid = place.turned and not form.kernel
        key = (id(place.tensor), place.by_columns, laid, kind, form, place.node.graph)
        if key in self.known:
            stored, values = self.known[key]
        else:
            stored = store(
                place, form.format, quantize, self.shelf, FED_BACK if self.method == "gptq" else CHUNK
            )
            values = constants(place, form, stored, tape, tied)
        partner = self.partner[place.node]
        y = emit(place, form, values, tape, self._accuracy(form))
        self.context.step = self.options.name
        if not substitute(place.node, [y], tape, self.names, self.report, f"{self.options.bits} bits"):
            return
        if form.kernel:
            for graph in (self.model.graph, *(function.graph for function in self.model.functions.values())):
                graph.opset_imports.setdefault(MICROSOFT, 1)
        self.known[key] = stored, values
        self.done.append((place, stored))
        self._round(partner, place, stored)

    def _accuracy(self, form: Form) -> int:
        """Return the kernel's accuracy level: 4 for 8-bit activations, 0 for its default, float."""
        wanted = self.options.activations or ("float" if form.format.bits == 4 else "int8")
        return 4 if wanted == "int8" else 0

    def _round(self, partner: ir.Node, place: Place, stored: Stored) -> None:
        """Let the copy of the node read the numbers that the codes stand for."""
        tape = Tape(partner, self.context)
        value = tape.initializer(dequantized(place, stored), "rounded")
        graph = partner.graph
        assert graph is not None
        value.name = self.names_after.fresh(f"{place.tensor.name}/rounded")
        if tape.in_function:
            graph.insert_before(partner, tape.nodes)
        else:
            graph.register_initializer(value)
        partner.replace_input_with(place.index, value)

    def finish(self) -> None:
        """Give the report its reference, and say what it came to."""
        self.report.reference = self.after
        self.report.notes += self._sizes()
        once = {id(place.tensor): place.tensor.nbytes for place, _ in self.done}
        note = compared(self.before, self.model, sum(once.values()), self.context)
        self.report.notes += [note] if note else []

    def _sizes(self) -> Iterator[str]:
        floats = {id(place.tensor): place.tensor.nbytes for place, _ in self.done}
        codes = {id(stored): stored for _, stored in self.done}
        old, new = sum(floats.values()), sum(stored.nbytes for stored in codes.values())
        kinds = [place.kind for place, _ in self.done]
        counted = f"{kinds.count('product')} products and {kinds.count('lookup')} lookups"
        sizes = f"{old / 1e6:.2f} MB of weights became {new / 1e6:.2f} MB"
        yield f"{counted} ({self.method}): {sizes}, {new / old:.4f} of it"
        widths = {stored.form.bits for stored in codes.values()}
        if widths != {self.options.bits}:
            yield (
                f"the target cannot store {self.options.bits}-bit weights: each takes {max(widths)} bits, "
                f"and the file shrinks no further"
            )
        if self.options.method is None and self.method == "hqq":
            yield "calibration data were not given; with them, method gptq loses less"
