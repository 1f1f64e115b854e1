"""Corrected biases of a real model: what they are good for."""

from __future__ import annotations

import data
import pytest
import zoo

import graphopt

MODEL = "efficientnet-lite0"


def test_corrected_biases_bring_the_outputs_nearer() -> None:
    """Four pictures are few: what differs between them stays as it is, else the outputs would be 0.3 dB farther."""
    if missing := zoo.ZOO[MODEL].missing:
        pytest.skip(f"{missing} is not installed")
    model = graphopt.optimize(zoo.onnx_path(MODEL), "simplify", verify=False).model
    calibration, test = data.calibration(MODEL)[:4], data.test(MODEL)[:4]
    pipeline, found = "insert-qdq{rounding=nearest,reduce_range=true}", []
    for text in (pipeline, f"{pipeline},correct-bias"):
        result = graphopt.optimize(model, text, calibration=calibration, verify=False)
        found.append(graphopt.compare(model, result.model, test).outputs[0].sqnr_db)
    assert len(result.report.passes[-1].applied) == 50
    assert found == [pytest.approx(11.6, abs=0.1), pytest.approx(13.0, abs=0.1)]
