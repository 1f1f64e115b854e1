"""Say how far a pass that loses something moved the outputs, and which layers did."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt import Context, GraphoptError, PassReport

from ..quantize.drift import drift, drifts


def tell(
    report: PassReport, before: ir.Model, after: ir.Model, nodes: Mapping[str, str], context: Context
) -> None:
    """Add the drift of the outputs and of the values ``nodes`` names the makers of, on two samples.

    The calibration data, or else the sample inputs; where they do not suit the model, a note says so.
    """
    same = {value.name for node in after.graph for value in node.outputs}
    names = [v.name or "" for v in before.graph.outputs if v.producer() is not None]
    stands = {name: name for name in dict.fromkeys([*names, *nodes]) if name in same}
    try:
        report.drift = drifts(before, nodes, drift(before, after, stands, context))
    except GraphoptError as error:
        report.notes.append(f"the drift was not measured: {error}")
        return
    report.notes += [
        f"output {each.value} is {each.sqnr_db:.1f} dB from what it was"
        for each in report.drift
        if not each.node
    ]
