"""``speed{measured=true}``: families that cost time are left out, and the fastest settings are noted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import OptionError, Rewrite, Tape, pipeline, plugins
from graphopt.backends.onnxruntime import OnnxRuntime
from graphopt.backends.session import create
from graphopt.racing import Timing
from graphopt.settings import KEY, note, noted
from graphopt.text import from_text


class SlowNeg(Rewrite):
    """Replace ``Neg(x)`` by ``Sub(x - x, x)``. Exact. Source: ONNX Neg-13, Sub-14."""

    family: ClassVar[str] = "negation"
    anchor = "Neg"

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value:
        x = node.inputs[0]
        return tape.op("Sub", [tape.op("Sub", [x, x]), x])


MODEL = """<ir_version: 10, opset_import: ["" : 20]>
main (float[2] x) => (float[2] y) { n = Neg (x) y = Abs (n) }"""
COST = {"Sub": 1.0, "Neg": 0.5, "Abs": 0.5}
LEVEL = {"all": 1.0, "extended": 0.9, "basic": 0.7, "none": 0.8}


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """Time by the table above instead of a clock, and offer two presets."""
    seen: list[list[str]] = []

    def measure(models: list[ir.Model], *_: Any, names: list[str], **__: Any) -> Any:
        seen.append(names)
        times = [
            sum(COST[node.op_type] for node in model.graph)
            * LEVEL[noted(model, "onnxruntime:cpu").get("optimize", "all")]
            for model in models
        ]
        ratios = [time / times[0] for time in times]
        verdicts = [
            "faster" if r < 0.99 else "slower" if r > 1.01 else "no significant difference" for r in ratios
        ]
        timings = [
            Timing(n, t, 0.0, r, r, r, v) for n, t, r, v in zip(names, times, ratios, verdicts, strict=True)
        ]
        return SimpleNamespace(timings=timings)

    class Offers:
        @graphopt.hookimpl
        def register_passes(self) -> list[type[graphopt.Pass]]:
            return [SlowNeg]

        @graphopt.hookimpl
        def register_presets(self) -> dict[str, str]:
            return {"slow": "slow-neg,eliminate-dead"}

    monkeypatch.setattr("graphopt.tuning.measure", measure)
    plugins.register(Offers(), "offers")
    yield seen
    plugins.unregister("offers")


def test_a_family_that_costs_time_is_left_out(races: list[list[str]]) -> None:
    result = graphopt.optimize(from_text(MODEL), "slow{measured=true}")
    assert [node.op_type for node in result.model.graph] == ["Neg", "Abs"]
    assert result.report.passes[0].rolled_back == "the model is faster without negation"
    assert result.report.verified
    first = result.report.trials[0]
    assert (first.what, first.ratio, first.taken) == ("without negation", pytest.approx(1.0 / 2.5), True)
    assert races[0] == ["before", "without negation"]


def test_the_fastest_settings_are_noted_and_saved(races: list[list[str]]) -> None:
    result = graphopt.optimize(from_text(MODEL), "slow{measured=true}")
    assert races[1] == ["default", "optimize=extended", "optimize=basic", "optimize=none"]
    assert [(t.what, t.taken) for t in result.report.trials[1:]] == [
        ("settings optimize=extended", False),
        ("settings optimize=basic", True),
        ("settings optimize=none", False),
    ]
    assert json.loads(result.model.metadata_props[KEY]) == {"onnxruntime:cpu": {"optimize": "basic"}}
    assert "| settings optimize=basic | 0.700 | 0.700 … 0.700 | taken |" in result.report.markdown()


def test_unmeasured_nothing_is_tried(races: list[list[str]]) -> None:
    result = graphopt.optimize(from_text(MODEL), "slow")
    assert races == []
    assert [node.op_type for node in result.model.graph] == ["Sub", "Sub", "Abs"]
    assert KEY not in result.model.metadata_props


def test_the_option_round_trips(races: list[list[str]]) -> None:
    parsed = pipeline.parse("slow{measured=true}")
    assert str(parsed) == "slow{measured=true}"
    assert parsed.measured and not pipeline.parse("slow{measured=false}").measured
    assert pipeline.to_recipe(parsed) == 'pipeline = [\n    {pass = "slow", measured = true},\n]\n'
    with pytest.raises(
        OptionError, match="slow: a preset takes one option, measured=true or false, got measured=1"
    ):
        pipeline.parse("slow{measured=1}")


def test_a_session_is_made_with_what_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def spy(model: ir.Model, **given: Any) -> Any:
        asked.append(given)
        return create(model, **given)

    monkeypatch.setattr("graphopt.backends.session.create", spy)
    model, target = from_text(MODEL), plugins.get_backend("onnxruntime:cpu")
    assert isinstance(target, OnnxRuntime)
    note(
        model,
        "onnxruntime:cpu",
        {"optimize": "basic", "disable": ["GeluFusion"], "config": {"a": "b"}, "threads": -1},
    )
    target.compile(model).close()
    target.compile(model, optimize="none").close()
    assert [given.get("optimize") for given in asked] == ["basic", "none"]
    assert asked[0]["disable"] == ["GeluFusion"]
    assert "threads" not in asked[0]
    assert "a" not in asked[0]["config"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"onnxruntime:cpu": 3}', '{"onnxruntime:cpu": {"optimize": "warp"}}']
)
def test_notes_that_make_no_sense_are_ignored(text: str) -> None:
    model = from_text(MODEL)
    model.metadata_props[KEY] = text
    plugins.get_backend("onnxruntime:cpu").compile(model).close()


def test_the_users_inputs_are_raced_where_nothing_is_verified() -> None:
    """Drawn inputs would not do: the model takes pictures of at least 8 by 8."""
    model = from_text("""<ir_version: 10, opset_import: ["" : 20]>
        main (float[1,1,H,W] x) => (float[1,1,A,B] y) <int64[8] pads = {0, 0, 7, 7, 0, 0, 7, 7}>
        { y = Pad <mode = "reflect"> (x, pads) }""")
    feeds = {"x": np.ones((1, 1, 9, 9), np.float32)}
    result = graphopt.optimize(model, "speed{measured=true}", inputs=feeds, verify=False)
    assert [trial.what for trial in result.report.trials]
