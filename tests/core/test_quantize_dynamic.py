"""Activations quantized at run time: numbers, the forms for each target, the proof, and when a model stays float."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.quantize import quantize_dynamic
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt
from graphopt import clone, pipeline
from graphopt.backends.session import create
from graphopt.context import Context
from graphopt.interfaces import IntegerSupport, PassReport
from graphopt.plugins import get_backend
from graphopt.testing import conformance
from graphopt.text import from_text, to_text

K, N = 6, 4


def net(*kinds: str, seed: int = 0, sizes: tuple[int, int] = (K, N)) -> ir.Model:
    """Return products that read the same input, of these kinds: MatMul, Add (a MatMul with a bias), Gemm, transB."""
    rng, (k, n) = np.random.default_rng(seed), sizes
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["M", k]))
    nodes: list[ir.Node] = []
    weights: list[ir.Value] = []

    def weight(array: Any, name: str) -> ir.Value:
        tensor = ir.Tensor(array.astype(np.float32), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        weights.append(value)
        return value

    for i, kind in enumerate(kinds):
        w = weight(rng.standard_normal((n, k) if kind == "transB" else (k, n)), f"w{i}")
        b = weight(rng.standard_normal(n), f"b{i}") if kind != "MatMul" else None
        if kind in ("Gemm", "transB"):
            nodes.append(ir.node("Gemm", [x, w, b], {"transB": 1} if kind == "transB" else {}))
        else:
            nodes.append(ir.node("MatMul", [x, w]))
        if kind == "Add":
            nodes[-1].outputs[0].name = f"m{i}"
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], b]))
        y = nodes[-1].outputs[0]
        y.name, y.type, y.shape = f"y{i}", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["M", n])
    outputs = [node.outputs[0] for node in nodes if (node.outputs[0].name or "").startswith("y")]
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=weights, opset_imports={"": 20}, name="main")
    return ir.Model(graph, ir_version=10)


def quantized(model: ir.Model, options: str = "", target: Any = None) -> tuple[ir.Model, PassReport]:
    """Run the pass alone, for no target unless one is given."""
    (step,) = pipeline.parse(f"quantize-dynamic{{at_least=1{options and ','}{options}}}").passes()
    copy = clone(model)
    return copy, step.run(copy, Context(copy, target=target))


def by_hand(x: Any, w: Any, levels: int, zero_point: int) -> Any:
    """Return ``x @ w`` as the integers have it, for one run (ONNX DynamicQuantizeLinear-11)."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    sx = np.float32((high - low) / 255)
    zx = np.clip(np.rint(-low / sx), 0, 255)
    xq = np.clip(np.rint(x / sx) + zx, 0, 255) - zx
    sw = (np.abs(w).max(0) / np.float32(levels)).astype(np.float32)
    wq = np.clip(np.rint(w / sw), -levels, levels)
    return (xq @ wq) * sx * sw


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.sampled_from(["MatMul", "Add", "Gemm", "transB"]), min_size=1, max_size=3),
    st.sampled_from(["int8", "uint8"]),
    st.booleans(),
    st.integers(0, 99),
)
def test_each_form_multiplies_the_integers(kinds: list[str], weights: str, own: bool, seed: int) -> None:
    model = net(*kinds, seed=seed)
    made, report = quantized(
        model, f"weights={weights},reduce_range=true", get_backend("onnxruntime:cpu") if own else None
    )
    assert len(report.applied) == len(kinds) and report.restored is not None
    x = np.random.default_rng(seed + 1).standard_normal((5, K)).astype(np.float32)
    got = create(made, optimize="none").run(None, {"x": x})
    floats = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    for i, kind in enumerate(kinds):
        w = floats[f"w{i}"].T if kind == "transB" else floats[f"w{i}"]
        want = by_hand(x, w, 63 if weights == "int8" else 127, 0) + floats.get(f"b{i}", 0)
        np.testing.assert_allclose(got[i], want, atol=1e-5)
    assert graphopt.compare(model, report.restored, {"x": x}).ok


