"""PP-OCR's recognizer, quantized with defaults: what is left in floats, and that it still reads."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import data
import onnx_ir as ir
import pytest
import zoo

import graphopt
from graphopt.plugins import get_backend

CPU = "onnxruntime:cpu"
LINES, CALIBRATION = 40, 12
PIPELINE = "quantize-static{reduce_range=true,measured=false}"
"""The same on every machine: a bit of weights is unused, and nothing depends on what was measured."""


@functools.cache
def models() -> tuple[ir.Model, ir.Model]:
    """Return the model in floats and quantized."""
    if missing := zoo.ZOO["ppocr-rec"].missing:
        pytest.skip(f"ppocr-rec needs the package {missing}")
    floats = graphopt.optimize(zoo.onnx_path("ppocr-rec"), "speed", verify=False).model
    calibration = data.calibration("ppocr-rec")[:CALIBRATION]
    result = graphopt.optimize(
        floats, PIPELINE, calibration=calibration, target=CPU, verify=False, strict=True
    )
    return floats, result.model


def outputs(model: ir.Model) -> list[Any]:
    with get_backend(CPU).compile(model, threads=1) as executable:
        return [next(iter(executable.run(feeds).values())) for feeds in data.test("ppocr-rec")[:LINES]]


def test_lines_are_read_as_the_float_model_reads_them() -> None:
    floats, quantized = models()
    reference, found = outputs(floats), outputs(quantized)
    assert data.exact(found) >= data.exact(reference) - 0.01
    assert data.read_alike(found, reference) >= 0.99


def test_light_convs_between_float_activations_stay_in_floats() -> None:
    _, quantized = models()
    graph = get_backend(CPU).lowered(quantized)
    assert graph is not None
    kinds = Counter(node.op_type for node in graph.graph)
    assert (kinds["QLinearConv"], kinds["Conv"], kinds["MatMulIntegerToFloat"]) == (13, 41, 9)
