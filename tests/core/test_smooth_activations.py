"""What case files cannot show of smoothing: random networks, what it is good for, and what it says where it cannot."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.smooth_activations import Rows, SmoothActivations
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import InputError
from graphopt.scheme import Scheme
from graphopt.testing import conformance, run, same_outputs
from graphopt.text import from_text

BLOCK = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,T,8] x) => (float[N,T,8] y)
{
   n = LayerNormalization (x, k, b)
   q = MatMul (n, wq)
   qb = Add (q, bq)
   r = Relu (qb)
   o = MatMul (r, wo)
   z = Add (o, n)
   y = MatMul (z, wy)
}"""
SHAPES = {"k": (8,), "b": (8,), "wq": (8, 6), "bq": (6,), "wo": (6, 8), "wy": (8, 8)}


def block(seed: int, spread: float) -> ir.Model:
    """Return a layer of a network whose channels lie up to ``10 ** (2 * spread)`` apart."""
    rng = np.random.default_rng(seed)
    model = from_text(BLOCK)
    free = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, shape in SHAPES.items():
        channels = 10 ** rng.uniform(-spread, spread, shape[-1])
        array = (channels * rng.normal(size=shape)).astype(np.float32)
        value = free[name]
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        model.graph.register_initializer(value)
    return model


def rows(seed: int, count: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(2, 5, 8)).astype(np.float32)} for _ in range(count)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1.5), st.booleans(), st.sampled_from([None, 0.25, 0.75, 1.0]))
def test_a_random_layer_computes_the_same_and_a_second_run_changes_nothing(
    seed: int, spread: float, insert: bool, alpha: float | None
) -> None:
    model, data = block(seed, spread), rows(seed)
    step = SmoothActivations(insert=insert, alpha=alpha)
    after, _, _ = run(step, model, calibration=data)
    same_outputs(model, after, rows(seed + 1))
    _, again, _ = run(step, after, calibration=data)
    assert again.applied == []


def test_a_range_as_long_below_0_as_above_gets_the_same_zero_point_again() -> None:
    model, data = block(173, 0.3), rows(173)
    step = SmoothActivations(alpha=1.0)
    after, first, _ = run(step, model, calibration=data)
    assert [f"{place.where}: {place.detail}" for place in first.applied] == [
        "o: alpha 1, 4.0 dB",
        "q: alpha 1, 1.6 dB",
    ]
    _, again, _ = run(step, after, calibration=data)
    assert again.applied == []
    assert first.declined[0].reason == again.declined[0].reason == "its products gain 1.0 dB at alpha 1"


def test_it_conforms() -> None:
    conformance(SmoothActivations(alpha=0.5), [block(0, 1.0)], calibrated=True)


def quantized_error(model: ir.Model, name: str) -> float:
    """Return the relative error of a product whose operands go to 8 bits and back, on its calibration data."""
    from graphopt.calibration import observe
    from graphopt.context import Context

    (node,) = (n for n in model.graph if n.outputs[0].name == name)
    seen = Rows(1000, 0)
    observe(model, {node.inputs[0].name or "": seen}, Context(model, calibration=rows(7, 20)))
    x, w = seen.sample, node.inputs[1].const_value.numpy()
    xq = Scheme().rounded(x, x.min(), x.max())
    wq = Scheme(ir.DataType.INT8, symmetric=True).rounded(w, -np.abs(w).max(0), np.abs(w).max(0))
    return float(np.square(xq @ wq - x @ w).sum() / np.square(x @ w).sum())


def test_it_gains_what_it_says() -> None:
    model = block(3, 1.5)
    after, entry, _ = run(SmoothActivations(), model, calibration=rows(7, 20))
    said = {applied.where: float(applied.detail.split()[-2]) for applied in entry.applied}
    assert set(said) == {"q", "o", "y"}
    for name in ("o", "y"):  # what q makes is scaled as well
        gained = 10 * np.log10(quantized_error(model, name) / quantized_error(after, name))
        assert gained == pytest.approx(said[name], abs=0.06)
        assert gained >= 1
    assert [applied.where for applied in entry.applied] == ["y", "o", "q"]


def test_a_value_that_a_residual_reads_goes_through_one_mul() -> None:
    after, entry, _ = run(SmoothActivations(alpha=0.5, include=("wq",)), block(0, 1.0), calibration=rows(0))
    assert len(entry.applied) == 1
    (mul,) = (node for node in after.graph if node.op_type == "Mul")
    assert mul.inputs[0].name == "n"
    assert {use.node.op_type for use in mul.outputs[0].uses()} == {"MatMul"}


def test_a_search_that_wants_more_than_there_is_leaves_all_as_it_is() -> None:
    model = block(3, 1.5)
    _, entry, _ = run(SmoothActivations(gain=90), model, calibration=rows(7))
    assert entry.applied == []
    assert all(" dB at alpha " in declined.reason for declined in entry.declined)


def test_without_data_it_says_what_to_give() -> None:
    with pytest.raises(
        Exception, match="smooth-activations: it needs calibration data and got none"
    ) as caught:
        run(SmoothActivations(), block(0, 1.0))
    assert isinstance(getattr(caught.value, "error", caught.value), InputError)


def test_a_sample_of_rows_is_bounded_and_fair() -> None:
    seen = Rows(50, 0)
    for start in range(0, 1000, 10):
        seen.update(np.arange(start, start + 10, dtype=np.float32).reshape(1, 10, 1))
    assert seen.sample.shape == (50, 1)
    assert (seen.low, seen.high) == (0, 999)
    assert abs(seen.sample.mean() - 500) < 130


def test_scales_that_suit_the_rows_they_come_from_alone_are_declined() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        main (float[N,64] x) => (float[N,4] y)
        {
           y = MatMul (x, w)
        }"""
    )
    rng = np.random.default_rng(0)
    (node,) = model.graph
    array = rng.normal(size=(64, 4)).astype(np.float32)
    w = node.inputs[1]
    w.const_value, w.type, w.shape = (
        ir.tensor(array, name="w"),
        ir.TensorType(ir.DataType.FLOAT),
        ir.Shape((64, 4)),
    )
    model.graph.register_initializer(w)
    data = [{"x": np.exp(2 * rng.normal(size=(1, 64))).astype(np.float32)} for _ in range(12)]
    _, entry, _ = run(SmoothActivations(), model, calibration=data)
    assert [declined.reason for declined in entry.declined] == [
        "its products gain 9.6 dB at alpha 0.55, but lose 25.9 dB on rows whose range was not looked at: "
        "12 rows of calibration data are too few"
    ]
