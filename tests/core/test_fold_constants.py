"""What case files of fold-constants cannot express: numbers that only onnxruntime tells, and what is not read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt
from graphopt.backends import session as sessions
from graphopt.text import from_text

ENDS = st.one_of(st.integers(-9, 9), st.sampled_from([-(2**31), 2**31 - 1, -(2**63), 2**63 - 1]))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5), ENDS, ENDS, st.sampled_from([-3, -2, -1, 1, 2, 3]))
def test_a_folded_slice_is_what_onnxruntime_takes(size: int, start: int, end: int, step: int) -> None:
    data = ",".join(map(str, range(size)))
    model = from_text(f"""<ir_version: 10, opset_import: ["" : 20]>
        main (int64[1] x) => (int64[N] y)
        <int64[{size}] a = {{{data}}}, int64[1] from = {{{start}}}, int64[1] to = {{{end}}}, int64[1] axis = {{0}},
         int64[1] step = {{{step}}}>
        {{ s = Slice (a, from, to, axis, step) y = Concat <axis = 0> (s, x) }}""")
    folded = graphopt.optimize(model, "fold-constants", verify=False).model
    declined = step < 0 and end >= 2**31 - 1
    assert [node.op_type for node in folded.graph] == (["Slice", "Concat"] if declined else ["Concat"])
    feeds = {"x": np.array([7])}
    want, got = (sessions.run(sessions.create(m, optimize="none"), feeds)["y"] for m in (model, folded))
    np.testing.assert_array_equal(got, want)


def test_a_transposed_weight_is_a_view_of_the_weight() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 3]))
    w = ir.Value(
        name="w", const_value=ir.tensor(weight), type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 3])
    )
    turn = ir.node("Transpose", [w], {"perm": [1, 0]})
    product = ir.node("MatMul", [x, turn.outputs[0]])
    product.outputs[0].name = "y"
    graph = ir.Graph([x], product.outputs, nodes=[turn, product], initializers=[w], opset_imports={"": 20})
    result = graphopt.optimize(ir.Model(graph, ir_version=10), "fold-constants")
    (turned,) = result.model.graph.initializers.values()
    assert turned.const_value is not None
    assert np.shares_memory(turned.const_value.numpy(), weight)
    assert result.report.verified


@pytest.mark.parametrize(
    ("shape", "indices", "batch"),
    [
        ([3, 4, 5], [2, 2], 0),
        ([3, 4, 5], [6, 7, 3], 0),
        ([3, 4, 5], [3, 2], 1),
        ([2, 4, 5], [2, 3, 1], 1),
        ([2, 3, 5, 4], [2, 3, 2], 2),
        ([2, 3, 4], [2, 2, 6, 1], 1),
    ],
)
def test_a_folded_gather_of_slices_is_what_onnxruntime_takes(
    shape: list[int], indices: list[int], batch: int
) -> None:
    rng = np.random.default_rng(0)
    data = ",".join(map(str, range(int(np.prod(shape)))))
    sizes = np.array(shape[batch : batch + indices[-1]])
    chosen = ",".join(map(str, rng.integers(-sizes, sizes, indices).reshape(-1)))
    model = from_text(f"""<ir_version: 10, opset_import: ["" : 20]>
        main (int64[1] x) => (int64[N] y)
        <int64[{",".join(map(str, shape))}] a = {{{data}}}, int64[{",".join(map(str, indices))}] i = {{{chosen}}},
         int64[1] flat = {{-1}}>
        {{ g = GatherND <batch_dims = {batch}> (a, i) f = Reshape (g, flat) y = Concat <axis = 0> (f, x) }}""")
    folded = graphopt.optimize(model, "fold-constants", verify=False).model
    assert [node.op_type for node in folded.graph] == ["Concat"]
    feeds = {"x": np.array([7])}
    want, got = (sessions.run(sessions.create(m, optimize="none"), feeds)["y"] for m in (model, folded))
    np.testing.assert_array_equal(got, want)


def _applied(text: str, options: str = "") -> tuple[graphopt.Result, list[str]]:
    result = graphopt.optimize(from_text(text), f"fold-constants{options}", strict=True)
    (entry,) = result.report.passes
    return result, [applied.where for applied in entry.applied]


def test_a_chain_of_constant_nodes_is_one_rewrite() -> None:
    result, applied = _applied("""<ir_version: 10, opset_import: ["" : 20]>
        main (float[2] x) => (float[2] y)
        {
           a = Constant <value_floats = [1.0, 2.0]> () s = Shape (a) z = Constant <value_float = 3.0> ()
           e = Expand (z, s) c = Add (e, a) y = Mul (x, c)
        }""")
    assert applied == ["a", "c"], "a has two readers"
    assert [node.op_type for node in result.model.graph] == ["Mul"]
    assert result.model.graph.initializers["c"].const_value.numpy().tolist() == [4.0, 5.0]


def test_what_waited_for_a_node_that_is_too_large_is_folded_after_all() -> None:
    result, applied = _applied(
        """<ir_version: 10, opset_import: ["" : 20]>
        main (float[4] x) => (float[4] y)
        <int64[2] two = {2, 2}, int64[1] zero = {0}>
        {
           one = Constant <value_float = 1.0> () m = Neg (one)
           n = ReduceProd <keepdims = 0> (two) k = Unsqueeze (n, zero)
           e = Expand (m, k) y = Mul (x, e)
        }""",
        "{limit_bytes=12}",
    )
    assert applied == ["m", "k"]
    assert [node.op_type for node in result.model.graph] == ["Expand", "Mul"]
    (declined,) = result.report.passes[0].declined
    assert (declined.where, declined.reason) == ("e", "its result has 16 bytes, more than limit_bytes, 12")


def test_a_long_chain_is_folded_in_parts() -> None:
    links = " ".join(f"v{i + 1} = Neg (v{i})" for i in range(200))
    result, applied = _applied(f"""<ir_version: 10, opset_import: ["" : 20]>
        main (float x) => (float y) <float v0 = {{1.5}}> {{ {links} y = Mul (x, v200) }}""")
    assert applied == ["v65", "v130", "v195", "v200"]
    assert result.model.graph.initializers["v200"].const_value.numpy() == 1.5


def test_a_bisection_leaves_out_a_whole_cone() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
        main (float x) => (float y) <float v0 = {1.5}> { a = Neg (v0) b = Exp (a) c = Neg (b) y = Mul (x, c) }"""
    kept = graphopt.optimize(from_text(text), "fold-constants", bisect_limit=0).model
    assert [node.op_type for node in kept.graph] == ["Neg", "Exp", "Neg", "Mul"]
