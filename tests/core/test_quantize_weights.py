"""Weights in few bits: the grids, the feedback of errors, the forms for each target, and what the report says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.quantize_weights import blocks, calibrated, gptq, stored
from graphopt_passes.quantize_weights.twin import pair_name, twin
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import graphopt
from graphopt import InputError, OptionError, clone, pipeline
from graphopt.context import Context
from graphopt.interfaces import PassReport
from graphopt.testing import conformance, same_outputs, valid
from graphopt.text import from_text, to_text

RNG = np.random.default_rng(0)


def layers(sizes: Sequence[int], opset: int = 21, kind: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """Return products with Tanh between them, inputs of which have a mean and are correlated."""
    rng = np.random.default_rng(1)
    nodes: list[ir.Node] = []
    x = ir.Value(name="x", type=ir.TensorType(kind), shape=ir.Shape(["N", sizes[0]]))
    weights, value = [], x
    for i, (k, n) in enumerate(pairwise(sizes)):
        array = (rng.standard_normal((k, n)) * 2 / k**0.5).astype(kind.numpy())
        weights.append(
            ir.Value(
                name=f"w{i}",
                type=ir.TensorType(kind),
                shape=ir.Shape(array.shape),
                const_value=ir.Tensor(array, name=f"w{i}"),
            )
        )
        product = ir.node("MatMul", [value, weights[-1]], name=f"product{i}")
        product.outputs[0].name = f"p{i}"
        active = ir.node("Tanh", [product.outputs[0]])
        active.outputs[0].name = f"h{i}"
        nodes += [product, active]
        value = active.outputs[0]
    value.name, value.type, value.shape = "y", ir.TensorType(kind), ir.Shape(["N", sizes[-1]])
    graph = ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": opset}, name="main")
    return ir.Model(graph, ir_version=10)


def inputs(count: int, size: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((size, size)) / size**0.5
    return [
        {"x": (rng.standard_normal((8, size)) @ mix + 0.5 * np.sin(np.arange(size))).astype(np.float32)}
        for _ in range(count)
    ]


def quantized(model: ir.Model, options: str, context: Context | None = None) -> tuple[ir.Model, PassReport]:
    """Run the pass for no target, as the driver would."""
    (step,) = pipeline.parse(f"quantize-weights{{{options or 'bits=4'},at_least=1}}").passes()
    copy = clone(model)
    context = context or Context(copy)
    context.model, context.step = copy, step.name
    return copy, step.run(copy, context)


# --- grids ------------------------------------------------------------------------------------------------------------

ROWS = arrays.arrays(
    np.float32,
    (3, 20),
    elements=st.floats(-8, 8, width=32) | st.sampled_from([0.0, 1e-30, -1e-30, 1e30, -3e37]),
)


@settings(deadline=None, max_examples=60)
@given(ROWS, st.sampled_from([2, 4, 8]), st.booleans())
def test_a_fitted_grid_is_never_worse_than_that_of_the_range(w: Any, bits: int, symmetric: bool) -> None:
    form = blocks.Format(bits, 16, symmetric)

    def error(fit: bool) -> Any:
        made = blocks.rounded(w, form, fit=fit)
        assert np.isfinite(made.scale).all() and made.codes.max() <= form.top
        return ((made.numbers(20).astype(np.float64) - w) ** 2).sum(1)

    largest = float(np.abs(w.astype(np.float64)).max())
    assert (error(True) <= error(False) * (1 + 1e-4) + 1e-9 * largest**2).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_the_codes_can_hold_comes_back(bits: int, symmetric: bool) -> None:
    form = blocks.Format(bits, 16, symmetric)
    whole = np.arange(48).reshape(3, 16) % (form.top + 1) - form.middle
    w = (whole * np.array([[0.5], [-3], [0]])).astype(np.float32)
    for fit in (True, False):
        np.testing.assert_array_equal(blocks.rounded(w, form, fit=fit).numbers(16)[2], w[2])
    if bits < 8:
        np.testing.assert_allclose(blocks.rounded(w, form).numbers(16), w, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("count", [1, 3, 4, 17])
def test_codes_are_packed_from_the_lowest_bits_on(bits: int, count: int) -> None:
    codes = RNG.integers(0, 1 << bits, (2, count)).astype(np.uint8)
    data = blocks.packed(codes, bits)
    assert data.shape == (2, -(-count * bits // 8))
    assert data[0, 0] == sum(int(c) << (bits * i) for i, c in enumerate(codes[0, : 8 // bits]))
    np.testing.assert_array_equal(blocks.unpacked(data, bits, count), codes)


def test_one_bit_is_the_sign_times_the_mean_of_the_row() -> None:
    w = np.array([[1.0, -2.0, 3.0, 0.0], [-1.0, -1.0, -1.0, -5.0]], np.float32)
    made = blocks.rounded(w, blocks.Format(2, 16, True, signs=True))
    np.testing.assert_array_equal(made.numbers(4), [[1.5, -1.5, 1.5, 1.5], [-2, -2, -2, -2]])


# --- error feedback ---------------------------------------------------------------------------------------------------


def test_without_correlations_errors_are_fed_to_nobody() -> None:
    w = RNG.standard_normal((5, 40)).astype(np.float32)
    form = blocks.Format(4, 16, True)
    fed = gptq.fed_back(w, gptq.Curvature(np.eye(40) * 7), form)
    plain = blocks.rounded(w, form)
    np.testing.assert_array_equal(fed.codes.reshape(5, -1)[:, :40], plain.codes.reshape(5, -1)[:, :40])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [96, 150])
def test_fed_back_errors_cancel_in_the_product(columns: int, symmetric: bool) -> None:
    x = np.concatenate([feed["x"] for feed in inputs(60, columns)])
    w = RNG.standard_normal((24, columns)).astype(np.float32)
    form = blocks.Format(4, 32, symmetric)
    fed = gptq.fed_back(w, gptq.Curvature(x.T @ x), form).numbers(columns)
    plain = blocks.rounded(w, form).numbers(columns)

    def error(made: Any) -> float:
        return float((((made - w) @ x.T) ** 2).sum())

    assert error(fed) < 0.6 * error(plain)


def test_inputs_that_are_never_seen_do_no_harm() -> None:
    gram = np.zeros((20, 20))
    w = RNG.standard_normal((2, 20)).astype(np.float32)
    form = blocks.Format(4, 16, True)
    np.testing.assert_array_equal(
        gptq.fed_back(w, gptq.Curvature(gram), form).numbers(20), blocks.rounded(w, form).numbers(20)
    )


def test_a_changed_input_is_corrected_for_where_that_carries_over() -> None:
    f = np.concatenate([feed["x"] for feed in inputs(40, 24)]).reshape(40, 8, 24)
    pair, same, noise = gptq.Pair(), gptq.Pair(), gptq.Pair()
    for one in f:
        pair.update(np.concatenate([one, 0.8 * one], 1))
        same.update(np.concatenate([one, one], 1))
        noise.update(np.concatenate([one, one + RNG.standard_normal(one.shape)], 1))
    outer = np.eye(24, dtype=np.float32)
    corrected = pair.correction(outer)
    assert corrected is not None and same.correction(outer) is None
    q, want = 0.8 * f.reshape(-1, 24), f.reshape(-1, 24)
    assert np.square(q + q @ corrected.T - want).sum() < 0.3 * np.square(q - want).sum()
    gone = gptq.Pair()
    gone.update(np.ones((2, 48), np.float32))
    assert gone.correction(outer) is None  # one sample says nothing of others


def test_calibrated_rounding_beats_the_nearest_codes() -> None:
    model = layers([64, 96, 64, 32])
    test = inputs(20, 64, seed=5)

    def sqnr(method: str) -> float:
        result = graphopt.optimize(
            model,
            f"quantize-weights{{at_least=1,method={method}}}",
            inputs=test,
            calibration=inputs(40, 64),
            strict=True,
        )
        return graphopt.compare(model, result.model, test).outputs[0].sqnr_db

    nearest, fitted, fed = sqnr("rtn"), sqnr("hqq"), sqnr("gptq")
    assert nearest + 0.1 < fitted and nearest + 2.5 < fed


def test_products_that_read_the_same_value_are_one_stage() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["" : 21]>
    main (float[4,4] x) => (float[4,4] y) { a = MatMul (x, x) b = MatMul (x, x) c = Add (a, b) y = MatMul (c, x) }""")
    places = [_Place(node.inputs[0]) for node in model.graph if node.op_type == "MatMul"]
    assert [len(stage) for stage in calibrated.stages(places)] == [2, 1]  # type: ignore[arg-type]


