"""What case files cannot show of factors: random layers, least errors, budgets, and what is said where it cannot be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.factorize import Factorize
from graphopt_passes.factorize.allocation import Layer, allocate
from graphopt_passes.factorize.fitting import Fit, Step
from graphopt_passes.factorize.moments import Inputs, Moment, flat
from graphopt_passes.factorize.sites import site
from graphopt_passes.factorize.stages import Method, macs, stages
from graphopt_passes.factorize.subspace import parallel, principal
from graphopt_passes.factorize.timing import Speed
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt
from graphopt import InputError, plugins
from graphopt.testing import conformance, run, same_outputs
from graphopt.text import from_text

METHODS: tuple[Method, ...] = ("svd", "spatial-svd", "tucker", "cp")
BLOCK = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,T,8] x) => (float[N,T,8] y)
{
   q = MatMul (x, wq)
   a = Add (q, bq)
   r = Relu (a)
   y = MatMul (r, wo)
}"""


def filled(text: str, shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: Any = np.float32) -> ir.Model:
    """Return the model of ``text`` with random constants."""
    rng = np.random.default_rng(seed)
    model = from_text(text)
    free = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, shape in shapes.items():
        value = free[name]
        value.const_value = ir.tensor(rng.normal(size=shape).astype(dtype), name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(shape)
        model.graph.register_initializer(value)
    return model


def block(seed: int = 0) -> ir.Model:
    return filled(BLOCK, {"wq": (8, 12), "bq": (12,), "wo": (12, 8)}, seed)


def conv(attributes: str, kernel: tuple[int, int], seed: int = 0) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    main (float[N,4,9,10] x) => (float[N,5,H,W] y) {{ y = Conv <{attributes}> (x, w) }}"""
    return filled(text, {"w": (5, 4, *kernel)}, seed)


def rows(seed: int, shape: tuple[int, ...] = (2, 5, 8), count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(shape[-1], shape[-1])) / np.arange(1, shape[-1] + 1)
    return [{"x": (rng.normal(size=shape) @ mix + 1).astype(np.float32)} for _ in range(count)]


# --- exactness --------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.sampled_from([np.float32, np.float64]))
def test_full_rank_reproduces_matrices(seed: int, aware: bool, dtype: Any) -> None:
    kind = "double" if dtype is np.float64 else "float"
    shapes = {"wq": (8, 12), "bq": (12,), "wo": (12, 8)}
    model = filled(BLOCK.replace("float[", f"{kind}["), shapes, seed, dtype)
    data = [{"x": feed["x"].astype(dtype)} for feed in rows(seed)] if aware else None
    after, entry, _ = run(Factorize(rank=1.0, only_if_faster=False), model, calibration=data)
    assert len(entry.applied) == 2
    same_outputs(model, after)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(METHODS),
    st.sampled_from([(3, 3), (2, 3), (1, 3), (3, 1), (1, 1)]),
    st.sampled_from(
        ["group=1", "pads=[1,0,2,1],strides=[2,1]", 'auto_pad="SAME_LOWER",strides=[1,2]', "dilations=[2,3]"]
    ),
    st.booleans(),
)
def test_full_rank_reproduces_convolutions(
    method: Method, kernel: tuple[int, int], attributes: str, aware: bool
) -> None:
    model = conv(attributes, kernel)
    data = rows(0, (2, 4, 9, 10)) if aware else None
    step = Factorize(rank=1.0, only_if_faster=False, method=method)
    after, entry, _ = run(step, model, calibration=data)
    assert len(entry.applied) == 1
    same_outputs(model, after)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(METHODS), st.integers(1, 4), st.booleans(), st.integers(0, 100))
def test_fewer_ranks_equal_the_reference(method: Method, rank: int, aware: bool, seed: int) -> None:
    model = conv("pads=[1,2,1,0],strides=[2,1]", (3, 3), seed)
    data = rows(seed, (2, 4, 9, 10)) if aware else None
    after, entry, reference = run(
        Factorize(rank=rank, only_if_faster=False, method=method), model, calibration=data
    )
    assert len(entry.applied) == 1 and reference is not None
    same_outputs(reference, after)


@pytest.mark.parametrize("method", METHODS)
def test_it_conforms(method: Method) -> None:
    model = conv("pads=[1,1,1,1]", (3, 3))
    conformance(Factorize(rank=2, only_if_faster=False, method=method), [block(), model], calibrated=True)


def test_half_precision_equals_the_reference() -> None:
    model = filled(
        BLOCK.replace("float[", "float16["), {"wq": (8, 12), "bq": (12,), "wo": (12, 8)}, dtype=np.float16
    )
    after, entry, reference = run(Factorize(rank=3, only_if_faster=False), model)
    assert len(entry.applied) == 2 and reference is not None
    assert {v.dtype for v in after.graph.initializers.values()} == {ir.DataType.FLOAT16}
    same_outputs(reference, after)


# --- least error ------------------------------------------------------------------------------------------------------


def test_directions_are_the_singular_ones_of_the_whitened_matrix() -> None:
    rng = np.random.default_rng(0)
    for shape in ((6, 9), (9, 6)):
        w, half = rng.normal(size=shape), rng.normal(size=(shape[1], 20))
        c = half @ half.T
        found = principal(w, lambda m, c=c: m @ c)
        u, s, _ = np.linalg.svd(w @ np.linalg.cholesky(c), full_matrices=False)
        np.testing.assert_allclose(found.energy, s**2, rtol=1e-8)
        np.testing.assert_allclose(np.abs((found.basis * u).sum(0)), 1, rtol=1e-8)
        np.testing.assert_allclose(
            found.lost()[[0, -1]], [np.square(s).sum(), 0], atol=1e-8 * np.square(s).sum()
        )


def test_few_directions_of_a_large_matrix_are_found_at_random() -> None:
    rng = np.random.default_rng(0)
    decay = np.exp(-np.arange(30) / 5)
    w = (rng.normal(size=(1100, 30)) * decay) @ rng.normal(size=(30, 1200))
    w += 0.01 * rng.normal(size=w.shape)
    found = principal(w, lambda m: m, most=8)
    assert found.basis.shape[1] < 60
    s = np.linalg.svd(w, compute_uv=False)[:8]
    np.testing.assert_allclose(found.energy[:8], s**2, rtol=1e-6)
    assert found.total == pytest.approx(np.square(w).sum())


def ran(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    with plugins.get_backend("onnxruntime:cpu").compile(model) as executable:
        return executable.run(feed)["y"]


def output_error(model: ir.Model, after: ir.Model, data: list[dict[str, np.ndarray]]) -> float:
    return -graphopt.compare(model, after, data).outputs[0].sqnr_db


@pytest.mark.parametrize("method", METHODS)
def test_it_is_nearer_on_real_inputs_than_the_weights_alone_make_it(method: Method) -> None:
    model, data = conv("pads=[1,1,1,1]", (3, 3), 3), rows(5, (2, 4, 9, 10), 12)
    errors = [
        output_error(model, run(step, model, calibration=data)[0], data)
        for step in (
            Factorize(rank=2, only_if_faster=False, method=method, activation_aware=aware)
            for aware in (True, False)
        )
    ]
    assert errors[0] < errors[1] - 1


def test_the_error_is_what_was_expected_and_the_means_are_kept() -> None:
    model, data = conv("pads=[1,0,1,2],strides=[1,2],dilations=[2,1]", (3, 2)), rows(1, (2, 4, 9, 10), 8)
    after, entry, _ = run(Factorize(rank=2, only_if_faster=False), model, calibration=data)
    expected = float(entry.applied[0].detail.split()[-4])
    a, b = (np.concatenate([ran(m, feed) for feed in data]) for m in (model, after))
    axes = (0, 2, 3)
    np.testing.assert_allclose(a.mean(axes), b.mean(axes), atol=1e-5 * np.abs(a).max())
    noise = np.square(a - b).sum() / np.square(a - a.mean(axes, keepdims=True)).sum()
    assert math.sqrt(noise) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    "attributes", ['auto_pad="SAME_UPPER",strides=[2,1]', "pads=[1,0,2,3],dilations=[1,2]"]
)
def test_patches_are_what_the_kernel_sees(attributes: str) -> None:
    model = conv(attributes, (3, 2))
    one = site(model.graph[0])
    inputs, x = Inputs(one, 0), rows(0, (2, 4, 9, 10))[0]["x"]
    inputs.update(x)
    y = ran(model, {"x": x})
    moment = inputs.moment(one)
    w = one.read()
    assert inputs.count == y[:, 0].size and moment.of_patches
    np.testing.assert_allclose(np.tensordot(w, moment.mean, 3), y.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    second = Moment(
        np.zeros_like(moment.mean), moment.c + np.outer(moment.mean, moment.mean) * (one.bias() is not None)
    )
    assert second.energy(w) == pytest.approx(np.square(y).sum() / inputs.count, rel=1e-2)


def test_channels_stand_for_patches_that_are_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt_passes.factorize.moments.WIDEST", 8)
    model, data = conv("pads=[1,1,1,1]", (3, 3)), rows(5, (2, 4, 9, 10), 8)
    for method in METHODS:
        step = Factorize(rank=2, only_if_faster=False, method=method)
        after, _, reference = run(step, model, calibration=data)
        assert reference is not None
        same_outputs(reference, after)


def test_parallel_factors_come_near_to_what_has_their_rank() -> None:
    rng = np.random.default_rng(0)
    t = np.einsum("or,ir,kr->oik", *(rng.normal(size=(n, 3)) for n in (6, 5, 4)))
    a, b, c = parallel(t, 3)
    made = np.einsum("or,ir,kr->oik", a, b, c)
    assert np.square(made - t).sum() < 1e-3 * np.square(t).sum()


# --- ranks ------------------------------------------------------------------------------------------------------------


def test_stages_cost_what_the_model_says() -> None:
    for method in METHODS:
        model = conv("pads=[1,1,1,1],strides=[2,2]", (3, 3))
        model.graph.inputs[0].shape = ir.Shape([1, 4, 8, 8])
        model.graph.outputs[0].shape = None
        one = site(model.graph[0])
        fit = Fit(one, method, flat(one))
        ranks = tuple(2 for _ in fit.full)
        after, _, _ = run(Factorize(rank=2, only_if_faster=False, method=method), model)
        assert graphopt.cost(after).macs == 16 * macs(one, stages(one, method, ranks))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=6), min_size=1, max_size=4),
    st.floats(0.05, 1.1),
)
def test_a_budget_is_kept_where_it_can_be(losses: list[list[float]], share: float) -> None:
    layers = [
        Layer(
            Step((), 10 * len(lost), 0.0),
            [Step((r,), 7 * r, x) for r, x in enumerate(sorted(lost, reverse=True), 1)],
            2.0 + i,
        )
        for i, lost in enumerate(losses)
    ]
    whole = sum(each.macs(each.whole) for each in layers)
    least = sum(each.macs(each.steps[0]) for each in layers)
    steps = allocate(layers, share * whole)
    spent = sum(each.macs(step) for each, step in zip(layers, steps, strict=True))
    assert spent <= max(share * whole, least) + 1e-9
    if share >= 1:
        assert sum(step.lost for step in steps) == 0


def test_a_budget_goes_where_the_energy_is() -> None:
    flat_steps = [Step((r,), r, 1 - r / 10) for r in range(1, 9)]
    steep = [Step((r,), r, 0.5**r) for r in range(1, 9)]
    whole = Step((), 10, 0.0)
    first, second = allocate([Layer(whole, flat_steps, 1), Layer(whole, steep, 1)], 14)
    assert (first.macs, second.macs) == (10, 4)


def test_energy_is_the_least_rank_that_keeps_it() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        main (float[N,4] x) => (float[N,4] y)
        <float[4,4] w = {3,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0}> { y = MatMul (x, w) }"""
    )
    _, entry, _ = run(Factorize(energy=0.9, only_if_faster=False), model)
    assert entry.applied[0].detail == "rank 1 of 4, svd: 0.50 of its MACs, expected error 0.32 of the output"
    _, entry, _ = run(Factorize(energy=0.91, only_if_faster=False), model)
    assert entry.declined[0].reason == "rank 4 of 4 leaves 2.00 of its MACs, no fewer"


