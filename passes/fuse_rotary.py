"""Fuse rotary position embedding into one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import attribute, axis_of, constant, ints, is_constant, is_op, optional, same_dim, scalar

from .fusion import MICROSOFT, Fusion, check_private

DEEP = 8
ELEMENTWISE = ("Cos", "Sin", "Cast", "Identity")


class FuseRotary(Fusion):
    """Replace ``x * cos + rotate(x) * sin`` by ``RotaryEmbedding(x, cos, sin)``.

    For ``x`` of shape (batch, heads, rows, d), with its two halves ``a`` and ``b`` of the last axis::

        x = [a, b],  rotate(x) = [-b, a]
        cos = [c, c],  sin = [s, s]        of shape (batch or 1, 1, rows, d)
        y = [a * c - b * s, b * c + a * s]

    Both halves of ``cos`` are known to be equal where it is made, one element after the other, of two equal parts put
    together, or is a constant. Where a row has one position in all of the batch the operator is
    ``com.microsoft::RotaryEmbedding`` with positions from 0 on; else, and on request, ONNX's own (opset 23).

    Exact up to rounding. Source: Su et al., arXiv 2104.09864, equation 34, with the halves of GPT-NeoX; onnxruntime
    ContribOperators, RotaryEmbedding-1; ONNX RotaryEmbedding-23.
    """

    family: ClassVar[str] = "attention"
    anchor = "Add"

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the embedding that ends in the sum ``node``."""
        found = _rotation(node)
        if found is None:
            return None
        x, cos, sin = found.x, found.cos, found.sin
        check_private(found.nodes, node)
        if x.shape is None or len(x.shape) != 4:
            raise Decline(f"{x.name} has not the shape (batch, heads, rows, width)")
        width = x.shape[3]
        if not isinstance(width, int) or width % 2:
            raise Decline(f"the width of {x.name} is not known to be even")
        shared = [_is_shared(value, x) for value in (cos, sin)]
        operator = self._domain(tape, x.dtype, all(shared))
        tables = [_half(value, width // 2, tape, DEEP) for value in (cos, sin)]
        if operator == MICROSOFT:
            flat = [_reshaped(value, [-1, width // 2], tape) for value in tables]
            start = tape.constant(np.array([0], np.int64), "start")
            return tape.op("RotaryEmbedding", [x, start, *flat], domain=MICROSOFT)
        each = [
            _for_each(value, x, width // 2, is_shared, tape)
            for value, is_shared in zip(tables, shared, strict=True)
        ]
        return tape.op("RotaryEmbedding", [x, *each])

    def _domain(self, tape: Tape, dtype: ir.DataType | None, shared: bool) -> str:
        if shared and self.may(tape, "RotaryEmbedding", dtype, MICROSOFT):
            return MICROSOFT
        if self.may(tape, "RotaryEmbedding", dtype, since=23):
            return ""
        if self.dialect == "target" and not shared and tape.opset < 23:
            raise Decline(
                "its positions differ from batch to batch, which takes ONNX's RotaryEmbedding of opset 23"
            )
        raise self.refusal(tape, "RotaryEmbedding", dtype, 23)


@dataclass(frozen=True)
class Rotation:
    """``x * cos + rotate(x) * sin``, and the nodes that compute it."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    nodes: tuple[ir.Node, ...]


def _rotation(add: ir.Node) -> Rotation | None:
    """Return the rotation that a sum is; ``None`` where it is none."""
    products = [value.producer() if value is not None else None for value in add.inputs]
    if not all(is_op(product, "Mul") for product in products):
        return None
    for plain, turned in (products, reversed(products)):
        assert plain is not None and turned is not None, "both are products"
        for i in (0, 1):
            rotated = _rotated(turned.inputs[i])
            sin = turned.inputs[1 - i]
            if rotated is None or sin is None:
                continue
            source, bounds, nodes = rotated
            for x, cos in (plain.inputs, reversed(plain.inputs)):
                if x is not None and cos is not None and _is_part(x, source, bounds):
                    return Rotation(x, cos, sin, (add, plain, turned, *nodes))
    return None


def _is_part(x: ir.Value, source: ir.Value, bounds: tuple[int, int]) -> bool:
    """Return whether ``x`` is ``source`` within ``bounds`` of its last axis."""
    assert source.shape is not None and isinstance(source.shape[-1], int), "it was cut by numbers"
    if x is source:
        return bounds == (0, source.shape[-1])
    node = x.producer()
    if node is None or node.inputs[:1] != (source,):
        return False
    return _range(node, source.shape[-1]) == bounds


def _rotated(value: ir.Value | None) -> tuple[ir.Value, tuple[int, int], tuple[ir.Node, ...]] | None:
    """Read ``Concat(-b, a)`` along the last axis, of halves ``a`` and ``b`` that lie side by side in one tensor.

    Returns:
        The tensor, from where to where on its last axis they lie, and the nodes that do it.
    """
    concat = value.producer() if value is not None else None
    if concat is None or not is_op(concat, "Concat") or len(concat.inputs) != 2 or value is None:
        return None
    negative, first = concat.inputs
    neg = negative.producer() if negative is not None else None
    if neg is None or first is None or not is_op(neg, "Neg") or value.shape is None:
        return None
    if axis_of(attribute(concat, "axis"), len(value.shape)) != len(value.shape) - 1:
        return None
    parts = [_part(half) for half in (first, neg.inputs[0])]
    if parts[0] is None or parts[1] is None or parts[0][0] is not parts[1][0]:
        return None
    (x, (begin, middle)), (_, (again, end)) = parts[0], parts[1]
    if again != middle or end - middle != middle - begin:
        return None
    return x, (begin, end), (concat, neg)


def _part(value: ir.Value | None) -> tuple[ir.Value, tuple[int, int]] | None:
    """Return of what a Slice or Split cut ``value``, and from where to where on the last axis."""
    node = value.producer() if value is not None else None
    x = node.inputs[0] if node is not None and node.inputs else None
    if node is None or x is None or x.shape is None or not len(x.shape) or not isinstance(x.shape[-1], int):
        return None
    if is_op(node, "Split"):
        if axis_of(attribute(node, "axis", 0), len(x.shape)) != len(x.shape) - 1:
            return None
        ends = [0]
        for output in node.outputs:
            size = output.shape[-1] if output.shape is not None else None
            if not isinstance(size, int):
                return None
            ends.append(ends[-1] + size)
            if output is value:
                return x, (ends[-2], ends[-1])
        return None
    bounds = _range(node, x.shape[-1])
    return (x, bounds) if bounds is not None else None


def _range(node: ir.Node, width: int) -> tuple[int, int] | None:
    """Return where a Slice of the last axis, of ``width``, begins and ends; ``None`` for another Slice."""
    if not is_op(node, "Slice") or not all(is_constant(v) for v in node.inputs[1:] if v is not None):
        return None
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return None
    starts, ends, axes = (ints(value) for value in node.inputs[1:4])
    steps = ints(node.inputs[4]) if optional(node, 4) is not None else [1]
    x = node.inputs[0]
    if x is None or x.shape is None or len(axes) != 1 or steps != [1]:
        return None
    if axis_of(axes[0], len(x.shape)) != len(x.shape) - 1:
        return None
    first, last, _ = slice(starts[0], ends[0]).indices(width)
    return first, last


def _is_shared(table: ir.Value, x: ir.Value) -> bool:
    """Return whether a table of (1, 1, rows, width) serves all of the batch; ``False`` for (batch, 1, rows, width).

    Raises:
        Decline: it is neither.
    """
    assert x.shape is not None, "the caller knows it"
    known = list(table.shape) if table.shape is not None else []
    dims: list[int | ir.SymbolicDim] = [*[1] * (4 - len(known)), *known] if known else []
    if (
        len(dims) != 4
        or dims[1] != 1
        or not all(same_dim(m, n) for m, n in zip(dims[2:], x.shape[2:], strict=True))
    ):
        raise Decline(f"{table.name} is not known to have the shape (batch or 1, 1, rows, width)")
    if dims[0] == 1:
        return True
    if not same_dim(dims[0], x.shape[0]):
        raise Decline(f"{table.name} is not known to have the batch of {x.name}")
    return False


def _half(table: ir.Value, half: int, tape: Tape, depth: int) -> ir.Value:
    """Return one of the two equal halves of the last axis of ``table``."""
    if is_constant(table):
        array = constant(table)
        if (
            array.ndim
            and array.shape[-1] == 2 * half
            and np.array_equal(array[..., :half], array[..., half:])
        ):
            return tape.constant(array[..., :half], table.name or "table", table.dtype)
        raise Decline(f"the two halves of {table.name} differ")
    node = table.producer()
    if node is not None and node.domain == "" and depth and table.shape is not None:
        last = len(table.shape) - 1
        if is_op(node, "Concat") and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]:
            if axis_of(attribute(node, "axis"), last + 1) == last and node.inputs[0] is not None:
                return node.inputs[0]
        elif (i := _kept(node, last)) is not None and (x := node.inputs[i]) is not None:
            inputs = list(node.inputs)
            inputs[i] = _half(x, half, tape, depth - 1)
            return tape.op(node.op_type, inputs, node.attributes)
    raise Decline(f"the two halves of {table.name} are not known to be equal")


def _kept(node: ir.Node, last: int) -> int | None:
    """Return of which input ``node`` computes each element of the last axis alone, and all in the same way."""
    if node.op_type in ELEMENTWISE:
        return 0
    if node.op_type == "Mul":
        return next((i for i in (0, 1) if _is_number(node.inputs[1 - i])), None)
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    if node.op_type == "Unsqueeze":
        axes = ints(node.inputs[1]) if optional(node, 1) is not None else attribute(node, "axes", [])
        return 0 if all(axis_of(axis, last + 1) != last for axis in axes) else None
    if node.op_type == "Gather":
        return 0 if axis_of(attribute(node, "axis", 0), len(x.shape)) < len(x.shape) - 1 else None
    return None


def _is_number(value: ir.Value | None) -> bool:
    return scalar(value) is not None and value is not None and value.shape == ()


def _reshaped(value: ir.Value, dims: list[int], tape: Tape) -> ir.Value:
    return tape.op("Reshape", [value, tape.constant(np.array(dims, np.int64), "shape")])


def _for_each(table: ir.Value, x: ir.Value, half: int, shared: bool, tape: Tape) -> ir.Value:
    """Return a table of shape (batch, rows, half)."""
    assert x.shape is not None, "the caller knows it"
    rows, batch = x.shape[2], x.shape[0]
    if not shared:
        return _reshaped(table, [0, rows if isinstance(rows, int) else -1, half], tape)
    flat = _reshaped(table, [1, rows if isinstance(rows, int) else -1, half], tape)
    if batch == 1:
        return flat
    ones = tape.constant(np.array([1, 1], np.int64), "ones")
    first = tape.op("Shape", [x], {"start": 0, "end": 1})
    return tape.op("Expand", [flat, tape.op("Concat", [first, ones], {"axis": 0})])
