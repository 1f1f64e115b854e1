"""Calibration: what observers see, in which memory; ranges of streams; and data that are no good."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import Context, InputError, ModelError
from graphopt.calibration import ChannelStatistics, Gram, Histogram, observe
from graphopt.calibration.histogram import BINS
from graphopt.plugins import calibrators, get_calibrator
from graphopt.scheme import Scheme
from graphopt.text import from_text

MODEL = """<ir_version: 10, opset_import: ["" : 20]>
    main (float[N,3] x) => (float[N,3] y) { a = Relu (x) l = Log (a) e = Exp (l) y = Neg (e) }"""


class Seen:
    def __init__(self) -> None:
        self.arrays: list[np.ndarray[Any, Any]] = []

    def update(self, array: np.ndarray[Any, Any]) -> None:
        self.arrays.append(array.copy())


def context(model: ir.Model, data: Any) -> Context:
    return Context(model, calibration=data)


def feeds(*sizes: int, seed: int = 0) -> list[dict[str, np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.uniform(0.5, 4, (size, 3)).astype(np.float32)} for size in sizes]


@pytest.mark.parametrize("budget", [1, 60, 1 << 20])
def test_observers_see_each_sample_in_any_number_of_groups(budget: int) -> None:
    model, data = from_text(MODEL), feeds(2, 5, 1)
    seen = {name: Seen() for name in ("x", "a", "e", "y")}
    assert observe(model, seen, context(model, data), budget_bytes=budget) == 3
    for name, sign in (("x", 1), ("a", 1), ("y", -1)):
        for got, feed in zip(seen[name].arrays, data, strict=True):
            np.testing.assert_allclose(got, sign * feed["x"], rtol=1e-6)
    assert [array.shape for array in seen["e"].arrays] == [(2, 3), (5, 3), (1, 3)]
    assert [value.name for value in model.graph.outputs] == ["y"], "the model is not changed"


def test_several_observers_of_one_value_and_progress() -> None:
    model, told = from_text(MODEL), []
    ctx = Context(
        model, calibration=feeds(1, 1), progress=lambda what, done, total: told.append((what, done, total))
    )
    one, two = Seen(), Seen()
    observe(model, {"a": [one, two]}, ctx, what="looking")
    assert len(one.arrays) == len(two.arrays) == 2
    assert told == [("looking", 1, 2), ("looking", 2, 2)]


def test_memory_does_not_grow_with_the_samples() -> None:
    model = from_text(MODEL)

    def peak(count: int) -> int:
        def data() -> Iterator[dict[str, Any]]:
            yield from (feeds(20_000, seed=i)[0] for i in range(count))

        class Again:
            def __iter__(self) -> Iterator[dict[str, Any]]:
                return data()

        tracemalloc.start()
        observe(model, {name: calibrators()["mse"](Scheme()) for name in "aley"}, context(model, Again()))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(4)  # imports what is imported when it is first needed
    assert peak(60) < 1.1 * peak(20)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "calibration data: they are empty; give at least one sample"),
        (None, "calibration: it needs calibration data and got none; give --calibration FILE.npz"),
        (
            [{"x": np.ones((1, 3), np.float32)}, {"x": np.ones((1, 4), np.float32)}],
            "calibration data, sample 2: input 'x'",
        ),
        (
            [*feeds(1), {"x": np.array([[1, 2, np.nan]], np.float32)}],
            "calibration data, sample 2: value 'x' becomes NaN; leave the sample out",
        ),
        (
            [*feeds(1, 1), {"x": np.array([[1, 2, -3]], np.float32)}],
            "calibration data, sample 3: value 'l' becomes infinite",
        ),
        (
            [{"x": np.full((1, 3), 5, np.float32)}],
            "calibration data: input 'x' is 5 everywhere in the only sample; give real inputs",
        ),
        (
            [{"x": np.full((1, 3), 2, np.float32)}] * 4,
            "calibration data: input 'x' is 2 everywhere in all 4 samples; give real inputs",
        ),
    ],
)
def test_bad_data_are_named(data: Any, message: str) -> None:
    model = from_text(MODEL)
    with pytest.raises(InputError) as raised:
        observe(model, {"x": Seen(), "l": Seen()}, context(model, data))
    assert str(raised.value).startswith(message)


def test_a_value_that_nobody_makes_is_named() -> None:
    model = from_text(MODEL)
    with pytest.raises(ModelError, match=r"^q: no node of the main graph makes a value of this name"):
        observe(model, {"q": Seen()}, context(model, feeds(1)))


def test_one_input_of_several_that_never_varies_is_remarked() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["" : 20]>
        main (float[2] x, float[2] state) => (float[2] y) { y = Add (x, state) }""")
    data = [{"x": np.array([i, 1], np.float32), "state": np.zeros(2, np.float32)} for i in range(3)]
    ctx = context(model, data)
    assert observe(model, {"y": Seen()}, ctx) == 3
    assert ctx.remarks == ["calibration data: input 'state' is 0 everywhere in all 3 samples"]


def test_given_sample_inputs_serve_with_a_remark() -> None:
    model = from_text(MODEL)
    ctx = Context(model, samples=feeds(1, 2))
    assert observe(model, {"a": Seen()}, ctx) == 2
    assert ctx.remarks == [
        "the sample inputs served as calibration data; more of them, in --calibration, give better ranges"
    ]


# --- histograms and ranges --------------------------------------------------------------------------------------------

