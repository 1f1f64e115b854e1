"""Where pairs go: onnxruntime fuses or drops each of them, and what would cost more than it gains stays in floats."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.plugins import get_backend
from graphopt.text import from_text

CPU = "onnxruntime:cpu"
FEEDS = [{"x": np.linspace(-1, 1, 2 * 8 * 8, dtype=np.float32).reshape(1, 2, 8, 8)}]

CARRIED = {
    "MaxPool": "MaxPool <kernel_shape = [2, 2]> (a)",
    "ReduceMax": "ReduceMax <keepdims = 1> (a, rows)",
    "Resize": 'Resize <mode = "nearest"> (a, , twice)',
    "DepthToSpace": "DepthToSpace <blocksize = 1> (a)",
    "Slice": "Slice (a, zero, four, rows)",
    "Gather": "Gather <axis = 2> (a, some)",
    "Expand": "Expand (a, shape)",
    "Tile": "Tile (a, shape)",
    "Reshape": "Reshape (a, square)",
    "Transpose": "Transpose <perm = [0, 1, 3, 2]> (a)",
}
KERNELS = {
    "QLinearLeakyRelu": "LeakyRelu <alpha = 0.1> (a)",
    "QLinearAveragePool": "AveragePool <kernel_shape = [2, 2]> (a)",
    "QLinearGlobalAveragePool": "GlobalAveragePool (a)",
    "QLinearAdd": "Add (a, a)",
    "QLinearMul": "Mul (a, a)",
    "QLinearConcat": "Concat <axis = 2> (a, a)",
}


def between(operator: str, opset: int = 18) -> ir.Model:
    """Return a Conv, an operator on ``a``, another Conv, and a Neg, which reads floats."""
    return from_text(f"""<ir_version: 8, opset_import: ["" : {opset}]>
        main (float[1,2,8,8] x) => (float[1,2,N,M] z)
        <float[2,2,1,1] w = {{1,2,3,4}}, int64[1] rows = {{2}}, float[4] twice = {{1,1,2,2}}, int64[1] zero = {{0}},
         int64[1] four = {{4}}, int64[3] some = {{0,2,4}}, int64[4] shape = {{1,1,1,1}},
         int64[4] square = {{1,2,4,16}}>
        {{ a = Conv (x, w) b = {operator} y = Conv (b, w) z = Neg (y) }}""")


def quantized(model: ir.Model, options: str = "") -> ir.Model:
    return graphopt.optimize(
        model, f"insert-qdq{options}", calibration=FEEDS, target=CPU, strict=True, verify=True
    ).model


def lowered(model: ir.Model) -> Counter[str]:
    graph = get_backend(CPU).lowered(model)
    assert graph is not None
    return Counter(node.op_type for node in graph.graph)


@pytest.mark.parametrize("name", CARRIED)
def test_no_pair_is_left_around_what_moves_numbers(name: str) -> None:
    model = quantized(between(CARRIED[name]))
    (node,) = (node for node in model.graph if node.op_type == name)
    (before,), (after,) = (node.inputs[0].producer(),), (node.outputs[0].uses()[0].node,)  # type: ignore[union-attr]
    assert before is not None and (before.op_type, after.op_type) == ("DequantizeLinear", "QuantizeLinear")
    assert before.inputs[1:] == after.inputs[1:], "the same scale and zero point on both sides"
    kinds = lowered(model)
    assert (kinds["QLinearConv"], kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (2, 1, 1)


@pytest.mark.parametrize("name", KERNELS)
def test_no_pair_is_left_around_what_has_an_integer_kernel(name: str) -> None:
    kinds = lowered(quantized(between(KERNELS[name])))
    assert (kinds["QLinearConv"], kinds[name], kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (
        2,
        1,
        1,
        1,
    )


def test_integers_of_a_maxpool_wait_for_an_opset_that_has_them() -> None:
    """ONNX's MaxPool takes bytes from opset 12 on; before, the pool stays in floats between two pairs."""
    model = quantized(between("MaxPool <kernel_shape = [2, 2]> (a)", opset=11))
    (pool,) = (node for node in model.graph if node.op_type == "MaxPool")
    (after,) = (use.node for use in pool.outputs[0].uses())
    (before,) = (pool.inputs[0].producer(),)  # type: ignore[union-attr]
    assert before is not None and before.inputs[1] is not after.inputs[1], "each its own scale"


@pytest.mark.parametrize(("channels", "integers"), [(191, 0), (192, 1)])
def test_a_conv_that_hardsigmoid_reads_pays_from_192_products_on(channels: int, integers: int) -> None:
    """The first Conv sums 2 products for each number, the second as many as there are channels."""
    numbers = ",".join(str(i % 7 - 3) for i in range(2 * channels))
    model = from_text(f"""<ir_version: 8, opset_import: ["" : 18]>
        main (float[1,2,8,8] x) => (float[1,2,8,8] z)
        <float[{channels},2,1,1] w = {{{numbers}}}, float[2,{channels},1,1] v = {{{numbers}}}>
        {{ a = Conv (x, w) b = HardSigmoid (a) c = Mul (a, b) d = Conv (c, v) e = HardSigmoid (d) z = Mul (d, e) }}""")
    assert lowered(quantized(model))["QLinearConv"] == integers


def test_nodes_that_are_included_are_not_asked_whether_they_pay() -> None:
    model = from_text("""<ir_version: 8, opset_import: ["" : 18]>
        main (float[1,2,8,8] x) => (float[1,2,8,8] z)
        <float[2,2,1,1] w = {1,2,3,4}>
        { a = Conv (x, w) b = Sigmoid (a) z = Mul (a, b) }""")
    assert lowered(quantized(model))["QLinearConv"] == 0
    assert lowered(quantized(model, "{include=[Conv]}"))["QLinearConv"] == 1


def test_a_light_conv_whose_channels_are_weighted_in_floats_stays_in_floats() -> None:
    """As in squeeze-and-excitation: a Mul has an integer kernel, but one of its sides comes from HardSigmoid."""
    model = from_text("""<ir_version: 8, opset_import: ["" : 18]>
        main (float[1,2,8,8] x) => (float[1,2,8,8] z)
        <float[2,2,1,1] w = {1,2,3,4}>
        { a = Conv (x, w) p = GlobalAveragePool (a) s = HardSigmoid (p) z = Mul (a, s) }""")
    result = graphopt.optimize(model, "insert-qdq", calibration=FEEDS, target=CPU, strict=True)
    (declined,) = result.report.passes[0].declined
    assert (declined.where, declined.reason) == (
        "a",
        "Mul z reads its result in floats; its products for each number, 2, are too few to pay for converting it",
    )
    assert lowered(result.model)["QLinearConv"] == 0
