"""What slides a window gets the shape that algebra gives it, without algebra where sizes stay."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from onnx_shape_inference import ShapeInferenceContext, registry

from graphopt.analysis.windows import keeps_sizes

FLOAT = ir.TensorType(ir.DataType.FLOAT)
SAME = {"pads": [1, 1, 1, 1]}


def node(op_type: str, shape: list[Any], weight: list[int] | None, **attributes: Any) -> ir.Node:
    values = [ir.Value(name="x", type=FLOAT, shape=ir.Shape(shape))]
    if weight is not None:
        values.append(ir.Value(name="w", type=FLOAT, shape=ir.Shape(weight)))
    return ir.node(op_type, values, attributes)


@pytest.mark.parametrize(
    ("op_type", "shape", "weight", "attributes"),
    [
        ("Conv", ["N", 3, "H", "W"], [8, 3, 3, 3], SAME),
        ("Conv", ["N", 3, "H", 17], [8, 3, 3, 3], {"pads": [1, 0, 1, 2], "strides": [1, 2]}),
        ("Conv", ["N", 3, "H", "W"], [8, 3, 3, 3], {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
        ("Conv", ["N", 3, "T"], [8, 3, 5], {"pads": [4, 0]}),
        ("Conv", ["N", 3, "H", "W"], [8, 3, 1, 1], {}),
        ("Conv", [2, 3, 11, 13], [8, 3, 3, 3], {"strides": [2, 3], "kernel_shape": [3, 3]}),
        ("MaxPool", ["N", "C", "H", "W"], None, {"kernel_shape": [3, 3], **SAME}),
        ("AveragePool", ["N", "C", 9, "W"], None, {"kernel_shape": [2, 1], "strides": [2, 1]}),
    ],
)
def test_sizes_that_stay_are_what_algebra_gives(
    op_type: str, shape: list[Any], weight: list[int] | None, attributes: dict[str, Any]
) -> None:
    context = ShapeInferenceContext({"": 21}, policy="refine")
    fast, slow = (node(op_type, shape, weight, **attributes) for _ in range(2))
    assert keeps_sizes(context, fast)
    registry.collect()
    handler = registry.get("", op_type, version=21)
    assert handler is not None
    handler(context, slow)
    assert fast.outputs[0].shape == slow.outputs[0].shape
    assert fast.outputs[0].dtype == slow.outputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("op_type", "shape", "weight", "attributes"),
    [
        ("Conv", ["N", 3, "H", "W"], [8, 3, 3, 3], {}),
        ("Conv", ["N", 3, "H", "W"], [8, 3, 3, 3], {**SAME, "strides": [2, 2]}),
        ("Conv", ["N", 3, "H", "W"], [8, 3, 3, 3], {"auto_pad": "SAME_UPPER"}),
        ("Conv", ["N", 3, "H", "W"], [8, 3, 3, 3], {"pads": [1, 1]}),
        ("Conv", ["N", 3, "H", "W"], [8, 3, 3], SAME),
        ("MaxPool", ["N", 3, "H", "W"], None, {"kernel_shape": [1, 1], "ceil_mode": 1}),
        ("MaxPool", ["N", 3, "H", "W"], None, {}),
        ("GlobalMaxPool", ["N", 3, "H", "W"], None, {}),
    ],
)
def test_everything_else_is_left_to_algebra(
    op_type: str, shape: list[Any], weight: list[int] | None, attributes: dict[str, Any]
) -> None:
    sliding = node(op_type, shape, weight, **attributes)
    assert not keeps_sizes(ShapeInferenceContext({"": 21}, policy="refine"), sliding)
    assert sliding.outputs[0].shape is None
