"""Orders of axes: ``Transpose(x, p)`` has as axis ``i`` what was axis ``p[i]`` of ``x``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt import Tape
from graphopt.query import constant, is_op

Order = tuple[int, ...]


def then(p: Order, q: Order) -> Order:
    """Return ``r`` with ``Transpose(Transpose(x, p), q) = Transpose(x, r)``."""
    return tuple(p[i] for i in q)


def inverse(p: Order) -> Order:
    """Return the order that undoes ``p``."""
    return tuple(sorted(range(len(p)), key=p.__getitem__))


def in_order(p: Order) -> bool:
    """Return whether ``p`` moves nothing."""
    return p == tuple(range(len(p)))


def part(axes: Order, order: Order) -> Order:
    """Return the order of a value that has only ``axes`` of a node in ``order``."""
    place = {axis: i for i, axis in enumerate(axes)}
    return tuple(place[axis] for axis in order if axis in place)


def whole(axes: Order, q: Order, rank: int) -> Order:
    """Return an order of a node in which a value with ``axes`` of it has order ``q``; other axes stay in place."""
    own = iter(axes[i] for i in q)
    return tuple(next(own) if axis in axes else axis for axis in range(rank))


def order_of(node: ir.Node) -> Order | None:
    """Return the order that a Transpose makes, where it says so or the rank is known."""
    perm = node.attributes.get("perm")
    if perm is not None:
        return None if perm.is_ref() else tuple(perm.as_ints())
    x = node.inputs[0]
    return tuple(reversed(range(len(x.shape)))) if x is not None and x.shape is not None else None


def origin_of(value: ir.Value, rank: int) -> tuple[ir.Value, Order]:
    """Return the value that ``value`` is a transpose of, behind all Transposes of its graph, and the order."""
    order = tuple(range(rank))
    node = value.producer()
    graph = node.graph if node is not None else None
    while node is not None and node.graph is graph and is_op(node, "Transpose"):
        p, x = order_of(node), node.inputs[0]
        if p is None or x is None or len(p) != rank:
            break
        order, value = then(p, order), x
        node = value.producer()
    return value, order


def readers(value: ir.Value, rank: int) -> Iterator[tuple[ir.Node | None, int, Order]]:
    """Yield who reads ``value`` or a transpose of it: node, index of the input, order; no node for a graph output."""
    pending = [(value, tuple(range(rank)))]
    graph = value.graph
    while pending:
        value, order = pending.pop()
        if value.is_graph_output():
            yield None, 0, order
        for node, index in value.uses():
            p = order_of(node) if is_op(node, "Transpose") and node.graph is graph else None
            if p is not None and len(p) == rank:
                pending.append((node.outputs[0], then(order, p)))
            else:
                yield node, index, order


def moved(value: ir.Value, order: Order) -> Order:
    """Return ``order`` without the axes of size 1: what it takes to copy; moving those takes none."""
    shape = value.shape
    return order if shape is None else tuple(axis for axis in order if shape[axis] != 1)


def transpose(tape: Tape, value: ir.Value, order: Order) -> ir.Value:
    """Record a Transpose, unless it would move nothing."""
    return value if in_order(order) else tape.op("Transpose", [value], {"perm": list(order)})


def laid_constant(tape: Tape, value: ir.Value, axes: Order, order: Order, broadcasts: bool) -> ir.Value:
    """Record a constant in another order: its array is transposed now."""
    array = constant(value)
    if array.size == 1 and broadcasts:
        return value
    array = np.transpose(array, part(axes, order))
    if broadcasts:
        array = np.expand_dims(array, spread(axes, order))
    elif in_order(part(axes, order)):
        return value
    if array.shape == tuple(value.shape or ()) and in_order(part(axes, order)):
        return value
    return tape.constant(array, value.name or "constant", value.dtype)


def spread(axes: Order, order: Order) -> Order:
    """Return where a broadcast operand with ``axes`` needs axes of size 1 to line up with a node in ``order``."""
    kept = order[min((order.index(axis) for axis in axes), default=len(order)) :]
    return tuple(i for i, axis in enumerate(kept) if axis not in axes)
