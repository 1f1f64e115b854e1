"""Weights in few bits and floats in half, on real models and on one that is larger than the memory it may take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import data
import onnx
import pytest
import zoo
from decoder import write

import graphopt


@pytest.fixture(scope="module")
def minilm() -> tuple[Any, list[Any], list[Any]]:
    """MiniLM, simplified, with sentences to calibrate on and others to look at."""
    needs("minilm")
    model = graphopt.optimize(zoo.onnx_path("minilm"), "simplify", verify=False).model
    return model, data.calibration("minilm")[:16], data.test("minilm")[:8]


def needs(name: str) -> None:
    if zoo.ZOO[name].missing:
        pytest.skip(f"{zoo.ZOO[name].missing} is not installed")


def sqnr(a: Any, b: Any, feeds: list[Any]) -> float:
    return graphopt.compare(a, b, feeds).outputs[0].sqnr_db


def nearest(model: Any, path: Path, **options: Any) -> Path:
    """Return what onnxruntime's own tool makes of ``model``."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    graphopt.save(model, path)
    tool = MatMulNBitsQuantizer(onnx.load(path), bits=4, block_size=32, **options)
    tool.process()
    onnx.save(tool.model.model, path)
    return path


@pytest.mark.slow
def test_four_bits_of_minilm_are_better_than_round_to_nearest(minilm: Any, tmp_path: Path) -> None:
    model, calibration, test = minilm
    options = "{exclude=[Gather]}"
    result = graphopt.optimize(
        model, f"quantize-weights{options}", inputs=test[:1], calibration=calibration, strict=True
    )
    (entry,) = result.report.passes
    assert len(entry.applied) == 36
    assert (
        entry.notes[0] == "36 products and 0 lookups (gptq): 42.47 MB of weights became 6.64 MB, 0.1562 of it"
    )
    assert entry.notes[1].startswith("a run takes ")
    theirs = max(
        sqnr(model, nearest(model, tmp_path / f"{symmetric}.onnx", is_symmetric=symmetric), test)
        for symmetric in (True, False)
    )
    assert sqnr(model, result.model, test) > theirs + 3.5


def test_embeddings_are_quantized_with_all_else(minilm: Any) -> None:
    model, _, test = minilm
    result = graphopt.optimize(model, "quantize-weights", inputs=test[:1], strict=True)
    assert result.report.after.weights_bytes < 0.16 * result.report.before.weights_bytes
    assert [d.reason for d in result.report.passes[0].declined] == [
        "embeddings.token_type_embeddings.weight has 768 numbers, which is too few"
    ]


@pytest.mark.parametrize(
    ("options", "least"), [("bits=8", 34), ("bits=8,activations=float", 34), ("bits=2", 1.5)]
)
def test_other_widths(minilm: Any, options: str, least: float) -> None:
    model, _, test = minilm
    result = graphopt.optimize(model, f"quantize-weights{{{options}}}", inputs=test[:1], strict=True)
    assert sqnr(model, result.model, test) > least


def test_a_tied_embedding_is_stored_once() -> None:
    needs("gpt2")
    result = graphopt.optimize(
        zoo.onnx_path("gpt2"), "quantize-weights", inputs=zoo.samples("gpt2"), strict=True
    )
    assert len(result.report.passes[0].applied) == 51
    assert result.report.after.weights_bytes < 0.16 * result.report.before.weights_bytes


LARGE = """
import sys, graphopt
result = graphopt.optimize(sys.argv[1], "quantize-weights", verify=False)
result.save(sys.argv[2])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(result.report.passes[0].applied), int(peak.split()[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_decoder_of_5_gb_takes_less_than_one_of_memory(tmp_path: Path) -> None:
    large(tmp_path, layers=24, most_kb=1_000_000)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    large(tmp_path, layers=2, most_kb=700_000)


def large(folder: Path, layers: int, most_kb: int) -> None:
    path = write(folder, layers)
    done = subprocess.run(
        [sys.executable, "-c", LARGE, path, folder / "small.onnx"], capture_output=True, text=True, check=True
    )
    applied, peak = map(int, done.stdout.split())
    assert applied == 7 * layers + 2
    assert (folder / "small.onnx").stat().st_size < 0.16 * (folder / "decoder.data").stat().st_size
    assert peak < most_kb


@pytest.mark.parametrize(("name", "least"), [("minilm", 50), ("efficientnet-lite0", 40), ("resnet50", 30)])
def test_half_precision_for_a_target_that_has_it(name: str, least: float) -> None:
    needs(name)
    feeds = zoo.samples(name)
    result = graphopt.optimize(
        zoo.onnx_path(name),
        "simplify,cast-float",
        inputs=feeds,
        calibration=feeds,
        target="onnxruntime:cuda",
        strict=True,
    )
    assert result.report.passes[-1].applied
    assert result.report.after.weights_bytes < 0.6 * result.report.before.weights_bytes
    assert (
        min(output.sqnr_db for output in graphopt.compare(result.original, result.model, feeds).outputs)
        > least
    )
