"""Give each channel between two layers a range that suits the weights on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt import Decline, Names, Pass, PassReport, Shapes, selected
from graphopt.query import is_op, used_once

from .channels import PRODUCTS, Layer, Source, check_sizes, layer, put_all, same_axis, scaled, source

if TYPE_CHECKING:
    from graphopt import Context

Array = np.ndarray[Any, Any]
ROUNDS = 100
CONVERGED = 1e-3
"""No scale changes by more than this share any more."""
WORTH = 0.02
"""Channels that are within this share of their best range stay as they are."""


@dataclass
class Boundary:
    """A value between layers, whose channels can be scaled."""

    made_by: Layer
    source: Source
    readers: list[Layer]
    scale: Array
    """What the weights that make it are divided by, and those that read it multiplied by."""


class EqualizeRanges(Pass):
    """Replace ``W2 f(W1 x + b1)`` by ``(W2 S) f(S⁻¹ W1 x + S⁻¹ b1)``, where the weights of channel i get equal ranges.

    With the largest magnitudes ``r1[i]`` of what makes channel i and ``r2[i]`` of what multiplies it::

        S = diag(s)      s[i] = √(r1[i] / r2[i])      (C,)

    so that both become ``√(r1[i] r2[i])``. That is repeated over all such pairs of a chain until nothing changes.
    Conv (depthwise too), ConvTranspose, Gemm and MatMul, with ``f`` that lets a positive factor through (Relu,
    LeakyRelu, PRelu, pooling) or none. Serves one scale for a whole tensor of weights; one for each output channel
    needs it less, and its activations may suffer: compare the drift. It needs no data.

    Exact up to rounding. Source: Nagel et al. 2019 (arXiv:1906.04721), section 4.1.
    """

    include: tuple[str, ...] = Field(
        (), description="patterns of nodes, weights or modules whose results to scale"
    )
    exclude: tuple[str, ...] = Field(
        (), description="patterns of nodes, weights or modules to leave as they are"
    )

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Find the boundaries, find their scales together, and scale."""
        report, names = PassReport(), Names(model)
        boundaries = self._boundaries(model, context, report)
        _equalize(boundaries)
        for boundary in boundaries:
            spread = float(np.abs(np.log(boundary.scale)).max(initial=0))
            if spread < np.log1p(WORTH):
                continue
            s, node = boundary.scale, boundary.made_by.node
            try:
                made = scaled(
                    dict.fromkeys(boundary.source.operands, 1 / s)
                    | {each.inputs: s for each in boundary.readers}
                )
            except Decline as reason:
                report.decline(node, str(reason))
                continue
            if context.admit(report, node, f"{len(s)} channels by {s.min():.3g} to {s.max():.3g}"):
                put_all(made, names)
        return report

    def _boundaries(self, model: ir.Model, context: Context, report: PassReport) -> list[Boundary]:
        found: list[Boundary] = []
        seen: set[ir.Value] = set()
        shapes = context.analysis(Shapes)
        for graph in (*model.graph.subgraphs(), model.graph):
            for node in graph:
                shapes.infer(node)
                value = node.inputs[0] if is_op(node, *PRODUCTS) else None
                if value is None or value in seen or value.producer() is None:
                    continue
                seen.add(value)
                try:
                    found.append(self._boundary(value))
                except Decline as reason:
                    report.decline(node, str(reason))
        return found

    def _boundary(self, value: ir.Value) -> Boundary:
        readers = layers_of(value)
        made = source(value)
        if made.layer is None:
            raise Decline(f"no product with weights makes {value.name}")
        if not selected(made.layer.node, self.include, self.exclude):
            raise Decline("what makes its input is not selected")
        for each in (made.layer, *readers):
            if not used_once(each.inputs.value):
                raise Decline(f"{each.inputs.value.name} is used elsewhere")
        channels = made.layer.out_channels
        check_sizes([*made.operands, *(each.inputs for each in readers)], channels)
        for each in readers:
            same_axis(value, made.axis, each.axis)
        return Boundary(made.layer, made, readers, np.ones(channels))


def layers_of(value: ir.Value) -> list[Layer]:
    """Return the products that multiply ``value``, which nothing else reads.

    Raises:
        Decline: something else does, or it is a graph output.
    """
    if value.is_graph_output():
        raise Decline(f"{value.name} is a graph output")
    for use in value.uses():
        if use.idx != 0 or not is_op(use.node, *PRODUCTS):
            raise Decline(f"{use.node.op_type} {use.node.outputs[0].name} reads {value.name} too")
    return [layer(use.node) for use in value.uses()]


def _equalize(boundaries: list[Boundary]) -> None:
    """Find all scales together: each step makes the ranges at one boundary equal, given the others."""
    every = {each.node: each for b in boundaries for each in (b.made_by, *b.readers)}
    weights = {node: each.magnitudes() for node, each in every.items()}
    for _ in range(ROUNDS):
        most = 0.0
        for b in boundaries:
            r1 = weights[b.made_by.node].max(2).reshape(-1)
            r2 = np.max([weights[each.node].max(1).reshape(-1) for each in b.readers], axis=0)
            s = np.sqrt(np.divide(r1, r2, out=np.ones_like(r1), where=(r1 > 0) & (r2 > 0)))
            _scale(weights[b.made_by.node], 1 / s, 1)
            for each in b.readers:
                _scale(weights[each.node], s, 2)
            b.scale *= s
            most = max(most, float(np.abs(np.log(s)).max(initial=0)))
        if most < np.log1p(CONVERGED):
            return


def _scale(weights: Array, k: Array, axis: int) -> None:
    """Scale the output (axis 1) or input (axis 2) channels of magnitudes (groups, outputs, inputs)."""
    shape = [weights.shape[0], 1, 1]
    shape[axis] = weights.shape[axis]
    weights *= k.reshape(shape)