# --- speed ------------------------------------------------------------------------------------------------------------


WIDE = """<ir_version: 10, opset_import: ["" : 20]>
main (float[16,128] x) => (float[16,128] y)
{
   a = MatMul (x, wa)
   r = Relu (a)
   y = MatMul (r, wb)
}"""


def wide() -> ir.Model:
    return filled(WIDE, {"wa": (128, 128), "wb": (128, 128)})


def timed(monkeypatch: pytest.MonkeyPatch, alone: str, together: str, most: float = 1.0) -> list[int]:
    """Let layers with up to ``most`` of the MACs measure as ``alone`` says, others no different."""
    asked = []

    def of(before: ir.Model, after: ir.Model, *_: Any) -> Speed:
        if before.graph.name != "layer":
            return Speed(1.3, 1.2, 1.4, together)
        left = graphopt.cost(after).macs / graphopt.cost(before).macs
        asked.append(round(100 * left))
        return Speed(0.5, 0.4, 0.6, alone if left <= most else "no significant difference")

    monkeypatch.setattr(Speed, "of", of)
    return asked


def test_what_is_not_faster_alone_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, "slower", "faster")
    _, entry, reference = run(Factorize(rank=32), wide())
    assert entry.applied == [] and reference is None
    assert asked == [50]  # two layers alike are measured once
    assert [d.reason for d in entry.declined] == [
        "rank 32 of 128 leaves 0.50 of its MACs, but a layer like it takes 0.50 of the time (95 % 0.40 … 0.60)"
    ] * 2


