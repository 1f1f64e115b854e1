"""Say what factorizing saved, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import InputError, PassReport, cost

from ..quantize.drift import drift, drifts
from .deciding import sizes
from .fitting import Fitted

if TYPE_CHECKING:
    from graphopt.context import Context


def tell(
    before: ir.Model,
    after: ir.Model,
    done: Mapping[str, tuple[str, Fitted]],
    layers: int,
    context: Context,
    report: PassReport,
) -> None:
    """Add notes on MACs, and how far outputs and layers are from what they were on the data."""
    macs, left = (cost(model, sizes(model, context)).macs for model in (before, after))
    report.notes.append(
        f"{macs} MACs became {left}, {left / max(macs, 1):.2f} of them, in {len(done)} of {layers} layers"
    )
    floats = {
        v.name: v
        for node in before.graph
        for v in node.outputs
        if v.dtype is None or v.dtype.is_floating_point()
    }
    outputs = {v.name or "" for v in before.graph.outputs if v.name in floats}
    stands = {name: name for name in (*outputs, *done)}
    try:
        found = drift(before, after, stands, context)
    except InputError:
        return
    nodes = {name: node for name, (node, _) in done.items()}
    report.drift = drifts(before, nodes, found)
    report.notes += [
        f"output {each.value} is {each.sqnr_db:.1f} dB from the original"
        for each in report.drift
        if not each.node
    ]
