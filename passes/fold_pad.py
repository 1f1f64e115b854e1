"""Fold a Pad into the padding of the convolution or pool behind it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import (
    attribute,
    axis_of,
    constant,
    constant_tensor,
    ints,
    is_op,
    opset,
    optional,
    scalar,
    static_shape,
    used_once,
)

CONVS = ("Conv", "ConvInteger", "QLinearConv")
POOLS = ("MaxPool", "AveragePool", "LpPool")

LOWER_BOUNDS = {"Relu": 0.0, "Sigmoid": 0.0, "HardSigmoid": 0.0, "Softplus": 0.0, "Softmax": 0.0, "Exp": 0.0}
"""The smallest number that an operator can give, whatever its input."""


class FoldPad(Rewrite):
    """Replace ``op(Pad(x, pads=p, v), pads=q)`` by ``op(x, pads=p + q)`` where ``op`` pads with ``v`` as well.

    ``v`` must be what the operator takes for the elements beside its input::

        Conv                     0
        ConvInteger, QLinearConv the zero point of x
        AveragePool              0, and it counts them: count_include_pad becomes 1, and must be 1 where q is not 0
        LpPool                   0
        MaxPool                  -inf or the smallest integer, or anything that is below every element of x: 0
                                 behind Relu

    Exact. **Source:** ONNX Pad-25 and the operators at opset 22, ConvInteger-10, QLinearConv-10; the amounts are an
    attribute below opset 11, and count_include_pad exists from 7. onnxruntime wants a pool's pads below its kernel.
    """

    anchor = (*CONVS, *POOLS)

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the operator with its new padding."""
        padded = node.inputs[0]
        pad = padded.producer() if padded is not None else None
        if padded is None or pad is None or not is_op(pad, "Pad"):
            return None
        if not used_once(padded) or pad.graph is not node.graph:
            raise Decline(f"{padded.name} is used elsewhere")
        if (mode := attribute(pad, "mode", "constant")) != "constant":
            raise Decline(f"{padded.name} is padded in mode {mode}")
        if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
            raise Decline("its indices count the padded elements")
        kernel = kernel_of(node)
        p = amounts(pad, len(kernel))
        q = own_pads(node, len(kernel))
        check_value(node, pad)
        if node.op_type in POOLS:
            check_pool(node, kernel, p, q)

        attributes: dict[str, Any] = {n: a for n, a in node.attributes.items() if n != "auto_pad"}
        attributes["pads"] = [m + n for m, n in zip(p, q, strict=True)]
        if is_op(node, "AveragePool") and any(p):
            attributes["count_include_pad"] = 1
        return tape.op(node.op_type, [pad.inputs[0], *node.inputs[1:]], attributes)


def kernel_of(node: ir.Node) -> tuple[int, ...]:
    """Return the sizes of the window."""
    if (kernel := attribute(node, "kernel_shape")) is not None:
        return tuple(kernel)
    if node.op_type in POOLS:
        raise Decline("it has no kernel_shape")
    w = optional(node, 3 if node.op_type == "QLinearConv" else 1)
    tensor = constant_tensor(w)
    return tuple(tensor.shape.numpy() if tensor is not None else static_shape(w))[2:]


def amounts(pad: ir.Node, spatial: int) -> list[int]:
    """Return what ``pad`` adds to the spatial axes: all beginnings, then all ends."""
    rank = spatial + 2
    if opset(pad) < 11:
        given = attribute(pad, "pads" if opset(pad) > 1 else "paddings", [])
    else:
        given = ints(optional(pad, 1))
    axes = ints(axes_of) if (axes_of := optional(pad, 3)) is not None else range(rank)
    if len(given) != 2 * len(axes):
        raise Decline(f"{pad.outputs[0].name} is padded by {len(given)} amounts for {len(axes)} axes")
    begins, ends = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begins[axis_of(axis, rank)], ends[axis_of(axis, rank)] = given[i], given[i + len(axes)]
    if any((*begins[:2], *ends[:2])):
        raise Decline(f"{pad.outputs[0].name} is padded along the batch or the channels")
    if min(given, default=0) < 0:
        raise Decline(f"{pad.outputs[0].name} is cropped: pads {list(given)}")
    return [*begins[2:], *ends[2:]]


