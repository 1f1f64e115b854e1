"""Running a model layer by layer: it shows what running the whole model shows, and keeps no more than it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.layer_by_layer import SAMPLES, LayerByLayer, few

from graphopt import Context, InputError
from graphopt.calibration import ChannelStatistics, observe
from graphopt.text import from_text

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,2] x, bool[1] upside) => (float[N,2] y)
<float[2,3] u = {1, 2, 3, 4, 5, 6}, float[3] b = {1, -2, 3}, float[3,3] v = {1, 0, 1, 0, -1, 0, 2, 0, 0},
 float[3,2] w = {1, 1, 2, 2, 3, 3}>
{
   a = Gemm (x, u, b)
   r = Relu (a)
   c = Gemm (r, v)
   s = Squeeze (upside)
   t = If (s) <then_branch = up () => (float[N,3] p) { p = Neg (r) },
               else_branch = down () => (float[N,3] q) { q = Add (r, a) }>
   d = Add (c, t)
   e = Gemm (d, w)
   y = Identity (e)
}"""
AXES = {"a": 1, "c": -1, "e": 1}
SIZES = np.arange(1, 6)
"""Rows of each sample."""


def feeds(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"x": rng.normal(size=(i + 1, 2)).astype(np.float32), "upside": np.array([i % 2 == 0])}
        for i in range(count)
    ]


def whole(model: ir.Model, data: Any) -> dict[str, Any]:
    seen = {name: ChannelStatistics(axis) for name, axis in AXES.items()}
    observe(model, seen, Context(model, calibration=data))
    return {name: one.mean for name, one in seen.items()}


def test_layer_by_layer_is_as_all_at_once() -> None:
    model, data = from_text(TEXT), feeds(5)
    wanted = whole(model, data)
    walk = LayerByLayer(model, Context(model, calibration=data))
    for name, axis in AXES.items():
        means = walk.means({name: axis}, "")[name]
        assert means.shape == (5, wanted[name].size)
        np.testing.assert_allclose(SIZES @ means / SIZES.sum(), wanted[name], rtol=1e-12)
    assert [value.name for value in model.graph.inputs] == ["x", "upside"], "the model is not changed"


def test_what_is_added_reaches_the_layers_behind() -> None:
    model, shifted, data = from_text(TEXT), from_text(TEXT), feeds(5)
    shift = np.array([0.5, 4, -2])
    shifted.graph.initializers["b"].const_value = ir.tensor((np.array([1, -2, 3]) + shift).astype(np.float32))
    walk = LayerByLayer(model, Context(model, calibration=data))
    walk.means({"a": 1}, "")
    walk.add("a", shift, 1)
    got = walk.means({"c": -1, "e": 1}, "")
    wanted = whole(shifted, data)
    np.testing.assert_allclose(SIZES @ got["c"] / SIZES.sum(), wanted["c"], rtol=1e-6)
    np.testing.assert_allclose(SIZES @ got["e"] / SIZES.sum(), wanted["e"], rtol=1e-6)


def test_it_keeps_what_is_needed_and_no_more() -> None:
    model = from_text(TEXT)
    walk = LayerByLayer(model, Context(model, calibration=feeds(2)))
    walk.means({"a": 1}, "")
    walk.means({"c": 1}, "")
    walk.forget({"e"})
    assert sorted(walk.kept[1]) == ["a", "c", "upside", "x"], "a is read behind c, in a branch too"
    walk.means({"e": 1}, "")
    walk.forget(set())
    assert sorted(walk.kept[1]) == ["upside", "x"]


def test_few_of_many_samples() -> None:
    model = from_text(TEXT)
    context = few(model, Context(model, calibration=feeds(SAMPLES + 5)))
    assert len(list(context.calibration or [])) == SAMPLES == 32


def test_of_no_samples_the_calibration_says_so() -> None:
    model = from_text(TEXT)
    with pytest.raises(InputError, match=r"^calibration data: they are empty; give at least one sample$"):
        observe(model, {"a": ChannelStatistics()}, few(model, Context(model, calibration=[])))
