"""Shapes of what slides a window over its input, where no arithmetic on symbols is needed to know them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnx_shape_inference import ShapeInferenceContext

Dim = int | ir.SymbolicDim

SLIDING = ("Conv", "MaxPool", "AveragePool")


def keeps_sizes(context: ShapeInferenceContext, node: ir.Node) -> bool:
    """Set the shape of what ``node`` makes, if it is one of ``SLIDING`` and each size is a number or stays.

    Most convolutions keep the sizes that they slide over: ``(size + pads - reach) / 1``, ``pads = reach``.
    Algebra would find that out too, in milliseconds for each.
    """
    if node.op_type not in SLIDING or node.domain != "" or len(node.outputs) != 1:
        return False
    x = node.inputs[0]
    if x is None or x.shape is None or len(x.shape) < 3:
        return False
    given = {name: attr.value for name, attr in node.attributes.items() if not attr.is_ref()}
    if given.get("auto_pad", "NOTSET") != "NOTSET" or given.get("ceil_mode", 0):
        return False
    if node.op_type == "Conv":
        weight = node.inputs[1].shape if node.inputs[1] is not None else None
        if weight is None or len(weight) != len(x.shape) or not weight.is_static():
            return False
        channels, kernel = weight[0], weight.numpy()[2:]
    else:
        channels, kernel = x.shape[1], given.get("kernel_shape", ())
    sizes = _slide(x.shape[2:], kernel, given)
    if sizes is None:
        return False
    context.set_shape_and_dtype(node.outputs[0], ir.Shape([x.shape[0], channels, *sizes]), x.dtype)
    return True


def _slide(sizes: Sequence[Dim], kernel: Sequence[int], given: dict[str, Any]) -> list[Dim] | None:
    """Return how many windows fit along each axis, ``None`` where that takes algebra."""
    n = len(sizes)
    pads, strides, dilations = (
        given.get(name) or default
        for name, default in (("pads", [0] * 2 * n), ("strides", [1] * n), ("dilations", [1] * n))
    )
    if not len(kernel) == len(strides) == len(dilations) == len(pads) / 2 == n or min(strides) < 1:
        return None
    fits: list[Dim] = []
    for size, k, stride, dilation, before, after in zip(
        sizes, kernel, strides, dilations, pads[:n], pads[n:], strict=True
    ):
        slack = before + after - dilation * (k - 1)
        if isinstance(size, int):
            fits.append((size + slack - 1) // stride + 1)
        elif stride == 1 and slack == 0:
            fits.append(size)
        else:
            return None
    return fits