def own_pads(node: ir.Node, spatial: int) -> list[int]:
    """Return the padding of ``node`` itself."""
    auto_pad = attribute(node, "auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID"):
        raise Decline(f"auto_pad {auto_pad} depends on the size of the padded input")
    if auto_pad == "VALID" and attribute(node, "ceil_mode", 0):
        raise Decline("auto_pad VALID rounds sizes in a way of its own where ceil_mode is 1")
    pads = attribute(node, "pads", [0] * 2 * spatial) if auto_pad == "NOTSET" else [0] * 2 * spatial
    return list(pads)


def check_value(node: ir.Node, pad: ir.Node) -> None:
    """Decline where ``node`` takes something else for the elements beside its input than ``pad`` puts there."""
    value = pad_value(pad)
    if node.op_type == "MaxPool":
        if not value <= lower_bound(pad.inputs[0]):
            raise Decline(f"the padding {value} may be larger than an element of {name_of(pad.inputs[0])}")
        return
    neutral: float = 0
    if node.op_type in ("ConvInteger", "QLinearConv"):
        point = optional(node, 2)
        zero_point = scalar(point) if point is not None else 0
        if zero_point is None:
            raise Decline(f"{name_of(point)} is not a constant")
        neutral = zero_point
    if value != neutral:
        raise Decline(f"{pad.outputs[0].name} is padded with {value}, {node.op_type} pads with {neutral}")


def pad_value(pad: ir.Node) -> float:
    """Return what ``pad`` puts beside its input."""
    if opset(pad) < 11:
        return float(attribute(pad, "value", 0.0))
    given = optional(pad, 2)
    return float(np.asarray(constant(given)).reshape(()).item()) if given is not None else 0.0


def lower_bound(value: ir.Value | None) -> float:
    """Return a number that no element of ``value`` is below."""
    maker = value.producer() if value is not None else None
    if maker is not None and maker.domain == "":
        if maker.op_type in LOWER_BOUNDS:
            return LOWER_BOUNDS[maker.op_type]
        if maker.op_type == "Clip":
            return clip_bound(maker)
    dtype = value.dtype if value is not None else None
    return float(np.iinfo(dtype.numpy()).min) if dtype is not None and dtype.is_integer() else -math.inf


def clip_bound(clip: ir.Node) -> float:
    """Return the lower bound of a Clip; its upper bound wins where that is the lower one."""
    if opset(clip) < 11:
        return float(min(attribute(clip, "min", -math.inf), attribute(clip, "max", math.inf)))
    low, high = optional(clip, 1), optional(clip, 2)
    bounds = scalar(low), math.inf if high is None else scalar(high)
    return -math.inf if None in bounds else float(min(b for b in bounds if b is not None))


def check_pool(node: ir.Node, kernel: tuple[int, ...], p: list[int], q: list[int]) -> None:
    """Decline where a pool's result depends on whether padding lies inside or beside its input."""
    if any(m + n >= size for m, n, size in zip(p, q, (*kernel, *kernel), strict=True)):
        raise Decline(
            f"pads {[m + n for m, n in zip(p, q, strict=True)]} are not below its kernel {list(kernel)}"
        )
    average = node.op_type == "AveragePool"
    if average and attribute(node, "ceil_mode", 0):
        raise Decline(
            "ceil_mode is 1, and a window that hangs over the end would be divided by another number"
        )
    if attribute(node, "ceil_mode", 0) and any(p[len(kernel) :]):
        raise Decline("ceil_mode is 1, and a window that starts in the padding would be dropped")
    if node.op_type == "MaxPool" and max(attribute(node, "dilations", [1])) > 1:
        raise Decline("its windows are dilated, and may hold nothing but padding")
    if average and opset(node) < 7:
        raise Decline("it cannot count padding before opset 7")
    if average and any(p) and any(q) and not attribute(node, "count_include_pad", 0):
        raise Decline(
            f"it does not count its own pads {q} (count_include_pad is 0), and counts those of the Pad"
        )


def name_of(value: ir.Value | None) -> str:
    """Return the value's name for a message."""
    return (value.name if value is not None else None) or "?"
