"""What the case files of the passes that simplify cannot express."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from graphopt import pipeline
from graphopt.testing import conformance, run
from graphopt.text import from_text

CHAIN = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[N,3] x, float[N,3] y) => (float[N,3] z, float[N,3] w)
<float two = {2}, float[3] k = {1,2,4}, float zero = {0}, float six = {6}>
{
    a = Mul (x, two)
    b = Div (a, k)
    c = Neg (b)
    z = Add (y, c)
    d = Max (z, zero)
    w = Min (d, six)
}
"""


def make(text: str):
    (step,) = pipeline.parse(text).passes()
    return step


AFFINE = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[1,16,2,2] x, float[16,16,1,1] v) => (float[1,16,2,2] y)
<float two = {2}>
{
    c = Conv (x, v)
    m = Mul (c, two)
    a = Add (two, m)
    y = Conv (a, v)
}
"""


LOGIC = """
<ir_version: 10, opset_import: ["" : 20]>
main (bool[N,1] c, bool[N,3] d, int64[N,3] i, float[N,3] x, float[N,3] y) => (float[N,3] z, bool[N,3] w)
<float one = {1}, float low = {-100}, int64 two = {2}>
{
    m = Cast <to = 1> (c)
    n = Sub (one, m)
    o = Mul (n, low)
    p = Add (x, o)
    q = Not (d)
    z = Where (q, p, y)
    r = Less (i, two)
    w = Not (r)
}
"""
EXPAND = """
<ir_version: 10, opset_import: ["" : 20]>
main (bool[N,1] c, float[N,1] x, float[N,3] y) => (float[N,3] z, float[N,3] w)
{
    s = Shape (y)
    e = Expand (x, s)
    z = Add (e, y)
    d = Expand (c, s)
    w = Where (d, e, y)
}
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("simplify-arithmetic", CHAIN),
        ("simplify-logic", LOGIC),
        ("eliminate-expands", EXPAND),
        ("fuse-affine", AFFINE),
    ],
)
def test_it_conforms(name: str, text: str) -> None:
    conformance(make(name), [text])


OPERATORS = {
    "Mul": ("Mul ({x}, {c})", "Mul ({c}, {x})"),
    "Add": ("Add ({x}, {c})", "Add ({c}, {x})"),
    "Sub": ("Sub ({x}, {c})", "Sub ({c}, {x})"),
    "Div": ("Div ({x}, {c})", "Div ({c}, {x})"),
    "Neg": ("Neg ({x})",),
    "Reciprocal": ("Reciprocal ({x})",),
    "Relu": ("Relu ({x})",),
    "Abs": ("Abs ({x})",),
    "Min": ("Min ({x}, {c})", "Min ({c}, {x})"),
    "Max": ("Max ({x}, {c})", "Max ({c}, {x})"),
    "Square": ("Mul ({x}, {x})",),
    "Product": ("Mul ({x}, {y})",),
    "Sum": ("Add ({x}, {y})",),
    "Difference": ("Sub ({y}, {x})",),
}
FORMS = [form for forms in OPERATORS.values() for form in forms]
INTEGER = [form for form in FORMS if not form.startswith(("Div", "Reciprocal"))]


def program(forms: list[str], dtype: str, picks: list[int]) -> str:
    """Return a graph of one operator after another; each reads one of the two values before it, and maybe another."""
    lines, made = [], ["x", "y"]
    for i, (form, pick) in enumerate(zip(forms, picks, strict=True)):
        x, y = made[-1 - pick % min(2, len(made))], made[pick % len(made)]
        lines.append(f"v{i} = " + form.format(x=x, y=y, c=f"c{pick % 3}"))
        made.append(f"v{i}")
    outputs = f"{dtype}[2] {made[-1]}"
    constants = (
        f"<{dtype} c0 = {{3}}, {dtype}[2] c1 = {{2,5}}, {dtype}[1] c2 = {{{1 if dtype == 'uint8' else -1}}}>"
    )
    body = "\n".join(lines)
    header = f'<ir_version: 10, opset_import: ["" : 20]>\nmain ({dtype}[2] x, {dtype}[2] y) => ({outputs})'
    return f"{header} {constants} {{\n{body}\n}}"


programs = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from(FORMS), min_size=n, max_size=n),
        st.lists(st.integers(0, 30), min_size=n, max_size=n),
    )
)
integer_programs = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from(INTEGER), min_size=n, max_size=n),
        st.lists(st.integers(0, 30), min_size=n, max_size=n),
    )
)