class _Place:
    def __init__(self, x: Any) -> None:
        self.x = x


def test_a_twin_gives_both_models_values_side_by_side() -> None:
    before = layers([32, 16, 8])
    after = clone(before)
    changed = after.graph.initializers["w0"]
    changed.const_value = ir.Tensor(np.zeros((32, 16), np.float32))
    both = twin(before, after, ["x", "h0", "y"])
    from graphopt.backends.session import create

    feed = inputs(1, 32)[0]
    got = create(both).run(None, feed)
    assert [value.name for value in both.graph.outputs] == [pair_name(name) for name in ("x", "h0", "y")]
    np.testing.assert_array_equal(got[0], np.concatenate([feed["x"]] * 2, 1))
    assert got[1][:, :16].any() and not got[1][:, 16:].any()
    assert got[2].shape == (8, 16)
    assert sorted(both.graph.initializers) == ["quantized/w0", "w0", "w1"]


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opset", "options", "dtype", "shape"),
    [
        (21, "bits=4", ir.DataType.INT4, [2, 24]),
        (21, "bits=4,symmetric=false", ir.DataType.UINT4, [2, 24]),
        (21, "bits=8", ir.DataType.INT8, [2, 24]),
        (21, "bits=8,symmetric=false,block_size=16", ir.DataType.UINT8, [3, 24]),
        (21, "bits=2", ir.DataType.INT4, [2, 24]),
        (25, "bits=2", ir.DataType.INT2, [2, 24]),
        (21, "bits=1", ir.DataType.INT4, [3, 24]),
        (13, "bits=8", ir.DataType.INT8, [24]),
        (13, "bits=1", ir.DataType.INT8, [24]),
    ],
)
def test_other_targets_get_dequantize_linear(
    opset: int, options: str, dtype: ir.DataType, shape: list[int]
) -> None:
    made, report = quantized(layers([48, 24], opset), options)
    assert [node.op_type for node in made.graph] == ["DequantizeLinear", "MatMul", "Tanh"]
    codes, scale = made.graph.node(0).inputs[:2]
    assert codes is not None and scale is not None
    assert codes.dtype == dtype and list(scale.shape or ()) == shape and list(codes.shape or ()) == [48, 24]
    valid(made)
    assert report.reference is not None
    same_outputs(report.reference, made, inputs(2, 48))


