"""Which products quantize-mixed leaves in floats, with costs, noise and races that are given."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.quantize.insert_qdq import InsertQdq
from graphopt_passes.quantize.quantize_mixed import Goal, QuantizeMixed, Search
from graphopt_passes.quantize.sensitivity import Bench, Cost, decibels

import graphopt
from graphopt.context import Context
from graphopt.plugins import get_backend
from graphopt.racing import Timing


def silent(*_: object) -> None:
    pass


@dataclass
class Fake:
    """A bench on which noises add up, and latencies too: 1 in floats, less what integer kernels save."""

    given: Sequence[Cost]
    verdict: str = "faster"
    longer: str = ""
    """The verdict of a longer race; none is expected where it is missing."""

    @property
    def context(self) -> Any:
        return type("Silent", (), {"progress": staticmethod(silent)})

    def costs(self, deadline: float) -> Sequence[Cost]:
        return self.given

    def noise(self, floats: Collection[str]) -> float:
        return sum(cost.noise for cost in self.given if cost.name not in floats)


class Raced(Search):
    """A search that knows how a race would end."""

    def _race(self, sets: Sequence[frozenset[str]], times: int = 1) -> Sequence[Timing]:
        total = sum(cost.float_ms for cost in self.costs.values())
        ratios = [
            1 - sum(c.gain_ms for c in self.costs.values() if c.name not in floats) / total for floats in sets
        ]
        bench: Any = self.bench
        if times > 1:
            assert len(sets) == 1 and bench.longer
        return [Timing("", 1.0, 0.0, r, r, r, bench.longer if times > 1 else bench.verdict) for r in ratios]


COSTS = [
    Cost("a", noise=0.008, float_ms=1.0, integer_ms=0.9),  # much noise for little speed
    Cost("b", noise=0.006, float_ms=4.0, integer_ms=1.0),
    Cost("c", noise=0.002, float_ms=4.0, integer_ms=1.0),
    Cost("d", noise=0.001, float_ms=1.0, integer_ms=1.2),  # its integer kernel is slower
]


def search(costs: Sequence[Cost], goal_db: float | None, verdict: str = "faster", longer: str = "") -> Any:
    bench = Fake(costs, verdict, longer)
    wanted = 10 ** (-(goal_db or 28.0) / 10)
    reached = None if goal_db is None else lambda floats: bench.noise(floats) <= wanted
    return Raced(bench, Goal(reached, wanted), float("inf")).choice()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "floats"),
    [
        (17.0, {"d"}),  # noise 0.016 of 0.01995: nothing but what is slower on integers
        (20.0, {"a", "d"}),  # 0.008 of 0.01
        (25.0, {"a", "b", "d"}),  # 0.002 of 0.00316; d has no room: it is slower on integers
    ],
)
def test_the_fastest_set_that_is_accurate_enough(wanted: float, floats: set[str]) -> None:
    choice = search(COSTS, wanted)
    assert choice.quantize
    assert set(choice.floats) == floats


def test_noise_alone_would_have_left_out_more_speed() -> None:
    costs = [Cost("a", 0.010, 8.0, 1.0), Cost("b", 0.009, 1.0, 0.9), Cost("c", 0.001, 4.0, 1.0)]
    choice = search(costs, 19.0)  # 0.0126: one of a and b must stay in floats; a is the noisier one
    assert set(choice.floats) == {"b"}
    assert choice.notes == [
        "2 of 3 products run on integers: a run takes 0.23 times as long as in float (95 % 0.23 … 0.23); "
        "the outputs have 19.6 dB on calibration data; chosen by noise alone, 2 products would, at 0.76"
    ]
    assert choice.floats["b"] == (
        "it stays in float: 0.900 ms on integers, 1.000 ms in float, 45.0 % of the noise"
    )


def test_the_same_choice_by_noise_alone_is_not_worth_a_word() -> None:
    costs = [Cost("a", 0.010, 1.0, 0.5), Cost("b", 0.001, 1.0, 1.2), Cost("c", 0.0005, 1.0, 0.9)]
    choice = search(costs, 32.0)  # 0.00063: a, b, c in the order of noise leaves c; room for a is nowhere
    assert set(choice.floats) == {"a", "b"}
    assert "chosen by noise alone" not in choice.notes[0]


def test_what_noise_leaves_room_for_is_quantized_again() -> None:
    costs = [Cost("a", 0.001, 1.0, 0.9), Cost("b", 0.008, 9.0, 1.0), Cost("c", 0.0001, 2.0, 1.0)]
    choice = search(costs, 29.0)  # 0.00126: the order a, b, c drops a first, which has room when b is dropped
    assert set(choice.floats) == {"b"}


def test_without_a_wish_decibels_are_bought_while_they_are_cheap() -> None:
    costs = [Cost("a", 0.009, 1.0, 0.9), Cost("b", 0.0005, 5.0, 1.0), Cost("c", 0.0005, 4.0, 1.0)]
    choice = search(costs, None)  # a: 10 dB for 0.1 of 10 ms; b: 3 dB more for 4 ms
    assert set(choice.floats) == {"a"}


def test_nothing_is_quantized_where_integers_are_no_faster() -> None:
    choice = search(COSTS, 17.0, "no significant difference", "no significant difference")
    assert not choice.quantize
    assert set(choice.floats.values()) == {"integers are no faster here"}
    assert choice.notes == [
        "nothing is quantized: with 3 of 4 products on integers, a run takes 0.39 times as long as in float "
        "(95 % 0.39 … 0.39), and the outputs have 18.0 dB"
    ]


def test_what_may_be_faster_by_chance_is_raced_for_longer() -> None:
    choice = search(COSTS, 17.0, "no significant difference", "faster")
    assert choice.quantize
    assert set(choice.floats) == {"d"}


def test_nothing_is_quantized_where_only_floats_are_accurate_enough() -> None:
    choice = search([Cost("a", 0.5, 1.0, 0.5)], 40.0)
    assert not choice.quantize
    assert choice.notes == ["only floats are accurate enough"]


def test_time_that_runs_out_leaves_the_best_so_far() -> None:
    bench = Fake(COSTS)
    choice = Raced(bench, Goal(lambda floats: bench.noise(floats) <= 0.01, 0.01), 0.0).choice()  # type: ignore[arg-type]
    assert set(choice.floats) == {"a", "d"}  # by what is known of each product alone
    assert choice.notes[0] == "time ran out; this is the best that was found so far"


def test_the_noise_of_one_product_on_integers() -> None:
    """x = 0.4 becomes 0 of 1, so that a gives 0 for 0.4; b is exact."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        main (float[1,2] x) => (float[1,2] y)
        <float[2,2] v = {1,0,0,1}, float[2,2] w = {2,0,0,2}, float[2] b = {0.5,0.5}>
        {
           a = MatMul (x, v)
           k = Sqrt (a)
           y = Gemm (k, w, b)
        }"""
    )
    target = get_backend("onnxruntime:cpu")
    data = [{"x": np.array([[0.25, 1.0]], np.float32)}, {"x": np.array([[0.0, 4.0]], np.float32)}]
    context = Context(model, calibration=data, target=target)
    options = InsertQdq(calibrator="minmax", rounding="nearest", reduce_range=False)
    placement = options.place(model, context, graphopt.PassReport(), {})
    seen = options.observe(model, placement, context)
    bench = Bench(model, options, placement, seen, target, context)
    assert list(bench.names) == ["a", "y"]
    assert bench.noise({"a", "y"}) == 0
    y = [np.array([1.5, 2.5]), np.array([0.5, 4.5])]
    step = 4 / 255
    rounded = [np.sqrt(np.rint(d["x"][0] / step) * step) * 2 + 0.5 for d in data]
    noise = sum(np.square(a - b).sum() for a, b in zip(y, rounded, strict=True))
    assert bench.noise({"y"}) == pytest.approx(noise / sum(np.square(a).sum() for a in y), rel=1e-4)


def test_what_the_user_wants_makes_sense() -> None:
    with pytest.raises(graphopt.OptionError, match="give either sqnr or drop, not both"):
        graphopt.optimize(
            ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), "quantize-mixed{sqnr=20,drop=1}"
        )
    assert QuantizeMixed(sqnr=20).drop is None


def test_decibels() -> None:
    assert decibels(0.01) == pytest.approx(20)
    assert decibels(0) == float("inf")