def test_a_target_without_kernels_of_its_own_gets_those_of_onnx() -> None:
    made, report = quantized(
        from_text("""<ir_version: 10, opset_import: ["" : 20]>
        main (float[N,2] x) => (float[N,2] y, float[N,1] z)
        <float[2,2] w = {127,254,1,-2}, float[2] b = {3,4}, float[2,1] v = {1,127}>
        { y = Gemm (x, w, b) z = MatMul (x, v) }""")
    )
    assert to_text(made).partition(">\n{\n")[2] == (
        "   x_quantized, x_scale, x_zero_point = DynamicQuantizeLinear (x)\n"
        "   y_MatMulInteger = MatMulInteger (x_quantized, w_quantized, x_zero_point)\n"
        "   y_Cast = Cast <to: int = 1> (y_MatMulInteger)\n"
        "   y_Mul = Mul (x_scale, w_scale)\n"
        "   y_Mul_1 = Mul (y_Cast, y_Mul)\n"
        "   y = Add (y_Mul_1, b)\n"
        "   z_MatMulInteger = MatMulInteger (x_quantized, v_quantized, x_zero_point)\n"
        "   z_Cast = Cast <to: int = 1> (z_MatMulInteger)\n"
        "   z_Mul = Mul (x_scale, v_scale)\n"
        "   z = Mul (z_Cast, z_Mul)\n"
        "}\n"
    )
    assert [applied.detail for applied in report.applied] == ["MatMulInteger", "MatMulInteger"]
    assert report.notes == [
        "2 products: 0.00 MB of weights became 0.00 MB, 0.7500 of it",
        "1 values that 2 products read are quantized once each",
    ]


@pytest.mark.parametrize(("saturates", "largest"), [(True, 63), (False, 127)])
def test_weights_leave_a_bit_unused_where_sums_saturate(
    saturates: bool, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = get_backend("onnxruntime:cpu")
    known = IntegerSupport("some", "uint8", "int8", reduce_range=saturates)
    monkeypatch.setattr(target, "integers", lambda: known)
    made, _ = quantized(net("MatMul"), target=target)
    codes = made.graph.initializers["w0_quantized"].const_value
    assert codes is not None and np.abs(codes.numpy()).max(0).tolist() == [largest] * N


# --- the proof --------------------------------------------------------------------------------------------------------


def test_it_conforms() -> None:
    (step,) = pipeline.parse("quantize-dynamic{at_least=1}").passes()
    conformance(step, [net("MatMul", "transB"), net("Add")])


def test_without_the_loss_the_result_is_what_it_was() -> None:
    result = graphopt.optimize(
        net("Add", "transB"), "quantize-dynamic{at_least=1}", calibration=feeds(8), strict=True
    )
    (check,) = result.report.checks
    assert (check.ok, check.against) == (True, "original, without the loss")


def test_a_wrong_product_is_found_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = quantize_dynamic.emit

    def emit(product: Any, op_type: str, weights: Any, shift: Any, x: Any, tape: Any) -> ir.Value:
        y = right(product, op_type, weights, shift, x, tape)
        return tape.op("Neg", [y]) if product.name == "w1" else y

    monkeypatch.setattr(quantize_dynamic, "emit", emit)
    result = graphopt.optimize(net("MatMul", "MatMul", "MatMul"), "quantize-dynamic{at_least=1}")
    assert [blamed.where for blamed in result.report.blamed] == ["node_MatMul_1"]
    assert [node.op_type for node in result.model.graph] == [
        "DynamicQuantizeLinear",
        "MatMulIntegerToFloat",
        "MatMul",
        "MatMulIntegerToFloat",
    ]


# --- accuracy ---------------------------------------------------------------------------------------------------------


def feeds(count: int, size: int = K, seed: int = 0) -> list[dict[str, Any]]:
    rng, mix = np.random.default_rng(seed), np.random.default_rng(9).standard_normal((size, size))
    return [{"x": (rng.standard_normal((16, size)) @ mix + 2).astype(np.float32)} for _ in range(count)]


def test_with_calibration_data_errors_make_up_for_each_other() -> None:
    model, test = net("Gemm", sizes=(48, 32)), feeds(4, 48, seed=5)
    found = []
    for data in (None, feeds(30, 48)):
        text = "quantize-dynamic{at_least=1,reduce_range=true}"
        result = graphopt.optimize(model, text, inputs=test[:1], calibration=data, strict=True)
        found.append(graphopt.compare(model, result.model, test).outputs[0].sqnr_db)
    assert found == pytest.approx([37.2, 38.9], abs=0.05)


# --- what users see ---------------------------------------------------------------------------------------------------


def timed(monkeypatch: pytest.MonkeyPatch, verdict: str, ratio: float) -> None:
    """Let each measurement find ``verdict``."""
    timing = SimpleNamespace(ratio=ratio, low=ratio - 0.1, high=ratio + 0.1, verdict=verdict)

    found = {1: timing}
    monkeypatch.setattr("graphopt_passes.speed.measure", lambda *a, **k: Found(found))


class Found(dict[int, Any]):
    """What a measurement finds, by candidate."""

    @property
    def inputs(self) -> dict[str, str]:
        return {"x": "float32[1,512]"}


@pytest.mark.parametrize(
    ("verdict", "ratio", "judged"),
    [("slower", 1.5, "it is slower"), ("no significant difference", 1.0, "no speed-up")],
)
def test_what_is_not_faster_stays_in_floats(
    verdict: str, ratio: float, judged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, verdict, ratio)
    model = net("Gemm", sizes=(512, 512))
    result = graphopt.optimize(model, "quantize-dynamic", strict=True)
    assert [node.op_type for node in result.model.graph] == ["Gemm"]
    (entry,) = result.report.passes
    assert [str(d.reason) for d in entry.declined] == ["the model does not measure faster with integers"]
    assert entry.notes == [
        f"a run takes {ratio:.2f} times as long as in float (95 % {ratio - 0.1:.2f} … {ratio + 0.1:.2f}; "
        f"x float32[1,512]): {judged}, and stays in floats (measured=false quantizes it all the same)"
    ]
    kept = graphopt.optimize(model, "quantize-dynamic{measured=false}", strict=True)
    assert [node.op_type for node in kept.model.graph] == ["DynamicQuantizeMatMul"]
    assert kept.report.passes[0].notes[-1].endswith(f"x float32[1,512]): {judged}")


def test_what_is_faster_is_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, "faster", 0.5)
    result = graphopt.optimize(net("Gemm", sizes=(512, 512)), "quantize-dynamic", strict=True)
    assert result.report.passes[0].notes == [
        "1 products: 1.05 MB of weights became 0.26 MB, 0.2520 of it",
        "a run takes 0.50 times as long as in float (95 % 0.40 … 0.60; x float32[1,512]): it is faster",
    ]


