"""The ways to write an activation, each by onnxruntime's own numbers, and models as exporters write them."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import pipeline
from graphopt.testing import conformance, run, same_outputs
from graphopt.text import from_text

HALVES = ("Mul (x, half)", "Mul (half, x)", "Div (x, two)")
SCALES = ("Div (x, root)", "Mul (x, inverse)", "Mul (inverse, x)")
SUMS = ("Add (e, one)", "Add (one, e)", "Sub (e, minus)")


def model(body: str, opset: int = 17) -> ir.Model:
    constants = {
        "half": 0.5, "one": 1, "two": 2, "minus": -1, "three": 3, "cubic": 0.044715,
        "root": np.sqrt(2), "inverse": np.sqrt(0.5), "angle": np.sqrt(2 / np.pi),
    }  # fmt: skip
    texts = ", ".join(f"float {name} = {{{float(np.float32(value))!r}}}" for name, value in constants.items())
    return from_text(
        f'<ir_version: 8, opset_import: ["" : {opset}]> main (float[N,8] x) => (float[N,8] y) <{texts}> {{ {body} }}'
    )


def fused(text: str, name: str, opset: int = 17) -> list[str]:
    (step,) = pipeline.parse(name).passes()
    before = model(text, opset)
    after, _, _ = run(step, before)
    x = np.concatenate([np.linspace(-12, 12, 400), [0.0] * 8]).astype(np.float32).reshape(-1, 8)
    same_outputs(before, after, [{"x": x}])
    return [node.op_type for node in after.graph]


@pytest.mark.parametrize(("half", "scale", "total"), [*itertools.product(HALVES, SCALES, SUMS)])
def test_each_writing_of_gelu_is_one(half: str, scale: str, total: str) -> None:
    nodes = f"d = {scale} e = Erf (d) s = {total}"
    assert fused(f"{nodes} h = {half} y = Mul (h, s)", "fuse-gelu") == ["Gelu"]
    assert fused(f"{nodes} h = Mul (s, x) y = {half.replace('x', 'h')}", "fuse-gelu") == ["Gelu"]
    assert fused(f"{nodes} h = {half.replace('x', 's')} y = Mul (x, h)", "fuse-gelu") == ["Gelu"]


CUBES = ("c = Pow (x, three)", "q = Mul (x, x) c = Mul (q, x)", "q = Pow (x, two) c = Mul (x, q)")
INNER = (
    "m = Mul (c, cubic) a = Add (x, m) b = Mul (a, angle)",
    "m = Mul (cubic, c) a = Add (m, x) b = Mul (angle, a)",
    "m = Mul (c, cubic) p = Mul (m, angle) k = Mul (x, angle) b = Add (k, p)",
)


@pytest.mark.parametrize(("cube", "inner", "half"), [*itertools.product(CUBES, INNER, HALVES)])
def test_each_writing_of_the_approximation_is_one(cube: str, inner: str, half: str) -> None:
    nodes = f"{cube} {inner} t = Tanh (b) s = Add (t, one)"
    assert fused(f"{nodes} h = {half} y = Mul (h, s)", "fuse-gelu") == ["FastGelu"]
    assert fused(f"{nodes} h = Mul (x, s) y = {half.replace('x', 'h')}", "fuse-gelu", 20) == ["Gelu"]


def test_an_approximation_is_not_taken_for_the_exact_one() -> None:
    """erf and tanh swapped: neither is a Gelu."""
    erf = (
        "c = Pow (x, three) m = Mul (c, cubic) a = Add (x, m) b = Mul (a, angle) t = Erf (b) s = Add (t, one)"
    )
    tanh = "d = Div (x, root) e = Tanh (d) s = Add (e, one)"
    for nodes in (erf, tanh):
        assert fused(f"{nodes} h = Mul (x, half) y = Mul (h, s)", "fuse-gelu")[-1] == "Mul"


@pytest.mark.parametrize("alpha", [1.0, 0.25, 1.702, 3.0, -1.0])
def test_quick_gelu_of_any_slope_is_a_swish(alpha: float) -> None:
    """onnxruntime's kernel computes x * sigmoid(alpha * x), also for alpha = 1."""
    text = f"k = Constant <value_float = {alpha}> () a = Mul (x, k) s = Sigmoid (a) y = Mul (x, s)"
    assert fused(text, "fuse-swish") == ["QuickGelu"]


@pytest.mark.parametrize("name", ["fuse-gelu", "fuse-swish"])
def test_it_conforms(name: str) -> None:
    swish = "k = Constant <value_float = 1.702> () a = Mul (x, k) s = Sigmoid (a) y = Mul (x, s)"
    (step,) = pipeline.parse(name).passes()
    conformance(step, [model(swish)])


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_gelu_adds_its_bias(approximate: str) -> None:
    before = from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]> main (float[N,8] x) => (float[N,8] y)
        <float[8] b = {{-2.0,-1.0,-0.5,0.0,0.25,1.0,2.0,4.0}}>
        {{ a = Add (x, b) y = Gelu <approximate = "{approximate}"> (a) }}"""
    )
    (step,) = pipeline.parse("fuse-bias-gelu").passes()
    after, _, _ = run(step, before)
    assert [node.op_type for node in after.graph] == ["BiasGelu" if approximate == "none" else "FastGelu"]
    same_outputs(before, after, [{"x": np.linspace(-8, 8, 800, dtype=np.float32).reshape(-1, 8)}])
    conformance(step, [before])


@pytest.mark.parametrize("order", ["fuse-gelu,fold-affine", "fold-affine,fuse-gelu,fold-affine"])
def test_a_layer_may_take_the_half_before(order: str) -> None:
    """As fold-affine does with 0.5 * (x * (1 + erf(x / sqrt(2)))) before a MatMul."""
    before = from_text(
        """<ir_version: 10, opset_import: ["" : 20]> main (float[N,2] x) => (float[N,2] y)
        <float half = {0.5}, float one = {1.0}, float root = {1.4142135381698608}, float[2,2] w = {1.0,2.0,3.0,4.0}>
        { d = Div (x, root) e = Erf (d) s = Add (e, one) p = Mul (x, s) h = Mul (p, half) y = MatMul (h, w) }"""
    )
    after = before
    for step in pipeline.parse(order).passes():
        after, _, _ = run(step, after)
    assert [node.op_type for node in after.graph] == ["Gelu", "MatMul"]
    same_outputs(before, after)
