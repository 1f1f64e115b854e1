"""Thinner layers in the place of one."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt import Tape
from graphopt.query import attribute, optional

from .sites import Site
from .stages import Factors, Stage


def emit(site: Site, factors: Factors, tape: Tape, bias: ir.Value | None = None) -> ir.Value:
    """Record the layers that ``factors`` are the weights of; ``bias`` takes the place of the layer's own."""
    value, node = site.x, site.node
    given = optional(node, 2) if node.op_type != "MatMul" else None
    last = bias if bias is not None else given
    for number, (stage, weight) in enumerate(zip(factors.stages, factors.weights, strict=True), 1):
        end = number == len(factors.stages)
        array = weight if site.is_conv else weight.T
        inputs = [value, tape.constant(array, f"{site.weight.name}_factor{number}")]
        if end and last is not None:
            inputs.append(last)
        if site.is_conv:
            value = tape.op("Conv", inputs, _attributes(node, stage, weight.shape))
        elif end and node.op_type == "Gemm":
            value = tape.op("Gemm", inputs, _scales(node, bias is not None and given is None))
        else:
            value = tape.op("MatMul", inputs)
    return value


def _scales(node: ir.Node, new_bias: bool) -> dict[str, Any]:
    """Return what a Gemm multiplies its product by, and its bias where that is not new."""
    names = ("alpha",) if new_bias else ("alpha", "beta")
    return {name: node.attributes[name].as_float() for name in names if name in node.attributes}


def _attributes(node: ir.Node, stage: Stage, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what a convolution does along the axes that ``stage`` has the kernel of."""
    spatial = len(shape) - 2
    made: dict[str, Any] = {"kernel_shape": list(shape[2:])}
    if stage.depthwise:
        made["group"] = shape[0]
    if not stage.axes:
        return made
    for name in ("strides", "dilations", "pads"):
        given = attribute(
            node, name, [0 if name == "pads" else 1] * (2 * spatial if name == "pads" else spatial)
        )
        neutral = 0 if name == "pads" else 1
        kept = [number if i % spatial in stage.axes else neutral for i, number in enumerate(given)]
        if any(number != neutral for number in kept):
            made[name] = kept
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto != "NOTSET":
        made.pop("pads", None)
        made["auto_pad"] = auto
    return made