ARRAYS = st.lists(
    st.lists(st.floats(-1e4, 1e4, width=32), max_size=30).map(lambda x: np.array(x, np.float32)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(ARRAYS)
def test_a_histogram_of_a_stream_is_the_histogram_of_all_at_once(arrays: list[np.ndarray[Any, Any]]) -> None:
    stream, whole, everything = Histogram(), Histogram(), np.concatenate(arrays)
    for array in arrays:
        stream.update(array)
    whole.update(everything)
    assert stream.count == whole.count == len(everything)
    if not len(everything):
        return
    assert (stream.low, stream.high) == (whole.low, whole.high) == (everything.min(), everything.max())
    assert stream.counts.sum() == len(everything)
    assert len(stream.counts) <= 4 * BINS + 2
    edges = (stream._first + np.arange(len(stream.counts) + 1)) * stream.width
    want, _ = np.histogram(everything.astype(np.float64), [*edges[:-1], np.nextafter(edges[-1], np.inf)])
    np.testing.assert_array_equal(stream.counts, want)


def test_a_tiny_number_below_0_is_not_counted_as_0() -> None:
    one = Histogram()
    one.update(np.array([-1e-45, 5000], np.float32))
    assert one.width == 2
    assert one.counts[:2].tolist() == [1, 0]
    assert one.centers[0] == pytest.approx(-1.4e-45, abs=1e-46)


@pytest.mark.parametrize("name", ["minmax", "moving-average", "percentile", "entropy", "mse", "sqnr"])
def test_every_calibrator_takes_what_comes(name: str) -> None:
    made = get_calibrator(name)
    assert made(Scheme()).range() == (0.0, 0.0)
    constant = made(Scheme())
    constant.update(np.full(9, 3, np.float32))
    assert constant.range() == (3.0, 3.0)
    flat = made(Scheme())
    flat.update(np.linspace(-1, 3, 100_000, dtype=np.float32))
    flat.update(np.zeros(0, np.float32))
    low, high = flat.range()
    assert -1 <= low <= -0.95
    assert 2.95 <= high <= 3, "a flat distribution has nothing to clip"


def test_ranges_of_a_stream_with_an_outlier() -> None:
    rng = np.random.default_rng(0)
    arrays = [*rng.normal(0, 1, (20, 10_000)).astype(np.float32), np.array([1000.0], np.float32)]
    ranges = {}
    for name, made in calibrators().items():
        one = made(Scheme())
        for array in arrays:
            one.update(array)
        ranges[name] = one.range()
    everything = np.concatenate(arrays)
    assert ranges["minmax"] == (everything.min(), everything.max())
    assert ranges["percentile"][1] < 7
    noise = {n: np.mean((Scheme().rounded(everything, *r) - everything) ** 2) for n, r in ranges.items()}
    assert noise["mse"] == min(noise.values())
    assert ranges["sqnr"][1] < ranges["mse"][1] / 2, "a quiet sample counts as much as the loud one"
    assert ranges["entropy"][1] < 30


def entropy(*arrays: np.ndarray[Any, Any]) -> tuple[float, float]:
    one = get_calibrator("entropy")(Scheme())
    for array in arrays:
        one.update(np.asarray(array, np.float32))
    return one.range()


def test_entropy_keeps_what_is_piled_up_at_the_ends() -> None:
    """Half of the numbers are 0, one in 735 is 6: an integer stands for each of both, as for no other number."""
    x = np.clip(np.random.default_rng(0).normal(0, 2, 50_000), 0, 6)
    assert np.mean(x == 6) == 0.00136
    assert entropy(x) == (0, 6)


def test_entropy_is_not_misled_by_numbers_that_come_often() -> None:
    """What a depthwise convolution makes of a plain background: its biases, each in a bin of its own."""
    rng = np.random.default_rng(0)
    x, biases = np.clip(rng.normal(0, 2, 50_000), 0, 6), np.repeat(rng.uniform(0, 3, 100), 2_000)
    assert entropy(x, biases) == pytest.approx((0, 4.16), abs=0.01)


def test_entropy_cuts_off_the_end_of_a_tail() -> None:
    x = np.random.default_rng(0).laplace(0, 1, 200_000)
    assert (x.min(), x.max()) == pytest.approx((-13.5, 11.95), abs=0.01)
    assert entropy(x) == pytest.approx((-11.68, 10.62), abs=0.01)


def test_the_least_noise_of_a_normal_distribution() -> None:
    """Max 1960, table II: the best uniform quantizer of 15 levels has steps of 0.3534 standard deviations."""
    one = calibrators()["mse"](Scheme(ir.DataType.INT4, symmetric=True))
    one.update(np.random.default_rng(0).normal(0, 1, 1_000_000).astype(np.float32))
    assert max(one.range()) == pytest.approx(7 * 0.3534, abs=0.02)


def test_unknown_calibrator() -> None:
    with pytest.raises(Exception, match=r"^no calibrator is called 'mes'; did you mean 'mse'"):
        get_calibrator("mes")


@given(st.integers(1, 5), st.integers(1, 4))
def test_statistics_of_a_stream(samples: int, channels: int) -> None:
    rng = np.random.default_rng(samples)
    arrays = [rng.normal(size=(2, channels, i + 1)).astype(np.float32) for i in range(samples)]
    one, gram = ChannelStatistics(axis=1), Gram()
    for array in arrays:
        one.update(array)
        gram.update(np.moveaxis(array, 1, -1))
    rows = np.concatenate([np.moveaxis(array, 1, -1).reshape(-1, channels) for array in arrays]).astype(
        np.float64
    )
    np.testing.assert_allclose(one.largest, np.abs(rows).max(0))
    np.testing.assert_allclose(one.mean, rows.mean(0), atol=1e-12)
    np.testing.assert_allclose(one.second_moment, (rows**2).mean(0))
    np.testing.assert_allclose(gram.matrix, rows.T @ rows, atol=1e-5)
    assert one.count == gram.count == len(rows)