def test_a_lookup_for_other_targets() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> main (int64[N] i) => (float[N,32] y) { y = Gather (w, i) }"""
    w = RNG.standard_normal((10, 32)).astype(np.float32)
    model = from_text(text.replace("main (int64[N] i)", "main (int64[N] i, float[10,32] w)"))
    value = model.graph.inputs.pop(1)
    value.const_value = ir.Tensor(w, name="w")
    model.graph.register_initializer(value)
    made, report = quantized(model, "bits=4")
    assert [node.op_type for node in made.graph] == ["DequantizeLinear", "Gather"]
    assert report.reference is not None
    same_outputs(report.reference, made, [{"i": np.array([3, 9, 0])}])


def test_old_opsets_have_no_blocks() -> None:
    _, report = quantized(layers([48, 24], 20), "bits=4")
    assert not report.applied
    assert [d.reason for d in report.declined] == ["opset 20 has no 4-bit blocks; put raise-opset before"]


def test_a_matrix_in_a_function() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    main (float[N,16] x) => (float[N,2] y) { y = own.linear (x) }
    <domain: "own", opset_import: ["" : 21]>
    linear (a) => (b) { w = Constant <value = float[16,2] {%s}> () b = MatMul (a, w) }"""
    model = from_text(text % ",".join(str(float(i % 7 - 3)) for i in range(32)))
    result = graphopt.optimize(model, "quantize-weights{at_least=1,block_size=16}", strict=True)
    assert len(result.report.passes[0].applied) == 1
    assert "MatMulNBits" in to_text(result.model)


