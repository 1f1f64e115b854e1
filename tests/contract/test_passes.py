"""What every pass on offer must keep, wherever it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt import docs, pipeline, plugins
from graphopt.testing import conformance

ROOT = Path(__file__).parents[2]
BUILT_IN = [name for name in plugins.passes() if plugins.owner(name) == "builtin"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_pass_conforms(name: str) -> None:
    conformance(plugins.get_pass(name), calibrated=True)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_pass_has_cases(name: str) -> None:
    text = (ROOT / "tests" / "passes" / f"{name}.md").read_text(encoding="utf-8")
    assert text.count("```onnx before") >= 3
    assert "```declined" in text


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_pass_gives_its_source(name: str) -> None:
    text = plugins.get_pass(name).__doc__ or ""
    assert "Exact" in text or "Lossy" in text
    assert "Source:" in text


def test_the_pages_of_passes_are_up_to_date() -> None:
    made = docs.pages("builtin", ROOT / "tests" / "passes")
    there = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "passes").glob("*.md")}
    assert there == made, "run `make docs`"


@pytest.mark.parametrize("name", plugins.presets())
def test_a_preset_prints_as_its_name_and_round_trips(name: str) -> None:
    parsed = pipeline.parse(name)
    assert str(parsed) == name
    spelled = pipeline.Pipeline(parsed.steps[0].steps)  # type: ignore[union-attr]
    assert pipeline.parse(str(spelled)) == spelled
    recipe = pipeline.from_recipe(__import__("tomllib").loads(pipeline.to_recipe(spelled)))
    assert recipe == spelled


def test_without_the_built_in_plugin_there_is_no_pass() -> None:
    installed = plugins.manager().get_plugin("builtin")
    others = [name for name in plugins.passes() if plugins.owner(name) != "builtin"]
    plugins.unregister("builtin")
    try:
        assert list(plugins.passes()) == others
        assert plugins.presets() == {}
    finally:
        plugins.register(installed, "builtin")
    assert "fold-constants" in plugins.passes()
