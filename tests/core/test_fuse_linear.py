"""Matrix products by onnxruntime's own numbers: any transposes, factors and ranks that fit."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt import pipeline
from graphopt.testing import conformance, run, same_outputs
from graphopt.text import from_text

SIZES = (2, 3, 4, 5)


@st.composite
def products(draw: st.DrawFn) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Return a MatMul of two transposed and scaled inputs of any ranks, scaled itself."""
    nodes, constants, feeds = [], [], {}

    def scaled(name: str) -> str:
        if not draw(st.booleans()):
            return name
        number = f"{name}_c"
        constants.append(
            numpy_helper.from_array(np.float32(draw(st.sampled_from([0.5, 3.0, -0.125]))), number)
        )
        nodes.append(helper.make_node(draw(st.sampled_from(["Mul", "Div"])), [name, number], [f"{name}_s"]))
        return f"{name}_s"

    batch = list(draw(st.permutations(SIZES)))[: draw(st.integers(0, 2))]
    m, k, n = 3, 4, 5
    operands = []
    for name, matrix in (("a", (m, k)), ("b", (k, n))):
        shape = [*batch[draw(st.integers(0, len(batch))) :], *matrix]
        perm = draw(st.permutations(range(len(shape))))
        feeds[name] = np.random.default_rng(0).normal(size=[shape[perm.index(i)] for i in range(len(shape))])
        feeds[name] = feeds[name].astype(np.float32)
        nodes.append(helper.make_node("Transpose", [scaled(name)], [f"{name}_t"], perm=perm))
        operands.append(scaled(f"{name}_t"))
    nodes.append(helper.make_node("MatMul", operands, ["y"]))
    output = scaled("y")
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info(name, kind, array.shape) for name, array in feeds.items()],
        [helper.make_tensor_value_info(output, kind, None)],
        constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True)), feeds


@settings(max_examples=300, deadline=None, derandomize=True)
@given(products())
def test_a_fused_product_is_the_same(drawn: tuple[ir.Model, dict[str, np.ndarray]]) -> None:
    before, feeds = drawn
    (step,) = pipeline.parse("fuse-matmul").passes()
    after, _, _ = run(step, before)
    event("fused" if "FusedMatMul" in {node.op_type for node in after.graph} else "left alone")
    same_outputs(before, after, [feeds])


LAYER = """<ir_version: 10, opset_import: ["" : 20]> main (float[{x}] x{more}) => (float[{y}] y)
    <float[4,5] w = {{{w}}}{b}> {{ m = MatMul (x, w) y = Add (m, b) }}"""


@pytest.mark.parametrize("b", ["5", "1,5", "N,5", "N,1", "1,1", "1", ""])
def test_a_gemm_adds_what_it_can_broadcast(b: str) -> None:
    text = LAYER.format(
        x="N,4",
        y="N,5",
        w=",".join(f"{i % 7}.0" for i in range(20)),
        b="",
        more=f", float[{b}] b" if b else ", float b",
    )
    before = from_text(text)
    (step,) = pipeline.parse("fuse-matmul-add").passes()
    after, _, _ = run(step, before)
    assert [node.op_type for node in after.graph] == ["Gemm"]
    rng = np.random.default_rng(0)
    dims = [6 if dim == "N" else int(dim) for dim in b.split(",") if dim]
    feeds = {"x": rng.normal(size=(6, 4)).astype("f"), "b": rng.normal(size=dims).astype("f")}
    same_outputs(before, after, [feeds])


@pytest.mark.parametrize("leading", ["2,3", "B,3", "2,S", "B,S", "A,B,S"])
def test_leading_axes_come_back(leading: str) -> None:
    text = LAYER.format(
        x=f"{leading},4",
        y=f"{leading},5",
        w=",".join(f"{i % 7}.0" for i in range(20)),
        b=", float[5] b = {1.0,2.0,3.0,4.0,5.0}",
        more="",
    )
    before = from_text(text)
    (step,) = pipeline.parse("fuse-matmul-add{flatten=true}").passes()
    after, _, _ = run(step, before)
    assert "Gemm" in {node.op_type for node in after.graph}
    conformance(step, [before])


ACTIVATIONS = (
    "Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "LeakyRelu <alpha = 0.3>", "HardSigmoid",
    "HardSigmoid <alpha = 0.3, beta = 0.25>", "Elu", "Elu <alpha = 0.5>", "Softplus", "Softsign", "ThresholdedRelu",
    "ThresholdedRelu <alpha = 2.0>", "Selu", "Selu <alpha = 1.5, gamma = 0.5>",
)  # fmt: skip
ONLY_GEMM = ("Elu", "Softplus", "Softsign", "ThresholdedRelu", "Selu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gemm_activates(activation: str) -> None:
    before = from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]> main (float[N,3] x) => (float[N,3] y)
        <float[3,3] w = {{1.0,-2.0,3.0,-1.0,2.0,1.0,0.5,0.25,-3.0}}>
        {{ g = Gemm (x, w) y = {activation.partition(" ")[0]} {activation.partition(" ")[2]} (g) }}"""
    )
    _activated(before, "FusedGemm", activation.split()[0] != "HardSwish")


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "Clip"])
def test_a_convolution_activates(activation: str, residual: bool) -> None:
    op_type, _, numbers = activation.partition(" ")
    inputs = f"{'a' if residual else 'c'}{', low, high' if op_type == 'Clip' else ''}"
    before = from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]> main (float[2,2,5,5] x, float[2,3,3,3] z) => (float[2,3,3,3] y)
        <float[3,2,3,3] w = {{{",".join(f"{(5 * i % 13) / 4 - 1.5}" for i in range(54))}}}, float low = {{-1.0}},
         float high = {{2.0}}>
        {{ c = Conv (x, w) a = Add (c, z) y = {op_type} {numbers} ({inputs}) }}"""
    )
    if not residual:
        (add,) = [node for node in before.graph if node.op_type == "Add"]
        before.graph.remove(add, safe=True)
    _activated(before, "FusedConv", op_type not in ONLY_GEMM)


def _activated(before: ir.Model, op_type: str, fits: bool) -> None:
    (step,) = pipeline.parse("fuse-activation").passes()
    after, _, _ = run(step, before)
    assert (op_type in {node.op_type for node in after.graph}) == fits
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.normal(0, 2, [7 if not isinstance(dim, int) else dim for dim in value.shape]).astype(
            "f"
        )
        for value in before.graph.inputs
    }
    same_outputs(before, after, [feeds])
