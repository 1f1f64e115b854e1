"""A real network with zeros in its weights: what new statistics of its normalizations are good for."""

from __future__ import annotations

import data
import pytest
import zoo

import graphopt
from graphopt.backends.session import create

MODEL = "efficientnet-lite0"


@pytest.mark.slow
def test_new_statistics_bring_a_pruned_network_back() -> None:
    """Without three tenths of its weights it recognizes nothing, until the statistics suit what is left."""
    if missing := zoo.ZOO[MODEL].missing:
        pytest.skip(f"{missing} is not installed")
    model = graphopt.optimize(zoo.onnx_path(MODEL), "simplify", verify=False).model
    test, found = data.test(MODEL)[:48], []
    outputs = []
    for text in ("", "prune-weights{sparsity=0.3}", "prune-weights{sparsity=0.3},reestimate-batchnorm"):
        pruned = model
        if text:
            result = graphopt.optimize(model, text, calibration=data.calibration(MODEL)[:32], strict=True)
            assert result.report.verified
            pruned = result.model
        session = create(pruned, optimize="basic")
        outputs.append([session.run(None, feed)[0] for feed in test])
        found.append(data.score(MODEL, outputs[-1], outputs[0]))
    assert found[1] < 0.05
    assert found[2] > 0.5
