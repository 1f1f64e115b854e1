"""Real models through the presets: verified, smaller, valid, and the same again on a second run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import zoo

import graphopt
from graphopt import all_nodes
from graphopt.invariants import problems

NODES = {
    "efficientnet-lite0": 94,
    "minilm": 274,
    "ppocr-rec": 249,
    "silero-vad": 64,
    "ppocr-cls": 144,
    "resnet50": 122,
    "mobilenet-v3": 140,
    "vit-b16": 408,
    "bert-base": 523,
    "gpt2": 523,
    "swin-t": 487,
}
"""Nodes left by ``speed``, at most."""


@pytest.mark.parametrize("name", NODES)
def test_a_real_model_is_verified_after_speed(
    name: str, model_path: Callable[[str], Path], model_samples: Callable[[str], list[Any]], tmp_path: Path
) -> None:
    path = model_path(name)
    result = graphopt.optimize(path, "speed", inputs=model_samples(name)[:2], strict=True)
    assert result.report.verified, result.report.verdict()
    assert result.report.blamed == []
    assert not any(entry.rolled_back for entry in result.report.passes)
    assert problems(result.model) == []
    assert result.report.after.nodes <= NODES[name]
    assert result.report.after.weights_bytes <= result.report.before.weights_bytes + (4 << 20)
    result.save(tmp_path / "fast.onnx")
    onnx.checker.check_model(tmp_path / "fast.onnx")
    again = graphopt.optimize(tmp_path / "fast.onnx", "speed", verify=False)
    assert [a for entry in again.report.passes for a in entry.applied] == []


@pytest.mark.parametrize("name", [name for name, entry in zoo.ZOO.items() if entry.torch is not None])
@pytest.mark.slow
def test_a_real_module_is_verified_after_speed(name: str, torch_source: Callable[[str], zoo.Source]) -> None:
    module, args, kwargs, shapes = torch_source(name)
    model = graphopt.trace(module, args, kwargs, dynamic_shapes=shapes)
    result = graphopt.optimize(model, "speed", strict=True)
    assert result.report.verified, result.report.verdict()


def test_every_batchnorm_that_stays_is_explained(model_path: Callable[[str], Path]) -> None:
    """Every node that batch normalization left in a convolution net is explained."""
    result = graphopt.optimize(model_path("densenet121"), "speed", verify=False)
    left = {n.outputs[0].name for n in all_nodes(result.model) if n.op_type == "BatchNormalization"}
    entry = next(entry for entry in result.report.passes if entry.name == "fold-batchnorm")
    assert len(entry.declined) == len(left) == 62