@pytest.mark.parametrize("kind", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
@pytest.mark.parametrize(
    "options", ["", "symmetric=false,", "bits=8,", "bits=2,", "bits=1,", "bits=8,activations=float,"]
)
def test_the_kernel_computes_what_the_codes_stand_for(kind: ir.DataType, options: str) -> None:
    model = layers([72, 40, 24], kind=kind)
    feeds = [{"x": feed["x"].astype(kind.numpy())} for feed in inputs(2, 72)]
    result = graphopt.optimize(model, f"quantize-weights{{{options}at_least=1}}", inputs=feeds, strict=True)
    assert [c.ok for c in result.report.checks] == [True] and len(result.report.passes[0].applied) == 2


def test_codes_beyond_the_limit_lie_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "IN_MEMORY_BYTES", 2000)
    model = layers([64, 64, 64])
    made, report = quantized(model, "")
    shelf = stored.Shelf()
    kept = [shelf.keep(np.full(1500, i, np.uint8)) for i in range(2)]
    assert [isinstance(array, np.memmap) for array in kept] == [False, True]
    np.testing.assert_array_equal(kept[1], np.ones(1500))
    assert report.reference is not None
    same_outputs(report.reference, made, inputs(1, 64))


# --- what users see ---------------------------------------------------------------------------------------------------


def test_it_conforms() -> None:
    (step,) = pipeline.parse("quantize-weights{at_least=1,block_size=16}").passes()
    conformance(step, [layers([48, 24, 16])])


def test_the_report_says_what_it_came_to() -> None:
    result = graphopt.optimize(layers([64, 64]), "quantize-weights{at_least=1,bits=1}", strict=True)
    assert result.report.passes[0].notes == [
        "1 products and 0 lookups (signs): 0.02 MB of weights became 0.00 MB, 0.0781 of it",
        "the target cannot store 1-bit weights: each takes 2 bits, and the file shrinks no further",
    ]


def test_the_speed_is_measured() -> None:
    model = layers([1024, 512])
    result = graphopt.optimize(model, "quantize-weights", inputs=inputs(1, 1024), strict=True)
    assert result.report.passes[0].notes[-1].startswith("a run takes ")
    assert "x float32[8,1024]" in result.report.passes[0].notes[-1]


def test_a_block_must_be_a_power_of_two() -> None:
    with pytest.raises(OptionError, match="it must be 16, 32, 64, 128 or 256, got 48"):
        pipeline.parse("quantize-weights{block_size=48}")


def test_error_feedback_needs_data() -> None:
    with pytest.raises(
        InputError, match=r"^quantize-weights: it needs calibration data and got none; give --calibration "
    ):
        graphopt.optimize(layers([64, 64]), "quantize-weights{at_least=1,method=gptq}")


def test_patterns_choose_and_leave_out() -> None:
    model = layers([32, 32, 32, 32])
    for options, count in (
        ("include=[w1]", 1),
        ('exclude=["product*"]', 0),
        ("exclude=[w0,product1]", 1),
        ("", 3),
    ):
        _, report = quantized(model, options)
        assert len(report.applied) == count, options
