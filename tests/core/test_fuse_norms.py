"""Normalizations by onnxruntime's own numbers: shapes, epsilons and the sums beside them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

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
        <{kind} two = {{2.0}}, {kind} eps = {{{epsilon}}}, {kind}[{size}] s = {{{numbers}}}, {kind}[{size}] b = {{{numbers}}}>
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