def test_a_budget_is_divided_among_ranks_that_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, "faster", "faster", most=0.3)
    after, entry, _ = run(Factorize(macs=0.7), wide())
    assert asked == [50, 25, 38]  # of seven ranks, by bisection
    assert graphopt.cost(after).macs <= 0.7 * graphopt.cost(wide()).macs
    assert all(float(a.detail.split(": ")[1].split()[0]) <= 0.3 for a in entry.applied)


def test_a_model_that_is_slower_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, "faster", "slower")
    _, entry, reference = run(Factorize(rank=32), wide())
    assert entry.applied == [] and reference is None
    assert entry.notes == [
        "a run takes 1.30 of the time (95 % 1.20 … 1.40): slower, and all layers stay as they are "
        "(only_if_faster=false factorizes them all the same)"
    ]
    assert {d.reason for d in entry.declined} == {
        "the model measures slower: it takes 1.30 of the time (95 % 1.20 … 1.40)"
    }


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 3, "macs": 0.5}, "rank and macs exclude each other; give one of them"),
        ({"rank": 1.5}, "rank: a share must be above 0 and at most 1, got 1.5"),
        ({"rank": 0}, "rank: it must be 1 or more, or a share such as 0.5, got 0"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Factorize(**options)
    assert message in str(caught.value)


def test_without_data_it_says_what_to_give() -> None:
    with pytest.raises(Exception) as caught:
        run(Factorize(activation_aware=True), block())
    error = getattr(caught.value, "error", caught.value)
    assert isinstance(error, graphopt.OptionError) and not isinstance(error, InputError)
    assert str(error) == (
        "factorize: activation_aware=true needs calibration data and got none; give --calibration"
    )


def test_weights_that_are_not_finite_stay() -> None:
    model = block()
    model.graph.initializers["wq"].const_value = ir.tensor(np.full((8, 12), np.nan, np.float32), name="wq")
    _, entry, _ = run(Factorize(rank=2, only_if_faster=False), model)
    assert [(d.where, d.reason) for d in entry.declined] == [("q", "its weights are not finite")]