def test_the_report_says_how_far_values_are_from_float() -> None:
    result = graphopt.optimize(
        net("Add", "MatMul"), "quantize-dynamic{at_least=1,reduce_range=true}", inputs=feeds(2), strict=True
    )
    (entry,) = result.report.passes
    drift = [(d.value, d.node, round(d.sqnr_db, 1)) for d in entry.drift]
    assert drift == [("y0", "", 39.2), ("y1", "", 40.2), ("y0", "m0", 39.2), ("y1", "y1", 40.2)]
    assert entry.notes[2:] == [
        "output y0 is 39.2 dB from float",
        "output y1 is 40.2 dB from float",
        "to lose less, try exclude=[m0,y1]",
    ]


def test_inputs_that_never_vary_do_not_stop_it() -> None:
    result = graphopt.optimize(
        net("MatMul"),
        "quantize-dynamic{at_least=1,reduce_range=true}",
        inputs={"x": np.ones((2, K), np.float32)},
        strict=True,
    )
    assert result.report.passes[0].notes[-1] == (
        "how far values are from float was not measured: calibration data: input 'x' is 1 everywhere in the only "
        "sample; give real inputs"
    )


def test_the_speed_is_measured_once_however_often_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, "faster", 0.5)
    once = quantize_dynamic.measured
    calls: list[int] = []

    def counted(before: Any, after: Any, nbytes: int, context: Context) -> Any:
        calls.append(nbytes)
        return once(before, after, nbytes, context)

    def emit(product: Any, op_type: str, weights: Any, shift: Any, x: Any, tape: Any) -> ir.Value:
        return tape.op("Neg", [right(product, op_type, weights, shift, x, tape)])

    right = quantize_dynamic.emit
    monkeypatch.setattr(quantize_dynamic, "measured", counted)
    monkeypatch.setattr(quantize_dynamic, "emit", emit)
    result = graphopt.optimize(net("MatMul", sizes=(512, 512)), "quantize-dynamic")
    assert len(result.report.blamed) == 1 and calls == [1 << 20]