@settings(max_examples=150, deadline=None)
@given(drawn=integer_programs, dtype=st.sampled_from(["int8", "int32", "int64"]))
def test_integers_are_equal_bit_for_bit(drawn: tuple[list[str], list[int]], dtype: str) -> None:
    model = from_text(program(drawn[0], dtype, drawn[1]))
    after, _, _ = run(make("simplify-arithmetic"), model)
    assert len(list(after.graph)) <= len(list(model.graph))
    x = np.array([-128, 77], dtype=np.dtype(dtype))
    y = np.array([5, -3], dtype=np.dtype(dtype))
    feeds = {"x": x, "y": y}
    with np.errstate(all="ignore"):
        want = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
        got = ReferenceEvaluator(ir.to_proto(after)).run(None, feeds)
    np.testing.assert_array_equal(got[0], want[0])


@settings(max_examples=200, deadline=None)
@given(
    drawn=programs,
    values=st.lists(
        st.sampled_from([0.0, 1.0, -2.5, 7.0, 1e-3, np.inf, -np.inf, np.nan]), min_size=4, max_size=4
    ),
)
def test_floats_are_equal_up_to_rounding_and_nothing_becomes_infinite(
    drawn: tuple[list[str], list[int]], values: list[float]
) -> None:
    model = from_text(program(drawn[0], "float", drawn[1]))
    after, _, _ = run(make("simplify-arithmetic"), model)
    assert len(list(after.graph)) <= len(list(model.graph))
    feeds = {"x": np.array(values[:2], np.float32), "y": np.array(values[2:], np.float32)}
    with np.errstate(all="ignore"):
        want = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)[0]
        got = ReferenceEvaluator(ir.to_proto(after)).run(None, feeds)[0]
    divides = any(form in ("Div ({c}, {x})", "Reciprocal ({x})") for form in drawn[0])
    assume(not divides or np.isfinite(want).all())  # the sign of a zero may change, and of infinity with it
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


LOGICAL = (
    "And ({c}, {d})",
    "Or ({c}, {d})",
    "Not ({c})",
    "Not ({d})",
    "Xor ({c}, {d})",
    "Where ({c}, {d}, {c})",
    "Where ({c}, yes, no)",
    "Where ({c}, no, {d})",
    "Less (x, {k})",
    "LessOrEqual (x, {k})",
    "Greater (x, {k})",
    "GreaterOrEqual (x, x)",
)


@settings(max_examples=150, deadline=None)
@given(drawn=st.lists(st.tuples(st.sampled_from(LOGICAL), st.integers(0, 30)), min_size=1, max_size=8))
def test_conditions_are_equal(drawn: list[tuple[str, int]]) -> None:
    made, lines = ["c", "d"], []
    for i, (form, pick) in enumerate(drawn):
        c, d = made[-1 - pick % 2], made[pick % len(made)]
        lines.append(f"v{i} = " + form.format(c=c, d=d, k=f"k{pick % 2}"))
        made.append(f"v{i}")
    model = from_text(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        f"main (bool[8] c, bool[8] d, float[8] x) => (bool[8] {made[-1]})\n"
        "<float k0 = {1}, float k1 = {2}, bool yes = {1}, bool no = {0}> {\n" + "\n".join(lines) + "\n}"
    )
    after, _, _ = run(make("simplify-logic"), model)
    assert len(list(after.graph)) <= len(list(model.graph))
    x = np.array([0, 1, 1.5, 2, 3, np.nan, np.inf, -np.inf], np.float32)
    feeds = {"c": np.arange(8) % 2 == 0, "d": np.arange(8) % 3 == 0, "x": x}
    want, got = (ReferenceEvaluator(ir.to_proto(m)).run(None, feeds)[0] for m in (model, after))
    np.testing.assert_array_equal(got, want)


STEPS = (
    "Sub (one, {x})",
    "Mul ({x}, two)",
    "Add (two, {x})",
    "Div ({x}, two)",
    "Neg ({x})",
    "Abs ({x})",
    "Div (one, {x})",
)
ENDS = ("Cast <to = 9> ({x})", "Less ({x}, one)", "Equal ({x}, two)", "Identity ({x})")


@settings(max_examples=100, deadline=None)
@given(forms=st.lists(st.sampled_from(STEPS), max_size=5), end=st.sampled_from(ENDS))
def test_masks_become_choices_of_the_same_numbers(forms: list[str], end: str) -> None:
    lines = [f"v{i + 1} = " + form.format(x=f"v{i}") for i, form in enumerate(forms)]
    kind = "float" if end == ENDS[3] else "bool"
    model = from_text(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        f"main (bool[2] c) => ({kind}[2] y)\n<float one = {{1}}, float two = {{2}}> {{\n"
        + "\n".join(["v0 = Cast <to = 1> (c)", *lines, "y = " + end.format(x=f"v{len(forms)}")])
        + "\n}"
    )
    after, _, _ = run(make("simplify-logic"), model)
    assert len(list(after.graph)) <= len(list(model.graph))
    feeds = {"c": np.array([True, False])}
    with np.errstate(all="ignore"):
        want, got = (ReferenceEvaluator(ir.to_proto(m)).run(None, feeds)[0] for m in (model, after))
    np.testing.assert_array_equal(got, want)
