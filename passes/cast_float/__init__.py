"""Compute in 16 bits where that overflows nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from graphopt import Decline, Effect, Pass, PassReport, Shapes, all_nodes, clone, selected

from ..speed import compared
from . import ranges
from .choice import choose
from .edit import Editor
from .operators import FLOAT, Ports, ports

if TYPE_CHECKING:
    from graphopt.context import Context


class CastFloat(Pass):
    """Let nodes compute in float16 or bfloat16 instead of float, and their weights lie in it.

    ::

        MatMul(x, w)             ->  Cast(MatMul(Cast(x, float16), float16(w)), float)
        Relu(MatMul(x, w))       ->  Cast(Relu(MatMul(Cast(x, float16), float16(w))), float)    no casts between two
        Cast(n, float)           ->  Cast(n, float16)

    Inputs and outputs of the model keep their types. What stays in float: nodes that match ``keep``; operators of
    which the target has no kernel, or ONNX no definition, in the shorter type; nodes with a constant beyond its largest
    number (65504 in float16), or whose epsilon would become 0; with calibration data, nodes whose inputs or outputs
    come within a factor of two of the largest number; what counts positions, and casts to integers.

    No cast is made for nothing: products, convolutions and nodes with large weights are cast wherever they can be, all
    others only where that makes no more casts than it takes away (a minimum cut of the graph).

    Lossy: with all casts taken out and the weights in float again, the result equals the original. Source: IEEE
    754-2008, binary16; Micikevicius et al. 2018 (arXiv:1710.03740), section 3, on what stays in float; ONNX Cast-13
    to 25, and the type constraints of ONNX's operators.
    """

    effect: ClassVar[Effect] = Effect.LOSSY

    to: Literal["float16", "bfloat16"] = Field("float16", description="the type to compute in")
    keep: tuple[str, ...] = Field(
        (), description="what stays in float: operators, names of nodes or weights, modules; * and ?"
    )

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Find the nodes that can be cast, choose among them, and cast."""
        report = PassReport()
        to = ir.DataType[self.to.upper()]
        able = self._able(model, context, to, report)
        chosen = choose(model.graph, able)
        short = {
            node: able[node]
            for node in model.graph
            if node in chosen and context.admit(report, node, f"in {self.to}")
        }
        if not short:
            report.notes += self._kept(report, context)
            return report
        before = clone(model)
        editor = Editor(model, short, to)
        editor.run()
        report.restored = editor.restored()
        size = sum(tensor.nbytes for tensor in {id(t): t for t in editor.originals.values()}.values())
        casts = len(editor.casts)
        report.notes.append(
            f"{len(short)} nodes in {self.to}, {casts} casts; {size / 1e6:.2f} MB of weights became half"
        )
        report.notes += self._kept(report, context)
        note = compared(before, model, size, context)
        report.notes += [note] if note else []
        return report

    def _able(
        self, model: ir.Model, context: Context, to: ir.DataType, report: PassReport
    ) -> dict[ir.Node, Ports]:
        """Return the nodes of the main graph that may be cast; decline those that matter and may not."""
        shapes = context.analysis(Shapes)
        for node in all_nodes(model):
            shapes.infer(node)
        given = context.calibration is not None or context.has_given_samples
        seen = ranges.peaks(model, context) if given and to == ir.DataType.FLOAT16 else {}
        if not given and to == ir.DataType.FLOAT16:
            report.notes.append(
                "no calibration data were given: whether activations overflow was not looked at"
            )
        able = {}
        for node in model.graph:
            if node.op_type == "Constant" or not _floats(node):
                continue
            try:
                if self.keep and not selected(node, (), self.keep):
                    raise Decline("it is to be kept")
                found = ports(node, to, context)
                ranges.check(node, found, to, seen)
                able[node] = found
            except Decline as reason:
                report.decline(node, str(reason))
        return able

    def _kept(self, report: PassReport, context: Context) -> Iterator[str]:
        """Say what stays in float for want of a kernel."""
        if context.target is None:
            return
        without = [d.op_type for d in report.declined if d.reason.startswith(f"{context.target.name} has no")]
        if without:
            most = ", ".join(f"{count} {op_type}" for op_type, count in Counter(without).most_common(5))
            yield f"{context.target.name} has no {self.to} kernels of what stays in float: {most}"


def _floats(node: ir.Node) -> bool:
    return any(value is not None and value.dtype == FLOAT for value in (*node.inputs, *node.outputs))
