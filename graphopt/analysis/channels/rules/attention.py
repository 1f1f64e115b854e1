"""Attention in its fused forms: heads go together in all operands, and so do sizes of queries and keys."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ....query import attribute, optional
from ..atoms import Labels, never
from ..edits import Count, Counts, Fix
from ..flow import Axes, Flow, Refuse, Rule

Heads = tuple[Labels, Labels]
"""An operand's heads (H,), and their size (D,)."""


def _heads(flow: Flow, labels: Labels, count: int) -> Heads:
    """Return heads and their size, of an axis (H · D,)."""
    along, within = flow.atoms.grid(labels, (count, len(labels) // count))
    return along, within


def _attend(node: ir.Node, flow: Flow, q: Heads, k: Heads, v: Heads, places: Axes) -> Heads:
    """Tie queries, keys and values; return heads and sizes of what is made. ``places``: batch, queries, keys."""
    flow.tie(q[1], k[1])
    flow.tie(k[0], v[0])
    group = len(q[0]) // len(k[0])
    if group > 1:
        along, within = flow.atoms.grid(q[0], (len(k[0]), group))
        flow.tie(along, k[0])
        flow.freeze(within, "heads share keys and values in groups of one size")
    else:
        flow.tie(q[0], k[0])
    if "scale" not in node.attributes:
        flow.edit(Fix(node, "scale", 1 / math.sqrt(len(q[1])), q[1]))
    flow.multiplies(node, 1, *places, q[0], q[1])
    flow.multiplies(node, 1, *places, q[0], v[1])
    return q[0], v[1]


def _mask(flow: Flow, value: ir.Value | None, heads: Labels) -> None:
    """Tie the axis of heads of what is added to scores, (B, H, L, S)."""
    if value is not None:
        axes = flow.of(value)
        if len(axes) == 4 and len(axes[1]) > 1:
            flow.tie(axes[1], heads)


def _cached(flow: Flow, value: ir.Value | None, heads: Heads) -> None:
    """Tie a cache of keys or values, (B, H, S, D), that comes in."""
    if value is not None:
        axes = flow.of(value)
        flow.tie(axes[1], heads[0])
        flow.tie(axes[3], heads[1])


def _present(flow: Flow, node: ir.Node, index: int, heads: Heads, batch: Labels) -> None:
    if len(node.outputs) > index and node.outputs[index].name:
        value = node.outputs[index]
        flow.give(value, [batch, heads[0], never(flow.shape(value)[2]), heads[1]])


def standard(node: ir.Node, flow: Flow) -> None:
    """Attention-23: Q (B, Hq, L, D) or (B, L, Hq · D), K and V with Hkv heads."""
    axes = [flow.of(value) for value in node.inputs[:3]]
    merged = len(axes[0]) == 3
    names = ("q_num_heads", "kv_num_heads", "kv_num_heads")
    if merged:
        q, k, v = (
            _heads(flow, each[2], attribute(node, name)) for each, name in zip(axes, names, strict=True)
        )
        flow.edit(Count(node, "q_num_heads", q[0]))
        flow.edit(Count(node, "kv_num_heads", k[0]))
    else:
        q, k, v = ((each[1], each[3]) for each in axes)
    rows, keys = (each[1 if merged else 2] for each in axes[:2])
    made = _attend(node, flow, q, k, v, [axes[0][0], rows, keys])
    _mask(flow, optional(node, 3), made[0])
    _cached(flow, optional(node, 4), k)
    _cached(flow, optional(node, 5), v)
    first = axes[0][0]
    flow.give(
        node.outputs[0],
        [first, rows, flow.atoms.merge(made)] if merged else [first, made[0], rows, made[1]],
    )
    _present(flow, node, 1, k, first)
    _present(flow, node, 2, v, first)
    if len(node.outputs) > 3 and node.outputs[3].name:
        flow.give(node.outputs[3], [first, made[0], rows, never(flow.shape(node.outputs[3])[3])])


def multi_head(node: ir.Node, flow: Flow) -> None:
    """The runtime's MultiHeadAttention: query (B, L, H · D), key, value, and a bias for all three."""
    q, k, v = (_three(flow, optional(node, i)) for i in range(3))
    heads = attribute(node, "num_heads")
    if (bias := optional(node, 3)) is not None:
        flow.tie(flow.of(bias)[0], np.concatenate([q[2], k[2], v[2]]))
    parts = [_heads(flow, each[2], heads) for each in (q, k, v)]
    flow.edit(Count(node, "num_heads", parts[0][0]))
    made = _attend(node, flow, parts[0], parts[1], parts[2], [q[0], q[1], k[1]])
    _mask(flow, optional(node, 5), made[0])
    _cached(flow, optional(node, 6), parts[1])
    _cached(flow, optional(node, 7), parts[2])
    flow.give(node.outputs[0], [q[0], q[1], flow.atoms.merge(made)])
    _present(flow, node, 1, parts[1], q[0])
    _present(flow, node, 2, parts[2], q[0])


def projected(node: ir.Node, flow: Flow) -> None:
    """The runtime's Attention: x (B, L, I), W (I, Hq + Hk + Hv), b (Hq + Hk + Hv,)."""
    x, w = flow.of(node.inputs[0]), flow.of(node.inputs[1])
    if optional(node, 4) is not None or attribute(node, "do_rotary", 0):
        raise Refuse("it has a cache or rotates queries and keys")
    heads = attribute(node, "num_heads")
    sizes = attribute(node, "qkv_hidden_sizes", [len(w[1]) // 3] * 3)
    flow.tie(x[2], w[0])
    flow.source(node, w[1])
    if (bias := optional(node, 2)) is not None:
        flow.tie(w[1], flow.of(bias)[0])
    parts = np.split(w[1], np.cumsum(sizes)[:-1])
    q, k, v = (_heads(flow, part, heads) for part in parts)
    flow.edit(Count(node, "num_heads", q[0]))
    flow.edit(Counts(node, "qkv_hidden_sizes", tuple(parts)))
    flow.multiplies(node, 1, *x, w[1])
    made = _attend(node, flow, q, k, v, [x[0], x[1], x[1]])
    _mask(flow, optional(node, 5), made[0])
    flow.give(node.outputs[0], [x[0], x[1], flow.atoms.merge(made)])


def grouped_query(node: ir.Node, flow: Flow) -> None:
    """The runtime's GroupQueryAttention: query (B, L, Hq · D), key and value (B, L, Hkv · D)."""
    q, k, v = (_three(flow, optional(node, i)) for i in range(3))
    parts = [
        _heads(flow, axes[2], attribute(node, name))
        for axes, name in ((q, "num_heads"), (k, "kv_num_heads"), (v, "kv_num_heads"))
    ]
    flow.edit(Count(node, "num_heads", parts[0][0]))
    flow.edit(Count(node, "kv_num_heads", parts[1][0]))
    for _, size in parts:
        flow.freeze(size, "GroupQueryAttention wants one size of heads for keys and values")
    made = _attend(node, flow, parts[0], parts[1], parts[2], [q[0], q[1], q[1]])
    _cached(flow, optional(node, 3), parts[1])
    _cached(flow, optional(node, 4), parts[2])
    flow.give(node.outputs[0], [q[0], q[1], flow.atoms.merge(made)])
    _present(flow, node, 1, parts[1], q[0])
    _present(flow, node, 2, parts[2], q[0])


def rotary(node: ir.Node, flow: Flow) -> None:
    """RotaryEmbedding-23 and the runtime's: pairs of places within heads are rotated, so their size stays."""
    x = flow.of(node.inputs[0])
    heads = attribute(node, "num_heads", 0)
    if len(x) == 4:
        made = list(x)
        flow.freeze(x[3], "RotaryEmbedding rotates places of one head")
    elif heads:
        along, within = _heads(flow, x[2], heads)
        flow.edit(Count(node, "num_heads", along))
        flow.freeze(within, "RotaryEmbedding rotates places of one head")
        made = [x[0], x[1], x[2]]
    else:
        raise Refuse("it does not say how many heads there are")
    flow.give(node.outputs[0], made)


def _three(flow: Flow, value: ir.Value | None) -> Axes:
    if value is None:
        raise Refuse("queries, keys and values come in one")
    axes: Axes = flow.of(value)
    if len(axes) != 3:
        raise Refuse(f"{value.name} has {len(axes)} dimensions")
    return axes


RULES: dict[tuple[str, str], Rule] = {
    ("", "Attention"): standard,
    ("com.microsoft", "MultiHeadAttention"): multi_head,
    ("com.microsoft", "Attention"): projected,
    ("com.microsoft", "GroupQueryAttention"): grouped_query,
    ("", "RotaryEmbedding"): rotary,
    ("com.microsoft", "RotaryEmbedding"): rotary,
}
