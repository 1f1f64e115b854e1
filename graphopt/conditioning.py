"""How far rounding carries in one model: what comes out when each node rounds a little differently."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .analysis.shapes import Shapes
from .model import clone

EPSILON = {ir.DataType.FLOAT: 2.0**-23, ir.DataType.DOUBLE: 2.0**-52}
"""Of the types that are nudged; coarser ones round by more than anything that is done to them."""


def nudged(model: ir.Model, seed: int = 0) -> ir.Model:
    """Return a copy in which what each node makes is one unit in the last place higher or lower.

    Elements take turns along the last axis where its size is known, else they all go the same way. On
    MobileNetV3, ResNet-50 and EfficientNet-Lite0 the outputs move by as much as folding BatchNormalization moves them.
    """
    copy = clone(model)
    shapes, rng = Shapes(copy), np.random.default_rng(seed)
    for node in list(copy.graph):
        shapes.infer(node)
        for value in node.outputs:
            if value.type is None:
                value.shape = None
            if value.dtype in EPSILON and value.uses() and node.op_type != "Constant":
                _nudge(copy.graph, node, value, value.dtype, rng)
    return copy


def _nudge(
    graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType, rng: np.random.Generator
) -> None:
    last = value.shape[-1] if value.shape is not None and len(value.shape) else 1
    factors = 1 + EPSILON[dtype] * rng.choice([-1, 1], last if isinstance(last, int) else 1)
    tensor = ir.Tensor(factors.astype(dtype.numpy()), name=f"{value.name}/nudge")
    factor = ir.Value(
        name=tensor.name, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape), const_value=tensor
    )
    graph.register_initializer(factor)
    readers = list(value.uses())
    scaled = ir.node("Mul", [value, factor])
    scaled.outputs[0].name = f"{value.name}/nudged"
    for reader, index in readers:
        reader.replace_input_with(index, scaled.outputs[0])
    graph.insert_after(node, scaled)
