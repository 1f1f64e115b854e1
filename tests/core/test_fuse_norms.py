"""Normalizations by onnxruntime's own numbers: shapes, epsilons and the sums beside them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import pipeline
from graphopt.testing import conformance, run, same_outputs, valid
from graphopt.text import from_text


def norm(shape: str, axes: str, epsilon: float, centred: bool, opset: int, kind: str = "float") -> ir.Model:
    start = f"m = ReduceMean <axes = {axes}> (x) d = Sub (x, m)" if centred else "d = Identity (x)"
    d = "d" if centred else "x"
    size = "6" if axes == "[-1]" else "5,6"
    count = 6 if axes == "[-1]" else 30
    numbers = ",".join(f"{(7 * i % 11) / 4 - 1}" for i in range(count))
    return from_text(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        main ({kind}[{shape}] x) => ({kind}[{shape}] y)
        <{kind} two = {{2.0}}, {kind} eps = {{{epsilon}}}, {kind}[{size}] s = {{{numbers}}},
         {kind}[{size}] b = {{{numbers}}}>
        {{ {start} q = Pow ({d}, two) v = ReduceMean <axes = {axes}> (q) e = Add (v, eps) r = Sqrt (e) n = Div ({d}, r)
           p = Mul (n, s) y = {"Add (p, b)" if centred else "Identity (p)"} }}"""
    )


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize(
    ("shape", "axes"), [("N,5,6", "[-1]"), ("N,5,6", "[-2, -1]"), ("N,6", "[-1]"), ("2,3,5,6", "[-1]")]
)
@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.5])
def test_the_numbers_stay(centred: bool, opset: int, shape: str, axes: str, epsilon: float) -> None:
    before = norm(shape, axes, epsilon, centred, opset)
    (step,) = pipeline.parse("fuse-layer-norm").passes()
    after, _, _ = run(step, before)
    wanted = "LayerNormalization" if centred else "SimplifiedLayerNormalization"
    assert wanted in {node.op_type for node in after.graph}
    assert "Sqrt" not in {node.op_type for node in after.graph}
    valid(after)
    dims = [4 if dim == "N" else int(dim) for dim in shape.split(",")]
    x = np.random.default_rng(0).normal(3, 2, dims).astype(np.float32)
    same_outputs(before, after, [{"x": x}])


def test_it_conforms() -> None:
    (step,) = pipeline.parse("fuse-layer-norm").passes()
    conformance(step, [norm("N,5,6", "[-1]", 1e-5, True, 17)])


@pytest.mark.parametrize("kind", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("skip", ["N,5,6", "1,5,6", "5,6"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_the_sum_is_the_same(kind: str, skip: str, bias: bool, elsewhere: bool) -> None:
    before = from_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        main (float[N,5,6] x, float[{skip}] k) => (float[N,5,6] y, float[N,5,6] z)
        <float[6] s = {{1.0,2.0,3.0,4.0,5.0,6.0}}, float[6] b = {{3.0,2.0,1.0,0.0,-1.0,-2.0}}>
        {{ d = {"Add (x, b)" if bias else "Neg (x)"} a = Add (d, k) y = {kind} (a, s)
           z = {"Mul (a, y)" if elsewhere else "Neg (y)"} }}"""
    )
    (step,) = pipeline.parse("fuse-skip-layer-norm").passes()
    after, entry, _ = run(step, before)
    assert len(entry.applied) == 1 + elsewhere
    (fused,) = [node for node in after.graph if node.domain == "com.microsoft"]
    assert len(fused.outputs) == (4 if elsewhere else 1)
    rng = np.random.default_rng(1)
    dims = [3 if dim == "N" else int(dim) for dim in skip.split(",")]
    feeds = {"x": rng.normal(size=(3, 5, 6)).astype("f"), "k": rng.normal(size=dims).astype("f")}
    same_outputs(before, after, [feeds])
    conformance(step, [before])


def test_a_sum_waits_for_scale_and_bias() -> None:
    """In one worklist the normalization is complete before it takes the sum."""
    before = norm("N,5,6", "[-1]", 1e-5, True, 17)
    x = before.graph.inputs[0]
    (total,) = from_text(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,5,6] x) => (float[N,5,6] a) { a = Add (x, x) }'
    ).graph
    total.graph.remove(total, safe=False)
    for use in list(x.uses()):
        use.node.replace_input_with(use.idx, total.outputs[0])
    for i in (0, 1):
        total.replace_input_with(i, x)
    before.graph.insert_before(before.graph[0], total)
    result = graphopt.optimize(before, "fixpoint(fuse-skip-layer-norm,fuse-layer-norm)")
    assert [node.op_type for node in result.model.graph] == ["SkipLayerNormalization"]
