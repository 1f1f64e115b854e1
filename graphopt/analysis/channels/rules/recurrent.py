"""Recurrent cells: hidden channels go together in all gates, in both directions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....query import attribute, optional
from ..atoms import never
from ..edits import Count
from ..flow import Flow, Refuse, Rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def cell(node: ir.Node, flow: Flow) -> None:
    """LSTM-22, GRU-22, RNN-22 with G gates: W (D, G·H, I), R (D, G·H, H), B (D, 2·G·H), Y (T, D, N, H)."""
    if attribute(node, "layout", 0):
        raise Refuse("its batch comes first")
    gates = GATES[node.op_type]
    x, w, r = (flow.of(value) for value in node.inputs[:3])
    hidden = r[2]
    flow.source(node, hidden)
    flow.tie(x[2], w[2])
    for rows in (w[1], r[1]):
        flow.tie(rows, np.tile(hidden, gates))
    if (bias := optional(node, 3)) is not None:
        flow.tie(flow.of(bias)[1], np.tile(hidden, 2 * gates))
    for index in (5, 6):
        if (state := optional(node, index)) is not None:
            flow.tie(flow.of(state)[2], hidden)
    if (peephole := optional(node, 7)) is not None:
        flow.tie(flow.of(peephole)[1], np.tile(hidden, 3))
    flow.edit(Count(node, "hidden_size", hidden))
    flow.multiplies(node, len(w[0]), x[0], x[1], w[1], w[2])
    flow.multiplies(node, len(w[0]), x[0], x[1], r[1], r[2])
    directions = never(len(w[0]))
    for value, made in zip(
        node.outputs, ([x[0], directions, x[1], hidden], *([[directions, x[1], hidden]] * 2)), strict=False
    ):
        if value.name:
            flow.give(value, made)


RULES: dict[tuple[str, str], Rule] = {("", op): cell for op in GATES}
