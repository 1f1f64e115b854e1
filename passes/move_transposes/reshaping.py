"""Operators that take axes away or put in axes of size 1, and how they name axes in another order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt import Tape
from graphopt.query import attribute, axis_of, ints, opset, optional, rank, same_dim

from .frames import Build, Frame, all_axes, rebuilt, without
from .orders import Order


def named_axes(node: ir.Node, index: int, r: int) -> list[int]:
    """Return axes that are an attribute or an input; none where they are left out."""
    given = optional(node, index)
    named = ints(given) if given is not None else attribute(node, "axes") or []
    return [axis_of(axis, r) for axis in named]


def naming(node: ir.Node, axes: list[int]) -> Build:
    """Return how to record ``node`` with its axes named in another order."""

    def build(tape: Tape, inputs: list[ir.Value | None], order: Order) -> Sequence[ir.Value]:
        moved = sorted(order.index(axis) for axis in axes)
        if "axes" in node.attributes:
            return rebuilt(tape, node, inputs, axes=moved)
        return rebuilt(tape, node, [inputs[0], integers(tape, moved, "axes")])

    return build


def integers(tape: Tape, values: Sequence[int], stem: str) -> ir.Value:
    """Record a list of integers."""
    return tape.constant(np.array(values, np.int64), stem)


def squeeze(node: ir.Node) -> Frame | None:
    """The output lacks some axes of the input."""
    r = rank(node.inputs[0])
    axes = named_axes(node, 1, r)
    if not axes:
        return None
    return Frame(r, {0: all_axes(r)}, [without(r, axes)], naming(node, axes))


def unsqueeze(node: ir.Node) -> Frame | None:
    """The input lacks some axes of the output."""
    named = attribute(node, "axes") if opset(node) < 13 else ints(node.inputs[1])
    r = rank(node.inputs[0]) + len(named or ())
    axes = named_axes(node, 1, r)
    if not axes:
        return None
    return Frame(r, {0: without(r, axes)}, [all_axes(r)], naming(node, axes))


def reshape(node: ir.Node) -> Frame | None:
    """It only puts in and takes out axes of size 1; the others are the same and in their order."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or y.shape is None or 0 in x.shape or 0 in y.shape:
        return None
    dims, reads, makes = _aligned(list(x.shape), list(y.shape))
    if len(reads) != len(x.shape) or len(makes) != len(y.shape):
        return None
    r = len(dims)

    def sizes(order: Order) -> list[int] | None:
        """Return the shape to ask for; ``None`` where no constant says it."""
        before = [axis for axis in order if axis in reads]
        target: list[int] = []
        for i, axis in enumerate(axis for axis in order if axis in makes):
            dim = dims[axis]
            copied = i < len(before) and before[i] == axis
            target.append(dim if isinstance(dim, int) else 0 if copied else -1)
        symbols = sum(not isinstance(dim, int) for dim in dims)
        return target if -1 not in target or symbols == 1 else None

    def build(tape: Tape, inputs: list[ir.Value | None], order: Order) -> Sequence[ir.Value]:
        return [tape.op("Reshape", [inputs[0], integers(tape, sizes(order) or [], "shape")])]

    return Frame(r, {0: reads}, [makes], build, lambda order: sizes(order) is not None)


def _aligned(
    x: list[int | ir.SymbolicDim], y: list[int | ir.SymbolicDim]
) -> tuple[list[int | ir.SymbolicDim], Order, Order]:
    """Return the sizes of the axes of two shapes, shared ones once, and the axes of each, as far as they agree."""
    dims: list[int | ir.SymbolicDim] = []
    reads: list[int] = []
    makes: list[int] = []
    while len(reads) < len(x) or len(makes) < len(y):
        m = x[len(reads)] if len(reads) < len(x) else None
        n = y[len(makes)] if len(makes) < len(y) else None
        shared = m is not None and n is not None and same_dim(m, n)
        if not shared and m != 1 and n != 1:
            break
        if shared or m == 1:
            reads.append(len(dims))
        if shared or m != 1:
            makes.append(len(dims))
        dims.append(m if shared and m is not None else 1)
    return dims, tuple(reads), tuple(makes)
