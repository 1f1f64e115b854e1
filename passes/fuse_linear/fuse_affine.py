"""Scale and shift channels by a convolution, between convolutions."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape, op_info
from graphopt.query import is_op, opset, rank, used_once

from ..fusion import MICROSOFT
from ..simplify_arithmetic.steps import Array, Form, Step

BLOCKED = "com.microsoft.nchwc"
"""Domain of onnxruntime's operators on channels in blocks, which it makes of convolutions by itself."""
BLOCK = 16
"""Channels in a block, at most; of other numbers of channels onnxruntime makes no blocked convolution."""
LAYERS = "Conv MaxPool AveragePool GlobalAveragePool GlobalMaxPool".split()
NEAR = 3
"""How many elementwise operators may lie between, which work on blocks as well."""


class FuseAffine(Rewrite):
    """Replace ``x * s + b``, between convolutions, by a depthwise ``Conv(x, s, b)`` of 1 x 1 elements.

    With ``s`` and ``b`` one number in all, or one for each of the C channels::

        w' = s    (C, 1, 1, 1)
        b' = b    (C,)

    onnxruntime's CPU keeps channels in blocks of 8 or 16 from one convolution to the next, and orders them anew for
    any operation with a constant between. Done where a convolution or a pool is near on both sides, C is a multiple
    of 16 and the target has such convolutions; ``fold-affine`` comes first, which needs no operator at all.

    Exact up to rounding. Source: ONNX Conv-22, y[c] = w[c] * x[c] + b[c] for group = C and kernels of one element;
    onnxruntime's NCHWc transformer.
    """

    family: ClassVar[str] = "linear"
    anchor = ("Mul", "Div", "Add", "Sub", "Neg")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the convolution that scales and shifts."""
        step = Step.of(node)
        if step is None or step.form is Form.INVERSE or step.dtype != ir.DataType.FLOAT or opset(node) < 7:
            return None
        if not tape.has("Conv", BLOCKED, step.dtype) or not _leads_to_layer(node, NEAR):
            return None
        if _completed(node):
            return None
        y, steps = step.x, [step]
        before = Step.of(y.producer()) if step.form is Form.SHIFT and used_once(y) else None
        if before is not None and before.form is Form.SCALE:
            y, steps = before.x, [before, step]
        if not _comes_from_layer(y, NEAR):
            return None
        return _convolution(node, y, steps, tape)


def _completed(node: ir.Node) -> bool:
    """Return whether the sum that follows takes ``node`` in."""
    value = node.outputs[0]
    reader = value.consumers()[0] if used_once(value) else None
    after = Step.of(reader)
    return node.op_type in ("Mul", "Div", "Neg") and after is not None and after.form is Form.SHIFT


def _leads_to_layer(node: ir.Node, steps: int) -> bool:
    for reader in node.outputs[0].consumers():
        if _is_layer(reader) or (
            steps and op_info(reader).elementwise and _leads_to_layer(reader, steps - 1)
        ):
            return True
    return False


def _comes_from_layer(value: ir.Value | None, steps: int) -> bool:
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if _is_layer(node):
        return True
    return (
        bool(steps)
        and op_info(node).elementwise
        and any(_comes_from_layer(v, steps - 1) for v in node.inputs)
    )


def _is_layer(node: ir.Node) -> bool:
    return is_op(node, *LAYERS) or is_op(node, "FusedConv", domain=MICROSOFT)


def _convolution(node: ir.Node, x: ir.Value, steps: list[Step], tape: Tape) -> ir.Value:
    if rank(x) != 4 or x.shape is None:
        raise Decline(f"{x.name} has {rank(x)} dimensions, not 4")
    channels = x.shape[1]
    if not isinstance(channels, int) or channels % BLOCK:
        raise Decline(f"{x.name} has {channels} channels, not a multiple of {BLOCK}")
    w, b = np.ones(channels), np.zeros(channels)
    for step in steps:
        c = _per_channel(step, channels)
        if step.form is Form.SCALE:
            w = w * c
        else:
            w, b = (-w if step.form is Form.MIRROR else w), b + c
    if not (np.isfinite(w).all() and np.isfinite(b).all()):
        raise Decline(f"the factor of {x.name} is not finite")
    y = node.outputs[0].name
    return tape.op(
        "Conv",
        [
            x,
            tape.constant(w.astype(np.float32).reshape(-1, 1, 1, 1), f"{y}_weight"),
            tape.constant(b.astype(np.float32), f"{y}_bias"),
        ],
        {"group": channels, "kernel_shape": [1, 1]},
    )


def _per_channel(step: Step, channels: int) -> Array:
    """Return the constant as one number, or as one for each channel."""
    c = step.c
    if c.size == 1 and c.ndim <= 4:
        return c.reshape(())
    if c.size != channels or c.ndim not in (3, 4) or c.shape[-3] != channels:
        raise Decline(
            f"a constant of shape {list(c.shape)} is not one number for each of the {channels} channels"
        )
    return c.reshape(-1)
