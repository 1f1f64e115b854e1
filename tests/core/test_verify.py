"""Two models are compared by running them: rounding passes, anything else is named by its element."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphopt
from graphopt import InputError, ModelError
from graphopt.analysis.precision import precision
from graphopt.closeness import TOLERANCES, Difference, Tolerance
from graphopt.verify import Baseline, compare

HEAD = '<ir_version: 10, opset_import: ["" : 20, "local" : 1]>\n'
F32 = TOLERANCES["float32"]


def model(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(HEAD + text))


def double(body: str) -> ir.Model:
    return model(f"g (float[N, 4] x) => (float[N, 4] y) <float two = {{2.0}}> {{ {body} }}")


def rated(a: object, b: object, tolerance: Tolerance | None = F32) -> Difference:
    difference = Difference("y")
    difference.add(a, b, numbers=tolerance is not None)
    return difference.judge(tolerance)


# --- arrays --------------------------------------------------------------------------------------------------


def test_one_element_off_by_a_thousandth_is_caught_and_named() -> None:
    a = np.random.default_rng(0).standard_normal((4, 100)).astype(np.float32)
    b = a.copy()
    b[2, 7] *= 1.001
    found = rated(a, b)
    assert not found.ok
    assert found.worst is not None
    assert found.worst.index == (2, 7)
    assert found.reason == (
        f"output 'y' at [2, 7]: {a[2, 7]:.7g} became {b[2, 7]:.7g}, {found.max_rel:.2g} of its largest element "
        "(rounding does at most 5e-05)"
    )


def test_every_element_off_by_little_is_caught() -> None:
    a = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    found = rated(a, a * np.float32(1 + 2e-5))
    assert found.max_rel < F32.peak
    assert found.reason is not None
    assert found.reason.endswith(
        "worst of many: the error is 2e-05 of the output (rounding does at most 1e-05)"
    )


@given(st.integers(0, 2**32 - 1), st.integers(10, 3000))
def test_another_order_of_summing_passes(seed: int, terms: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, terms), (terms, 16)))
    order = rng.permutation(terms)
    found = rated(x @ w, x[:, order] @ w[order])
    assert found.ok, found.reason


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ([1, math.nan], [math.nan, 1], "output 'y' at [0]: 1 became nan"),
        ([1, math.nan], [1, 0.5], "output 'y' at [1]: nan became 0.5"),
        ([1, math.inf], [1, -math.inf], "output 'y' at [1]: inf became -inf"),
        ([1, 2], [1, math.inf], "output 'y' at [1]: 2 became inf"),
        ([[1, 2]], [1, 2], "output 'y': shape [1, 2] became [2]"),
        (
            [1, 2],
            [2, 1],
            "output 'y' at [0]: 1 became 2, 0.5 of its largest element (rounding does at most 5e-05)",
        ),
    ],
)
def test_what_is_not_rounding_is_named(a: list[float], b: list[float], reason: str) -> None:
    found = rated(np.array(a, np.float32), np.array(b, np.float32))
    assert found.reason == reason


def test_equal_nan_and_infinity_pass() -> None:
    a = np.array([math.nan, math.inf, -math.inf, 3], np.float32)
    found = rated(a, a.copy())
    assert (found.ok, found.max_abs, found.sqnr_db, found.cosine) == (True, 0.0, math.inf, 1.0)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, ml_dtypes.int4])
def test_integers_and_bools_are_equal_or_not(dtype: type) -> None:
    a, b = np.array([0, 1, 1], dtype), np.array([0, 1, 0], dtype)
    assert rated(a, a.copy(), TOLERANCES["float8"]).ok
    found = rated(a, b, TOLERANCES["float8"])
    assert found.worst is not None
    assert (found.ok, found.worst.index) == (False, (2,))


def test_large_integers_are_told_apart() -> None:
    found = rated(np.array([2**62]), np.array([2**62 + 1]))
    assert found.reason == "output 'y' at [0]: 4611686018427387904 became 4611686018427387905"


def test_strings_are_equal_or_not() -> None:
    a, b = np.array(["a", "ä"], object), np.array(["a", "b"])
    assert rated(a, a.astype(str)).ok
    assert rated(a, b).reason == "output 'y' at [1]: 'ä' became 'b'"


def test_another_type_is_a_difference_and_is_still_measured() -> None:
    a = np.array([1, 2, 3], np.float32)
    found = rated(a, (a * 2).astype(np.float16))
    assert found.reason == "output 'y': float32 became float16"
    assert (found.max_abs, found.max_rel) == (3.0, 1.0)
    assert found.sqnr_db == pytest.approx(0.0)
    assert found.cosine == pytest.approx(1.0)


def test_sequences_optionals_and_maps() -> None:
    one, two = np.ones(2, np.float32), np.full(2, 2, np.float32)
    assert rated([one, two], [one, two]).ok
    assert rated([one, two], [one, one]).worst.index == (1, 0)  # type: ignore[union-attr]
    assert rated([one, two], [one]).reason == "output 'y': 2 elements became 1"
    assert rated(None, None).ok
    assert rated(None, one).reason == "output 'y': nothing became a value"
    assert rated([{"a": 1.0}], [{"a": 1.0}]).ok
    assert (
        rated([{"a": 1.0}], [{"b": 1.0}]).reason == "output 'y' at [0]: key 'a' is in one of the models only"
    )


@pytest.mark.parametrize(
    ("dtype", "grade", "passes", "fails"),
    [
        (np.float64, "float64", 1e-11, 1e-8),
        (np.float32, "float32", 5e-6, 5e-5),
        (np.float16, "float16", 1e-3, 1e-2),
        (ml_dtypes.bfloat16, "bfloat16", 1e-2, 5e-2),
        (ml_dtypes.float8_e4m3fn, "float8", 0.03, 0.25),
    ],
)
def test_tolerance_goes_by_type(dtype: type, grade: str, passes: float, fails: float) -> None:
    a = np.linspace(1, 2, 64)
    assert rated(a.astype(dtype), (a * (1 + passes)).astype(dtype), TOLERANCES[grade]).ok
    assert not rated(a.astype(dtype), (a * (1 + fails)).astype(dtype), TOLERANCES[grade]).ok


def test_figures_over_several_feeds() -> None:
    found = Difference("y")
    found.add(np.array([3.0, 4.0]), np.array([3.0, 4.0]), 0)
    found.add(np.array([0.0, 5.0]), np.array([0.0, 5.5]), 1)
    assert not found.judge(F32).ok
    assert found.worst is not None
    assert (found.max_abs, found.max_rel, found.worst.feed) == (0.5, 0.1, 1)
    assert found.sqnr_db == pytest.approx(10 * math.log10(50 / 0.25))
    assert found.cosine == pytest.approx((25 + 27.5) / math.sqrt(50 * (25 + 30.25)))


# --- precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "grade", "random"),
    [
        ("y = Neg (x)", "float32", False),
        ("h = Cast <to = 10> (x)  y = Cast <to = 1> (h)", "float16", False),
        ("w = Cast <to = 1> (half)  y = Mul (x, w)", "float32", False),
        ("q = QuantizeLinear (x, s)  y = DequantizeLinear (q, s)", "int8", False),
        ("h = local.narrow (x)  y = Cast <to = 1> (h)", "bfloat16", False),
        ("y = If (c) <then_branch = t () => (float a) { h = Cast <to = 10> (x)  a = Cast <to = 1> (h) }, "
         "else_branch = e () => (float b) { b = Neg (x) }>", "float16", False),
        ("r = RandomNormalLike (x)  y = Add (x, r)", "float32", True),
        ("r = RandomNormalLike <seed = 1.0> (x)  y = Add (x, r)", "float32", False),
        ("y = Constant <value_float = 1.0> ()", None, False),
    ],
)  # fmt: skip
def test_precision_of_an_output_is_the_coarsest_on_its_way(
    body: str, grade: str | None, random: bool
) -> None:
    text = f"""g (float[2] x, bool c) => (y) <float16 half = {{1}}, float s = {{0.5}}> {{ {body} }}
    <domain: "local", opset_import: ["" : 20]> narrow (i) => (o) {{ o = Cast <to = 16> (i) }}"""
    found = precision(model(text))["y"]
    assert (found.grade, found.random) == (grade, random)


# --- models --------------------------------------------------------------------------------------------------


def test_equal_models() -> None:
    found = compare(double("y = Mul (x, two)"), double("y = Mul (two, x)"))
    assert found.ok
    assert found.text() == "1 output equal bit for bit, on 2 sample inputs"


def test_rounding_passes_with_its_size() -> None:
    tanh = "a = Exp (x)  m = Neg (x)  b = Exp (m)  c = Sub (a, b)  d = Add (a, b)  y = Div (c, d)"
    found = compare(double("y = Tanh (x)"), double(tanh))
    assert found.ok
    assert 0 < found.outputs[0].max_rel < 1e-6
    assert found.text() == (
        f"1 output equal up to rounding, largest error {found.outputs[0].max_rel:.1e} of y's largest element, "
        "on 2 sample inputs"
    )


def test_a_difference_names_the_worst_element() -> None:
    found = compare(double("y = Mul (x, two)"), double("y = Add (x, two)"), {"x": [[1.0, 2.0, 4.0, 8.0]]})
    assert not found.ok
    assert found.text() == (
        "output 'y' at [0, 3]: 16 became 10, 0.38 of its largest element (rounding does at most 5e-05)"
    )
    output = found.to_json()["outputs"][0]
    assert output["worst"] == {"index": [0, 3], "a": 16.0, "b": 10.0, "feed": 0}
    assert (output["max_abs"], output["max_rel"]) == (6.0, 0.375)


def test_a_difference_at_the_second_binding_only_is_found() -> None:
    given = "g (float[N, 4] x) => (float[N, 4] y) <int64[2] shape = {%s}> { y = Reshape (x, shape) }"
    assert compare(model(given % "-1, 4"), model(given % "0, 4")).ok
    found = compare(model(given % "-1, 4"), model(given % "2, 4"))
    assert found.text().startswith("the result cannot be run: onnxruntime fails to run the model: ")
    found = compare(
        double("y = Mul (x, two)"),
        double("s = Shape <end = 1> (x)  f = Cast <to = 1> (s)  y = Mul (x, f)"),
    )
    assert "on sample input 2 of 2" in found.text()


def test_the_right_output_of_several_is_blamed() -> None:
    text = "g (float[4] x) => (float[4] a, float[4] b) { a = Neg (x)  b = %s (x) }"
    found = compare(model(text % "Abs"), model(text % "Exp"), {"x": [0.0, 0.0, 0.0, 1.0]})
    assert [output.ok for output in found.outputs] == [True, False]
    assert found.text() == (
        "output 'b' at [3]: 1 became 2.718282, 1.7 of its largest element (rounding does at most 5e-05); "
        "1 of 2 outputs differ"
    )


def test_outputs_and_inputs_match_by_name_in_any_order() -> None:
    a = model("g (float[2] p, float[2] q) => (float[2] s, float[2] t) { s = Sub (p, q)  t = Neg (p) }")
    b = model("g (float[2] q, float[2] p) => (float[2] t, float[2] s) { s = Sub (p, q)  t = Neg (p) }")
    assert compare(a, b).ok


def test_other_names_match_by_position() -> None:
    a = model("g (float[2] p, float[2] q) => (float[2] s) { s = Sub (p, q) }")
    b = model("g (float[2] x, float[2] y) => (float[2] z) { z = Sub (x, y) }")
    c = model("g (float[2] x, float[2] y) => (float[2] z) { z = Sub (y, x) }")
    assert compare(a, b).ok
    assert not compare(a, c).ok


def test_other_interfaces_are_a_verdict() -> None:
    a = model("g (float[2] p) => (float[2] s) { s = Neg (p) }")
    b = model("g (float[2] p, float[2] q) => (float[2] s) { s = Sub (p, q) }")
    c = model("g (float[2] p) => (float[2] s, float[2] t) { s = Neg (p)  t = Abs (p) }")
    assert compare(a, b).text() == "the inputs differ: p became p, q"
    assert compare(a, c).text() == "the outputs differ: s became s, t"
    assert not compare(a, b).ok


def test_a_result_that_cannot_run_is_a_failed_check() -> None:
    found = compare(double("y = Neg (x)"), double("y = local.Unknown (x)"))
    assert not found.ok
    assert found.text().startswith("the result cannot be run: onnxruntime refuses the model: ")


def test_an_original_that_cannot_run_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"^the original cannot be run, so nothing can be compared"):
        compare(double("y = local.Unknown (x)"), double("y = Neg (x)"))


def test_an_original_that_refuses_the_inputs_is_an_error() -> None:
    needs = model("g (float[N] x) => (float[11] y) <int64[1] size = {11}> { y = Reshape (x, size) }")
    with pytest.raises(
        InputError, match=r"^the original runs with none of the inputs drawn for it: .*; give inputs$"
    ):
        compare(needs, needs)


def test_what_onnxruntime_lacks_is_run_by_the_evaluator() -> None:
    text = "g (bfloat16[3] x) => (bfloat16[3] y) { y = Mish (x) }"
    found = compare(model(text), model(text))
    assert found.ok
    assert len(found.remarks) == 1
    assert found.remarks[0].startswith("run by onnx's reference evaluator: onnxruntime refuses the model: ")


def test_sizes_are_searched_until_the_original_runs() -> None:
    text = "g (float[N, 16] x) => (float[N, 2] y) <int64[2] shape = {-1, 2}, int64[2] by = {%s, 16}> %s"
    needs = model(text % ("4", "{ a = Reshape (x, by)  y = Reshape (a, shape) }"))
    baseline = Baseline(needs)
    assert [feed["x"].shape for feed in baseline.feeds] == [(4, 16)]
    assert baseline.remarks[0].startswith("proved at one set of sizes: others that were tried are refused: ")
    assert baseline.check(needs).ok


def test_random_outputs_are_compared_by_shape() -> None:
    text = "g (float[2] x) => (float[2] y, float[2] z) { y = RandomNormalLike (x)  z = Neg (x) }"
    found = compare(model(text), model(text))
    assert found.ok
    assert found.remarks == ["output 'y' is random: its type and shape are compared"]


def test_half_precision_inputs_are_fed_what_the_original_got() -> None:
    a = model("g (float[64] x) => (float[64] y) { y = Sigmoid (x) }")
    b = model("g (float16[64] x) => (float[64] y) { h = Sigmoid (x)  y = Cast <to = 1> (h) }")
    found = compare(a, b)
    assert not found.ok
    assert 1e-5 < found.outputs[0].max_rel < 1e-3
    assert compare(a, b, rtol=1e-2).ok


def test_rounding_in_an_ill_conditioned_model_is_measured() -> None:
    values = ",".join(["4000"] * 64)
    a = model(
        f"g (float[N, 64] x) => (float[N, 64] y) <float[64] b = {{{values}}}> {{ c = Add (x, b)  y = Sub (c, b) }}"
    )
    b = model("g (float[N, 64] x) => (float[N, 64] y) { y = Identity (x) }")
    c = model("g (float[N, 64] x) => (float[N, 64] y) <float k = {1.003}> { y = Mul (x, k) }")
    found = compare(a, b)
    assert found.ok
    assert found.outputs[0].sqnr_db < 90
    assert found.remarks == [
        "output 'y' is ill-conditioned: rounding in the original moves it by 2e-04 of its largest element"
    ]
    assert not compare(a, c).ok


def test_an_output_as_small_as_rounding_is_not_blamed() -> None:
    text = "g (float[N, 64] x) => (float[N, 64] y) <float low = {-16.5}> { %s  y = Sigmoid (b) }"
    a = model(text % "a = Tanh (x)  b = Add (a, low)")
    b = model(text % "a = Tanh (x)  c = Sub (a, low)  m = Neg (low)  d = Sub (a, m)  b = Identity (d)")
    baseline = Baseline(a)
    assert baseline.widened["y"] != F32
    assert baseline.check(b).ok
    assert not baseline.check(model(text % "b = Identity (low)")).ok


def test_a_well_conditioned_model_gets_no_extra_tolerance() -> None:
    baseline = Baseline(double("a = Mul (x, two)  y = Tanh (a)"))
    assert baseline.widened == baseline.tolerances == {"y": F32}
    assert baseline.remarks == []


def test_a_reference_is_kept_as_it_was() -> None:
    reference = double("y = Mul (x, two)")
    baseline = Baseline(double("y = Neg (x)"))
    other = baseline.on(reference)
    next(iter(reference.graph)).op_type = "Add"
    assert other.check(double("y = Mul (x, two)")).ok
    assert not other.check(reference).ok
    assert other.feeds == baseline.feeds


def test_subgraphs_functions_sequences_and_optionals_run() -> None:
    text = """g (float[N, 4] x) => (seq(float[N, 4]) s, optional(float[N, 4]) o, float[N, 4] f) {
        s = SequenceConstruct (x, x)
        o = Optional (x)
        f = local.twice (x)
    }
    <domain: "local", opset_import: ["" : 20]> twice (i) => (o) { o = Add (i, i) }"""
    found = compare(model(text), model(text.replace("o = Add (i, i) }", "o = Sub (i, i) }")))
    assert [output.ok for output in found.outputs] == [True, True, False]


def test_compare_is_public() -> None:
    assert graphopt.compare is compare
