"""Merge concatenations with each other, and neighbouring constants within one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt import Decline, Rewrite, Tape
from graphopt.query import attribute, axis_of, constant_tensor, is_op, opset, rank, used_once

TINY_BYTES = 256
"""Constants that others read too are copied into a merged one up to this size: shapes, not weights."""


class MergeConcats(Rewrite):
    """Flatten ``Concat(a, Concat(b, c), d)``, and make one constant of neighbouring ones.

    ::

        Concat(a, Concat(b, c), d)  ->  Concat(a, b, c, d)      the same axis; nothing else reads the inner one
        Concat(a, k, l, d)          ->  Concat(a, kl, d)        k and l constant, kl their concatenation

    A Concat of constants alone is left to constant folding. The model does not grow: a constant that something
    else reads too is merged only where it is tiny. Exact: elements are moved, not computed. Source: ONNX Concat-1
    to 13; before opset 4 the axis is 1 where none is given. Constant strings stay as they are.
    """

    anchor = "Concat"

    limit_bytes: int = Field(1 << 20, ge=0, description="largest constant to make, in bytes")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the Concat of fewer parts, or of the parts of its parts."""
        if _goes_into_another(node):
            return None
        reasons: list[str] = []
        parts = _flat(node, reasons)
        if parts == list(node.inputs):
            parts = self._merged(node, parts, tape, reasons)
        if parts != list(node.inputs):
            return tape.op("Concat", parts, {"axis": concat_axis(node)})
        if reasons:
            raise Decline(", ".join(dict.fromkeys(reasons)))
        return None

    def _merged(self, node: ir.Node, parts: list[ir.Value], tape: Tape, reasons: list[str]) -> list[ir.Value]:
        runs = [(c, list(run)) for c, run in groupby(parts, _is_number)]
        if len(runs) == 1:
            return parts
        merged: list[ir.Value] = []
        for are_constants, run in runs:
            reason = self._reason_to_keep(run) if are_constants and len(run) > 1 else None
            merged += [_concatenated(node, run, tape)] if reason == "" else run
            reasons += [reason] if reason else []
        return merged

    def _reason_to_keep(self, run: Sequence[ir.Value]) -> str:
        size = sum(_nbytes(value) for value in run)
        if size > self.limit_bytes:
            return f"{run[0].name} … {run[-1].name} take {size} bytes, more than {self.limit_bytes}"
        shared = [value for value in run if not used_once(value)]
        if sum(map(_nbytes, shared)) > TINY_BYTES:
            return f"{shared[0].name} is used elsewhere"
        return ""


def concat_axis(node: ir.Node) -> int:
    """Return the axis as it is written; before opset 4 there is a default."""
    axis: int | None = attribute(node, "axis", 1 if opset(node) < 4 else None)
    if axis is None:
        raise Decline("it has no axis")
    return axis


def _flat(node: ir.Node, reasons: list[str]) -> list[ir.Value]:
    """Return what ``node`` concatenates, seen through the Concats that feed it alone."""
    parts: list[ir.Value] = []
    stack = list(reversed(node.inputs))
    while stack:
        value = stack.pop()
        assert value is not None
        inner = value.producer()
        reason = _reason_to_stop(node, inner, value) if inner is not None and is_op(inner, "Concat") else None
        if inner is not None and reason == "":
            stack += reversed(inner.inputs)
        else:
            parts.append(value)
            reasons += [reason] if reason else []
    return parts


def _goes_into_another(node: ir.Node) -> bool:
    """Return whether a Concat behind ``node`` takes its parts: a long chain is flattened once, from its end."""
    value = node.outputs[0]
    if not used_once(value):
        return False
    (reader,) = value.consumers()
    try:
        return is_op(reader, "Concat") and _reason_to_stop(reader, node, value) == ""
    except Decline:  # the reader's own business
        return False


def _reason_to_stop(node: ir.Node, inner: ir.Node, value: ir.Value) -> str:
    if not used_once(value):
        return f"{value.name} is used elsewhere"
    outer_axis, inner_axis = concat_axis(node), concat_axis(inner)
    if outer_axis != inner_axis:
        size = rank(value if value.shape is not None else node.outputs[0])
        if axis_of(outer_axis, size) != axis_of(inner_axis, size):
            return f"{value.name} is joined along axis {inner_axis}, not {outer_axis}"
    return ""


def _is_number(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and tensor.dtype != ir.DataType.STRING


def _concatenated(node: ir.Node, run: Sequence[ir.Value], tape: Tape) -> ir.Value:
    tensors = [tensor for value in run if (tensor := constant_tensor(value)) is not None]
    axis = axis_of(concat_axis(node), len(tensors[0].shape))
    if len({(t.dtype, tuple(t.shape)[:axis], tuple(t.shape)[axis + 1 :]) for t in tensors}) > 1:
        raise Decline(f"{run[0].name} … {run[-1].name} do not fit together")
    joined = np.concatenate([tensor.numpy() for tensor in tensors], axis)
    return tape.constant(joined, f"{node.outputs[0].name}_parts", tensors[0].dtype)


def _nbytes(value: ir.Value) -> int:
    tensor = constant_tensor(value)
    return tensor.nbytes if tensor is not None else 0
