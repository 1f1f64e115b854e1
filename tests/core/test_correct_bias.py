"""Correcting biases behind quantization: what is proved, and what it is good for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.correct_bias import systematic

import graphopt
from graphopt.calibration import ChannelStatistics, observe
from graphopt.context import Context
from graphopt.text import from_text

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,3,8,8] x) => (float[N,5] y)
{
   c = Conv <pads = [1,1,1,1]> (x, w0, b0)
   r = Relu (c)
   e = Conv <group = 8, pads = [1,1,1,1]> (r, w1, b1)
   s = Relu (e)
   g = GlobalAveragePool (s)
   f = Flatten (g)
   m = MatMul (f, w2)
   y = Add (m, b2)
}"""
SHAPES = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "b1": (8,), "w2": (8, 5), "b2": (5,)}
LAYERS = {"c": 1, "e": 1, "y": -1}
"""Where the biases are added, and the axis of channels there."""


def network() -> ir.Model:
    """Return a network whose channels have weights up to a hundredfold apart, so that one scale for all biases them."""
    rng = np.random.default_rng(0)
    model = from_text(TEXT)
    free = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, shape in SHAPES.items():
        spread = 10 ** rng.uniform(-1, 1, (shape[0], *[1] * (len(shape) - 1)))
        array = (spread * rng.normal(size=shape)).astype(np.float32)
        free[name].const_value = ir.tensor(array, name=name)
        free[name].type, free[name].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        model.graph.register_initializer(free[name])
    return model


def pictures(seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.uniform(0, 1, size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(16)]


def means(model: ir.Model) -> dict[str, np.ndarray]:
    seen = {name: ChannelStatistics(axis) for name, axis in LAYERS.items()}
    observe(model, seen, Context(model, calibration=pictures(0)))
    return {name: statistics.mean for name, statistics in seen.items()}


def test_of_an_error_as_much_stays_as_samples_agree_on() -> None:
    errors = np.array([[1.0, 1, 3, 0], [1, -1, 1, 0]])
    np.testing.assert_array_equal(systematic(errors), [1, 0, 1.5, 0])
    np.testing.assert_array_equal(systematic(errors[:1]), errors[0])


COARSE = "insert-qdq{per_channel=false,rounding=nearest,calibrator=minmax}"


@pytest.fixture(scope="module")
def quantized() -> graphopt.Result:
    return graphopt.optimize(network(), COARSE, inputs=pictures(0)[:2], calibration=pictures(0), strict=True)


@pytest.fixture(scope="module")
def corrected() -> graphopt.Result:
    pipeline = f"{COARSE},correct-bias"
    return graphopt.optimize(
        network(), pipeline, inputs=pictures(0)[:2], calibration=pictures(0), strict=True
    )


def test_each_channel_keeps_its_mean(quantized: graphopt.Result, corrected: graphopt.Result) -> None:
    wanted, before, after = means(network()), means(quantized.model), means(corrected.model)
    for name in LAYERS:
        off, left = np.abs(before[name] - wanted[name]).max(), np.abs(after[name] - wanted[name]).max()
        assert left < off / 5, f"{name}: {off:.3g} became {left:.3g}"


def test_with_the_old_biases_it_is_what_it_was(corrected: graphopt.Result) -> None:
    assert corrected.report.verified
    (entry,) = (entry for entry in corrected.report.passes if entry.name == "correct-bias")
    assert len(entry.applied) == 3
    assert entry.rolled_back is None
    (check, kernels) = (check for check in corrected.report.checks if check.after == "correct-bias")
    assert kernels.ok and kernels.against == "simulated rounding"
    assert check.against == "result of insert-qdq, without the loss"
    assert check.largest_error == 0


def test_the_outputs_are_nearer_to_those_in_floats(
    quantized: graphopt.Result, corrected: graphopt.Result
) -> None:
    fresh = pictures(1)
    before = graphopt.compare(network(), quantized.model, fresh).outputs[0].sqnr_db
    after = graphopt.compare(network(), corrected.model, fresh).outputs[0].sqnr_db
    assert after > before + 3


def test_of_a_file_it_says_what_it_does_not_know(quantized: graphopt.Result, tmp_path: Path) -> None:
    quantized.save(tmp_path / "small.onnx")
    result = graphopt.optimize(
        tmp_path / "small.onnx", "correct-bias", inputs=pictures(0)[:2], calibration=pictures(0), strict=True
    )
    (entry,) = result.report.passes
    assert entry.notes == [
        "weights such as w0_quantized (5 in all) are not known in floats any more: only what pairs on activations do "
        "is corrected; run correct-bias in the pipeline that quantizes"
    ]
