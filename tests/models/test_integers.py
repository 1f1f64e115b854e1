"""What runs on integers of real models, why the rest does not, and that the kernels round as the pairs say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import data
import pytest
import zoo

import graphopt
from graphopt import plugins
from graphopt.lowering import lowering
from graphopt.report import SIMULATED

CPU = plugins.get_backend("onnxruntime:cpu")
PIPELINE = "simplify,fold-batchnorm,quantize-static{calibrator=minmax,rounding=nearest,measured=false}"


def quantized(name: str, path: Path) -> graphopt.Result:
    return graphopt.optimize(
        path, PIPELINE, calibration=data.calibration(name)[:1], inputs=data.test(name)[:1], strict=True
    )


@pytest.mark.parametrize(("name", "layers"), [("efficientnet-lite0", 76), ("minilm", 24)])
def test_each_layer_is_within_one_quantum(model_path: Callable[[str], Path], name: str, layers: int) -> None:
    """EfficientNet has channels with weights next to nothing, by whose scales biases would overflow 32 bits."""
    result = quantized(name, model_path(name))
    (check,) = (check for check in result.report.checks if check.against == SIMULATED)
    assert check.ok and check.text.startswith(f"{layers} layers on integers ")
    assert not result.report.blamed
    found = lowering(result.model, CPU)
    assert found is not None
    left = found.of("conversion")
    assert all(kernel.reason for kernel in left)
    assert not [kernel for kernel in left if kernel.stranded]
    assert found.products == {"efficientnet-lite0": (50, 50), "minilm": (36, 48)}[name]
    (entry,) = (entry for entry in result.report.passes if entry.drift)
    assert [d.value for d in entry.drift if not d.node] == [v.name for v in result.model.graph.outputs]
    assert sum(bool(d.node) for d in entry.drift) == len(entry.applied)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_integers_of_every_model_are_proved_and_explained(
    model_path: Callable[[str], Path], model_samples: Callable[[str], list[Any]], name: str
) -> None:
    path, feeds = model_path(name), model_samples(name)[:1]
    result = graphopt.optimize(path, PIPELINE, calibration=feeds, inputs=feeds, strict=True)
    assert result.report.verified and not result.report.blamed
    checks = [check for check in result.report.checks if check.against == SIMULATED]
    found = lowering(result.model, CPU)
    assert found is not None
    if name == "silero-vad":  # all of it is in the branches of an If
        declined = {(d.op_type, d.reason) for d in result.report.passes[-1].declined}
        assert declined == {
            ("Conv", "it is in a branch, a loop or a function, whose values are not calibrated")
        }
        assert (found.products[0], checks) == (0, [])
        return
    assert found.products[0] > 0
    assert [check.ok for check in checks] == [True]
    left = found.of("conversion")
    assert [kernel.name for kernel in left if kernel.stranded or not kernel.reason] == []
