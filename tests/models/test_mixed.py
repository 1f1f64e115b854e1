"""quantize-mixed on a real model, with times that are given: the accuracy that is wanted is reached, and proved."""

from __future__ import annotations

import data
import pytest
import zoo
from conftest import need
from graphopt_passes.quantize.quantize_mixed import Search
from graphopt_passes.quantize.sensitivity import Bench

import graphopt
from graphopt.racing import Timing

BEGINNING = '"_conv_stem.*","_blocks.[0-2].*"'


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let integer kernels take half the time of float ones, and races end so."""
    monkeypatch.setattr(
        Bench,
        "_times",
        lambda self: (dict.fromkeys(self.names.values(), 1.0), dict.fromkeys(self.names.values(), 0.5)),
    )

    def race(self: Search, sets: list[frozenset[str]]) -> list[Timing]:
        ratios = [(1 + len(floats) / len(self.costs)) / 2 for floats in sets]
        return [Timing("", 1.0, 0.0, ratio, ratio, ratio, "faster") for ratio in ratios]

    monkeypatch.setattr(Search, "_race", race)


def test_the_wanted_accuracy_is_reached(half: None) -> None:
    need("efficientnet-lite0")
    model = graphopt.optimize(zoo.onnx_path("efficientnet-lite0"), "speed", verify=False).model
    crops = data.calibration("efficientnet-lite0")[:4]
    options = f"sqnr=28,reduce_range=true,include=[{BEGINNING}]"
    result = graphopt.optimize(
        model, f"quantize-mixed{{{options}}}", inputs=crops, calibration=crops, strict=True
    )
    kernels = [
        node
        for node in result.model.graph
        if node.op_type == "Conv" and node.inputs[1].producer() is not None
    ]
    assert len(kernels) == 4
    (output,) = graphopt.compare(result.original, result.model, crops).outputs
    assert output.sqnr_db >= 28
    assert any(check.against.endswith("without the loss") and check.ok for check in result.report.checks)
    (entry,) = result.report.passes
    assert entry.notes[0].startswith("4 of 9 products run on integers: a run takes ")
