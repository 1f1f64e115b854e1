from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pytest

import graphopt
from graphopt import Backend, Executable, InputError, ModelError, NodeTime, UsageError, measuring, racing
from graphopt.racing import FASTER, SAME, SLOWER, judge, race
from graphopt.text import from_text

MODEL = '<ir_version: 10, opset_import: ["": 20]> m (float[N] x) => (float[N] y) { y = Neg (x) }'
OTHER = (
    '<ir_version: 10, opset_import: ["": 20]> m (float[N] a, float[N] b) => (float[N] y) { y = Add (a, b) }'
)


class Clock:
    """A clock that only work moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Work(Executable):
    """Takes as long as ``seconds`` says, a number, or the next of several (the last one for ever)."""

    input_names, output_names = ("x",), ("y",)

    def __init__(self, clock, name, seconds, log=None):
        self.clock, self.name, self.log = clock, name, log if log is not None else []
        self.seconds = iter(seconds) if isinstance(seconds, Iterable) else iter([seconds])
        self.last = 0.0
        self.closed = False
        self.bound = None

    def run(self, inputs):
        self.step()
        return {"y": inputs["x"]}

    def bind(self, inputs):
        self.bound = inputs

    def step(self):
        self.last = next(self.seconds, self.last)
        self.clock.now += self.last
        self.log.append(self.name)

    def close(self):
        self.closed = True


# --- taking turns -----------------------------------------------------------------------------------------------------


def test_times_are_those_of_one_run():
    clock = Clock()
    times = race([Work(clock, "a", 0.02), Work(clock, "b", 0.03)], seconds=1, clock=clock)
    np.testing.assert_allclose(times, np.tile([0.02, 0.03], (len(times), 1)))


def test_quick_runs_are_timed_in_bursts_whose_first_run_does_not_count():
    clock, log = Clock(), []
    times = race([Work(clock, "a", 0.006, log), Work(clock, "b", 0.02, log)], seconds=2, clock=clock)
    np.testing.assert_allclose(times, np.tile([0.006, 0.02], (len(times), 1)))
    rounds = "".join(log)[-2 * 7 :]
    assert rounds.count("a") == 2 * 5 and rounds.count("b") == 2 * 2
    assert racing._turn(Work(clock, "c", [0.009, 0.002, 0.002, 0.002]), 4, clock) == pytest.approx(0.002)
    assert racing._turn(Work(clock, "c", [0.009, 0.002, 0.003, 0.050]), 4, clock) == pytest.approx(0.003)
    assert racing._turn(Work(clock, "c", [0.009, 0.001]), 2, clock) == pytest.approx(0.005)


def test_candidates_take_turns_in_a_new_order_each_round():
    clock, log = Clock(), []
    race([Work(clock, name, 0.04, log) for name in "abc"], seconds=6, seed=1, clock=clock)
    rounds = ["".join(log[i : i + 3]) for i in range(len(log) % 3, len(log), 3)][-20:]
    assert all(sorted(each) == list("abc") for each in rounds)
    assert len(set(rounds)) == 6


def test_the_order_depends_on_the_seed_alone():
    def order(seed):
        clock, log = Clock(), []
        race([Work(clock, name, 0.02, log) for name in "ab"], seconds=1, seed=seed, clock=clock)
        return "".join(log)

    assert order(0) == order(0) != order(1)


def test_warm_up_goes_on_while_runs_get_faster():
    clock = Clock()
    falling = [0.02 * 0.9**i for i in range(12)]
    work = Work(clock, "a", [*falling, 0.005])
    times = race([work], seconds=100, clock=clock)
    np.testing.assert_allclose(times, 0.005)


def test_warm_up_ends_in_time_even_if_runs_keep_getting_faster():
    clock = Clock()
    work = Work(clock, "a", (0.1 * 0.97**i for i in range(10_000)))
    racing._warm_up(work, 1.0, clock)
    assert 1.0 < clock.now < 1.2


def test_time_runs_out():
    clock = Clock()
    noise = np.random.default_rng(0).uniform(0.02, 0.04, 100_000)
    race([Work(clock, "a", noise[::2]), Work(clock, "b", noise[1::2])], seconds=2, clock=clock)
    assert 2.0 <= clock.now < 2.1


def test_seven_rounds_at_least():
    clock = Clock()
    assert len(race([Work(clock, "a", 5.0)], seconds=1, clock=clock)) == 7


def test_narrow_intervals_end_it():
    clock = Clock()
    assert len(race([Work(clock, "a", 0.02), Work(clock, "b", 0.02)], seconds=60, clock=clock)) == 20


def test_progress_is_told():
    clock, told = Clock(), []
    race([Work(clock, "a", 5.0)], seconds=30, clock=clock, progress=lambda *given: told.append(given))
    assert told[-1] == ("measuring", 100, 100)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_the_figures():
    a = np.array([10, 11, 12, 13, 14, 15, 16, 17, 18]) / 1000
    first, second = judge(["a", "b"], np.column_stack([a, 2 * a]))
    assert (first.name, second.name) == ("a", "b")
    assert (first.median_ms, second.median_ms) == (14.0, 28.0)
    assert first.spread == second.spread == pytest.approx(4 / 14)
    assert (first.ratio, first.low, first.high, first.verdict) == (1.0, 1.0, 1.0, "")
    assert (second.ratio, second.low, second.high, second.verdict) == (2.0, 2.0, 2.0, SLOWER)


def test_rounds_are_paired():
    """Where the machine slows down by half in the middle of it, the ratio is still sure."""
    drift = np.repeat([1.0, 2.0], 20)
    jitter = np.random.default_rng(0).uniform(0.999, 1.001, (40, 2))
    _, b = judge(["a", "b"], np.column_stack([drift, 0.9 * drift]) * jitter)
    assert b.ratio == pytest.approx(0.9, abs=1e-3)
    assert b.high - b.low < 0.002
    assert b.verdict == FASTER


def test_one_bad_round_does_not_matter():
    times = np.tile([1.0, 0.5], (15, 1))
    times[3, 1] = 50.0
    _, b = judge(["a", "b"], times)
    assert (b.ratio, b.low, b.high, b.verdict) == (0.5, 0.5, 0.5, FASTER)


@pytest.mark.parametrize(
    ("low", "ratio", "high", "chance", "verdict"),
    [
        (0.90, 0.95, 0.99, 0.001, FASTER),
        (1.02, 1.05, 1.10, 0.025, SLOWER),
        (0.90, 0.95, 1.00, 0.001, SAME),
        (0.99, 1.05, 1.10, 0.001, SAME),
        (0.991, 0.992, 0.993, 0.001, SAME),
        (1.001, 1.009, 1.02, 0.001, SAME),
        (0.80, 0.90, 0.95, 0.026, SAME),
    ],
)
def test_the_verdict(low, ratio, high, chance, verdict):
    assert racing.verdict(ratio, low, high, chance) == verdict


def test_less_than_can_be_told_apart():
    same, faster = (judge(["a", "b"], np.tile([4e-6, b], (20, 1)))[1].verdict for b in (3.81e-6, 3.79e-6))
    assert (same, faster) == (SAME, FASTER)


def test_the_chance_of_a_coin():
    assert racing._chance(np.array([0.9] * 7)) == 2 / 2**7
    assert racing._chance(np.array([1.1] * 6 + [0.9])) == 2 * 8 / 2**7
    assert racing._chance(np.array([1.1, 0.9])) == 1.0
    assert racing._chance(np.ones(5)) == 1.0
    assert racing._chance(np.array([0.9] * 36 + [1.1] * 13)) == 2 * (1 + 7 + 21) / 2**7


def test_equals_on_a_busy_machine_are_seldom_told_apart():
    """Each turn loses slices of four milliseconds to programs that come and go."""
    told = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        busy = 0.5 + abs(rng.normal(0, 0.3, (20, 1)).cumsum(0))
        lost = 0.004 * rng.poisson(np.repeat(3 * busy, 2, axis=1))
        told += judge(["a", "b"], 0.02 + lost + rng.lognormal(-8, 0.5, (20, 2)), seed)[1].verdict != SAME
    assert told <= 5


def test_the_interval_holds_the_truth_as_often_as_it_says():
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        _, b = judge(["a", "b"], rng.lognormal(0, 0.1, (40, 2)), seed)
        held += b.low <= 1 <= b.high
    assert 0.90 <= held / 200 <= 0.99


# --- measure ----------------------------------------------------------------------------------------------------------


class Lab(Backend):
    """A target on which model number ``i`` takes ``seconds[i]``."""

    name = "lab:bench"

    def __init__(self, *seconds, monkeypatch=None):
        self.clock = Clock()
        self.seconds = list(seconds)
        self.made: list[Work] = []
        self.settings: list[dict] = []
        if monkeypatch is not None:
            monkeypatch.setattr(measuring.race, "__kwdefaults__", race.__kwdefaults__ | {"clock": self.clock})

    def unavailable(self):
        return None

    def compile(self, model, **settings):
        self.settings.append(settings)
        self.made.append(Work(self.clock, str(len(self.made)), self.seconds[len(self.made)]))
        return self.made[-1]

    def profile(self, model, inputs, runs=10, **settings):
        return [NodeTime("y", "Neg", "Lab", 3.0), NodeTime("extra", "Reorder", "Lab", 1.0)]

    def describe(self):
        yield "weather", "fine"


def test_measure(monkeypatch):
    lab = Lab(0.08, 0.04, monkeypatch=monkeypatch)
    model = from_text(MODEL)
    found = graphopt.measure([model, model], target=lab, seconds=9, threads=3, names=["a", "b"], mode="quick")
    assert lab.settings == [{"mode": "quick", "threads": 3}] * 2
    assert all(work.closed and work.bound is not None for work in lab.made)
    assert str(found) == (
        "model  median ms  spread  ratio  95 % interval  verdict\n"
        "a      80.000     0.0 %\n"
        "b      40.000     0.0 %   0.500  0.500 … 0.500  faster"
    )
    assert (found.target, found.facts, found.rounds, len(found)) == ("lab:bench", {"weather": "fine"}, 20, 2)
    assert list(found.inputs) == ["x"] and found.inputs["x"].startswith("float32[")
    assert found[1].ratio == pytest.approx(0.5)
    data = json.loads(json.dumps(found.to_json()))
    assert [t["verdict"] for t in data["timings"]] == ["", FASTER]


def test_given_inputs_are_used(monkeypatch):
    lab = Lab(0.02, monkeypatch=monkeypatch)
    x = np.arange(5, dtype=np.float32)
    found = graphopt.measure(from_text(MODEL), {"x": x}, lab, seconds=1)
    assert found.inputs == {"x": "float32[5]"}
    assert lab.made[0].bound["x"] is x or np.array_equal(lab.made[0].bound["x"], x)
    assert found[0].name == "Model"


def test_everything_is_closed_when_a_model_is_refused():
    class Refusing(Lab):
        def compile(self, model, **settings):
            if self.made:
                raise ModelError("no")
            return super().compile(model, **settings)

    lab = Refusing(0.02)
    with pytest.raises(ModelError):
        graphopt.measure([from_text(MODEL)] * 2, target=lab)
    assert [work.closed for work in lab.made] == [True]


def test_names_of_sources(tmp_path):
    assert measuring._titles(["a.onnx", tmp_path, "a.onnx", "a.onnx"]) == [
        "a.onnx",
        str(tmp_path),
        "a.onnx #2",
        "a.onnx #3",
    ]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: graphopt.measure([]), UsageError, "there is no model to measure, got []; name one or more"),
        (
            lambda: graphopt.measure([from_text(MODEL)], seconds=0),
            UsageError,
            "the time to measure for must be positive, got 0 seconds",
        ),
        (
            lambda: graphopt.measure([from_text(MODEL)], seconds=float("nan")),
            UsageError,
            "the time to measure for must be positive, got nan seconds",
        ),
        (
            lambda: graphopt.measure([from_text(MODEL)], names=["a", "b"]),
            UsageError,
            "there are 1 models, but 2 names: ['a', 'b']",
        ),
        (
            lambda: graphopt.measure([from_text(MODEL)], target="onnxruntime:cpus"),
            UsageError,
            "no target is called 'onnxruntime:cpus'; did you mean 'onnxruntime:cpu'?",
        ),
        (
            lambda: graphopt.measure(
                [from_text(MODEL), from_text(OTHER)], names=["m", "n"], target=Lab(1, 1)
            ),
            InputError,
            "n: its inputs are a, b, those of m are x; only models with the same inputs can be compared",
        ),
    ],
)
def test_what_makes_no_sense(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_no_drawn_inputs_suit():
    class Picky(Lab):
        def compile(self, model, **settings):
            made = super().compile(model, **settings)
            made.run = lambda inputs: (_ for _ in ()).throw(InputError("too short"))
            return made

    with pytest.raises(InputError) as caught:
        graphopt.measure([from_text(MODEL)], target=Picky(0.02), names=["m"])
    assert str(caught.value) == "no drawn inputs suit m; give inputs; m: too short"


def test_profile_shares_and_scopes():
    model = from_text(MODEL)
    model.graph[0].metadata_props["graphopt.scope"] = "layers.0.neg"
    assert measuring.profile(model, target=Lab(0.02)) == {
        "Model": [
            measuring.NodeShare("y", "Neg", "layers.0.neg", "Lab", 3.0, 0.75),
            measuring.NodeShare("extra", "Reorder", "", "Lab", 1.0, 0.25),
        ]
    }


def test_on_the_processor():
    """The same figures from a real session; how fast it is, is not this test's business."""
    model = from_text(MODEL)
    found = graphopt.measure([model, model], seconds=0.2, threads=1)
    assert all(t.median_ms > 0 and t.low <= t.ratio <= t.high for t in found)
    assert found.rounds >= 7
