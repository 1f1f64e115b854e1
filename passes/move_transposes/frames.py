"""Operators that compute the same in any order of axes, and what has to be told them anew in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import Decline, Tape, op_info
from graphopt.query import opset

from .orders import Order

Build = Callable[[Tape, "list[ir.Value | None]", Order], "Sequence[ir.Value]"]


def anything(_: Order) -> bool:
    """Allow every order."""
    return True


@dataclass(frozen=True)
class Frame:
    """The axes that a node works on, numbered as in its largest input or output, and which of them each value has.

    In order ``p``, axis ``i`` of the node is what was axis ``p[i]``.
    """

    rank: int
    reads: Mapping[int, Order]
    """Axes of each input that has to be laid out like the node; the other inputs stay as they are."""
    makes: Sequence[Order | None]
    """Axes of each output; ``None`` where the output is the same in every order."""
    build: Build
    """Record the node in another order: (tape, inputs in that order, order) -> outputs."""
    allows: Callable[[Order], bool] = anything
    broadcasts: bool = False
    """Inputs may lack leading axes."""
    last: int | None = None
    """The axis that kernels transpose to the end by themselves where it is not there."""


def all_axes(rank: int) -> Order:
    """Return 0, 1, 2, …"""
    return tuple(range(rank))


def without(rank: int, axes: Sequence[int]) -> Order:
    """Return all axes but some."""
    return tuple(axis for axis in range(rank) if axis not in axes)


def rebuilt(
    tape: Tape, node: ir.Node, inputs: Sequence[ir.Value | None], **changes: int | Sequence[int]
) -> Sequence[ir.Value]:
    """Record ``node`` with other inputs and attributes."""
    attributes = dict(node.attributes)
    for name, value in changes.items():
        attributes[name] = (
            ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrInt64s(name, list(value))
        )
    return tape.op_multi_out(
        node.op_type,
        inputs,
        attributes,
        num_outputs=len(node.outputs),
        domain=node.domain,
        overload=node.overload,
        version=node.version,
    )


def rank_of(value: ir.Value | None) -> int | None:
    """Return the number of dimensions of a tensor, where it is known."""
    if value is None or value.shape is None or not isinstance(value.type, ir.TensorType | None):
        return None
    return len(value.shape)


def frame_of(node: ir.Node) -> Frame | None:
    """Return the frame of ``node``; ``None`` where its order of axes is fixed."""
    from .rules import RULES

    rule = RULES.get((node.domain, node.op_type))
    if rule is None and op_info(node).elementwise:
        rule = elementwise
    if rule is None or not node.inputs or any(attr.is_ref() for attr in node.attributes.values()):
        return None
    try:
        frame = rule(node)
    except Decline:
        return None
    if frame is None or any(value.dtype == ir.DataType.STRING for value in node.inputs if value is not None):
        return None
    return frame


def elementwise(node: ir.Node) -> Frame | None:
    """Broadcast operands lie at the end of the axes of the result."""
    arity = op_info(node).arity
    count = min(arity or len(node.inputs), len(node.inputs))
    if arity != 1 and node.domain == "" and opset(node) < 7:
        return None  # these broadcast from an axis on
    ranks = [rank_of(value) for value in node.inputs[:count]]
    if len(node.outputs) != 1 or any(rank is None for rank in ranks):
        return None
    rank = max(rank or 0 for rank in ranks)
    return Frame(
        rank,
        {i: all_axes(rank)[rank - (own or 0) :] for i, own in enumerate(ranks)},
        [all_axes(rank)],
        lambda tape, inputs, order: rebuilt(tape, node, inputs),
        broadcasts=True,
    )
