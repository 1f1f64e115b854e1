"""Let a normalization do the addition before it."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import (
    attribute,
    axis_of,
    constant_tensor,
    is_op,
    optional,
    rank,
    same_dim,
    same_shape,
    used_once,
)

SKIP = {
    "LayerNormalization": "SkipLayerNormalization",
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
}
MICROSOFT = "com.microsoft"
SUM = 3
"""The output of the fused operator that is the sum itself."""


class FuseSkipLayerNorm(Rewrite):
    """Replace ``LayerNormalization(x + skip)`` by onnxruntime's ``SkipLayerNormalization(x, skip)``.

    ::

        LayerNormalization(x + skip, scale, b)              ->  SkipLayerNormalization(x, skip, scale, b)
        LayerNormalization((x + bias) + skip, scale, b)     ->  SkipLayerNormalization(x, skip, scale, b, bias)
        RMSNormalization(x + skip, scale)                   ->  SkipSimplifiedLayerNormalization(x, skip, scale)

    Where something else reads the sum, the fused operator gives it too. What the kernel takes: x of rank 2 or 3
    normalized over its last axis; a skip of the same shape, or of the last two axes of an x of rank 3; a bias of one
    axis. What it does not take is left alone.

    Exact up to rounding. Source: onnxruntime's com.microsoft SkipLayerNormalization and
    SkipSimplifiedLayerNormalization, version 1.
    """

    family: ClassVar[str] = "normalizations"
    anchor = ("Add", *SKIP)

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the normalization, or the sum that one gives."""
        if node.op_type == "Add":
            return None if used_once(node.outputs[0]) else _sum(node, tape)
        x = node.inputs[0]
        before = x.producer() if x is not None else None
        if before is None or x is None:
            return None
        if is_op(before, SKIP[node.op_type], domain=MICROSOFT):
            return before.outputs[0] if x is before.outputs[-1] and _same(node, before) else None
        if (
            not is_op(before, "Add")
            or before.graph is not node.graph
            or not used_once(x)
            or _is_unfinished(node)
        ):
            return None
        return _fused(node, before, tape)[0]


def _sum(add: ir.Node, tape: Tape) -> ir.Value | None:
    """Return the sum from a normalization of it, which then does not have to add again."""
    total = add.outputs[0]
    for norm in total.consumers():
        if (
            is_op(norm, *SKIP)
            and norm.inputs[0] is total
            and norm.graph is add.graph
            and not _is_unfinished(norm)
        ):
            late = [v.name for v in norm.inputs[1:] if v is not None and v.producer() is not None]
            if late:
                raise Decline(f"{late[0]} may be computed after {total.name}")
            return _fused(norm, add, tape)[SUM]
    return None


def _is_unfinished(norm: ir.Node) -> bool:
    """Return whether a constant after ``norm`` may yet become its scale or its bias, as in fuse-layer-norm."""
    if not used_once(norm.outputs[0]) or optional(norm, 2) is not None:
        return False
    (reader,) = norm.outputs[0].consumers()
    return is_op(reader, "Mul", *(["Add"] if _centred(norm) else [])) and any(
        tensor is not None and list(tensor.shape)[-1:] == list(norm.inputs[1].shape or ())
        for tensor in map(constant_tensor, reader.inputs)
        if norm.inputs[1] is not None
    )


def _fused(norm: ir.Node, add: ir.Node, tape: Tape) -> list[ir.Value]:
    """Record the operator that adds and normalizes; return its outputs."""
    total, scale = add.outputs[0], norm.inputs[1]
    if any(value.uses() or value.is_graph_output() for value in norm.outputs[1:]):
        raise Decline("the statistics of the normalization are used")
    if attribute(norm, "stash_type", 1) != ir.DataType.FLOAT:
        raise Decline("it does not compute in float")
    if rank(total) not in (2, 3):
        raise Decline(f"{total.name} is of rank {rank(total)}, and the kernel takes 2 and 3")
    if axis_of(attribute(norm, "axis", -1), rank(total)) != rank(total) - 1:
        raise Decline("it normalizes more than the last axis")
    if rank(scale) != 1:
        raise Decline(f"its scale is of rank {rank(scale)}, and the kernel takes 1")
    if not tape.has(SKIP[norm.op_type], MICROSOFT, total.dtype):
        raise Decline(f"the target has no kernel for {SKIP[norm.op_type]}")
    x, skip = _operands(add)
    x, skip, bias = _without_bias(x, skip, scale)
    inputs: list[ir.Value | None] = [x, skip, *norm.inputs[1:]]
    if bias is not None:
        inputs += [None] * ((4 if _centred(norm) else 3) - len(inputs)) + [bias]
    epsilon = {"epsilon": attribute(norm, "epsilon", 1e-5)}
    wanted = 1 if used_once(total) else SUM + 1
    outputs = [ir.Value(name="" if 0 < i < SUM else None) for i in range(wanted)]
    tape.op_multi_out(SKIP[norm.op_type], inputs, epsilon, outputs=outputs, domain=MICROSOFT)
    for output in (outputs[0], outputs[-1]):
        output.type, output.shape = total.type, total.shape.copy() if total.shape is not None else None
    return outputs


def _operands(add: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Return the operand that has the shape of the sum, and the one that may be broadcast to it."""
    total = add.outputs[0]
    a, b = add.inputs
    assert a is not None and b is not None, "both operands of Add are there"
    for x, skip in ((a, b), (b, a)):
        if not same_shape(x, total):
            continue
        if same_shape(skip, total):
            return x, skip
        if skip.shape is not None and _is_repeated(list(skip.shape), list(x.shape or ())):
            return x, skip
    raise Decline(f"the shapes of {a.name} and {b.name} are not known to be such as the kernel adds")


def _is_repeated(skip: list[int | ir.SymbolicDim], x: list[int | ir.SymbolicDim]) -> bool:
    """Return whether ``skip`` has the last two axes of an ``x`` of rank 3, and is the same for each of the first."""
    if len(x) != 3 or len(skip) not in (2, 3) or (len(skip) == 3 and skip[0] != 1):
        return False
    return all(same_dim(m, n) for m, n in zip(skip[-2:], x[-2:], strict=True))


def _without_bias(
    x: ir.Value, skip: ir.Value, scale: ir.Value | None
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Take an addition of a constant of one axis off one of the two operands."""
    for operand in (x, skip):
        add = operand.producer()
        if add is None or not is_op(add, "Add") or not used_once(operand):
            continue
        for i in (0, 1):
            source, bias = add.inputs[i], add.inputs[1 - i]
            tensor = constant_tensor(bias)
            if (
                tensor is None
                or source is None
                or scale is None
                or tuple(tensor.shape) != tuple(scale.shape or ())
            ):
                continue
            if same_shape(source, operand):
                return (source, skip, bias) if operand is x else (x, source, bias)
    return x, skip, None


def _centred(norm: ir.Node) -> bool:
    return norm.op_type == "LayerNormalization"


def _same(norm: ir.Node, fused: ir.Node) -> bool:
    """Return whether a fused operator normalizes as ``norm`` does."""
    mine = [*norm.inputs[1:], None][: 2 if _centred(norm) else 1]
    theirs = [optional(fused, i) for i in ((2, 3) if _centred(norm) else (2,))]
    return mine == theirs and attribute(norm, "epsilon", 1e-5) == attribute(fused, "epsilon", 1e-5)
