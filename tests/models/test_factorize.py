"""Factors of real weights: what calibration data are good for, at the outputs of layers and of the model."""

from __future__ import annotations

import re
from typing import Any

import data
import pytest
import zoo
from graphopt_passes.factorize import Factorize, Plan

import graphopt

MODEL = "minilm"
MACS = "macs=0.7,only_if_faster=false"


@pytest.fixture(scope="module")
def minilm() -> tuple[Any, list[Any], list[Any]]:
    """MiniLM, simplified, with sentences to calibrate on and others to look at."""
    if missing := zoo.ZOO[MODEL].missing:
        pytest.skip(f"{missing} is not installed")
    model = graphopt.optimize(zoo.onnx_path(MODEL), "simplify", verify=False).model
    return model, data.calibration(MODEL), data.test(MODEL)[:16]


def layers(entry: Any) -> dict[str, float]:
    """Return the decibels of each layer that was factorized, on its calibration data."""
    return {drift.node: drift.sqnr_db for drift in entry.drift if drift.node}


@pytest.mark.slow
def test_real_inputs_make_better_factors_than_weights_alone(
    minilm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calibration, test = minilm
    aware = graphopt.optimize(
        model, f"factorize{{{MACS}}}", inputs=test[:1], calibration=calibration, strict=True
    )
    (entry,) = aware.report.passes
    assert re.fullmatch(r"684195840 MACs became \d+, 0\.70 of them, in \d+ of 36 layers", entry.notes[0])
    ranks = {each.where: (int(each.detail.split()[1]),) for each in entry.applied}
    monkeypatch.setattr(Factorize, "_plan", lambda *_: Plan(ranks=ranks))
    plain = graphopt.optimize(
        model,
        f"factorize{{{MACS},activation_aware=false}}",
        inputs=test[:1],
        calibration=calibration,
        strict=True,
    )
    before, after = layers(plain.report.passes[0]), layers(entry)
    assert before.keys() == after.keys() == ranks.keys()
    a, b = (graphopt.compare(model, each.model, test).outputs[0].sqnr_db for each in (aware, plain))
    assert a > b + 3


def test_full_rank_reproduces_the_model(minilm: Any) -> None:
    model, calibration, test = minilm
    result = graphopt.optimize(
        model,
        "factorize{rank=1.0,only_if_faster=false}",
        inputs=test[:1],
        calibration=calibration[:4],
        strict=True,
    )
    assert len(result.report.passes[0].applied) == 36
    compared = graphopt.compare(model, result.model, test)
    assert compared.ok and compared.outputs[0].sqnr_db > 100
