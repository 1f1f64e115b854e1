"""One quantizer on one model, in a process of its own: ``python quantizers.py TOOL MODEL FOLDER CALIBRATION.npz``.

Writes ``FOLDER/model.onnx``, and ``FOLDER/figures.json`` with the seconds that the tool took from file to file,
calibration included, and the peak of resident memory. Runs in the environment of the tool.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from memory import peak_bytes  # beside this file

PACKAGES = {
    "quantize-onnxruntime": ["onnxruntime", "onnx", "onnx-ir", "sympy"],
    "nncf": ["nncf==3.4.0", "onnx", "onnxruntime"],
    "onnx-neural-compressor": ["onnx-neural-compressor==1.0", "prettytable", "scipy"],
    "openvino": ["openvino==2026.4.1"],
}
"""What to install in each environment of a peer."""

Feeds = list[dict[str, Any]]
Quantize = Callable[[Path, Path, Feeds], object]


def read_feeds(path: str) -> Feeds:
    """Return feeds as :func:`graphopt.feeds.save` writes them, ``name/i`` of feed i; a single one as ``name``."""
    feeds: dict[int, dict[str, Any]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            name, _, number = key.partition("/")
            feeds.setdefault(int(number or 0), {})[name] = arrays[key]
    return [feeds[i] for i in sorted(feeds)]


class Reader:
    """What onnxruntime's and Neural Compressor's tools read calibration data from."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        self.left = iter(self.feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


def _reader(base: type, feeds: Feeds) -> Any:
    return type("Data", (Reader, base), {})(feeds)


# --- onnxruntime ------------------------------------------------------------------------------------------------------


def static(**options: Any) -> Quantize:
    """Return onnxruntime's static quantization after the preparation that its documentation asks for."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    for name in ("activation_type", "weight_type"):
        if name in options:
            options[name] = quantization.QuantType[options[name]]

    def quantize(source: Path, target: Path, feeds: Feeds) -> None:
        prepared = target.with_name("prepared.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared, target, _reader(quantization.CalibrationDataReader, feeds), **options
        )
        prepared.unlink()

    return quantize


def dynamic() -> Quantize:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    def quantize(source: Path, target: Path, feeds: Feeds) -> None:
        prepared = target.with_name("prepared.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_dynamic(prepared, target)
        prepared.unlink()

    return quantize


def four_bits(k_quant: bool = False, **options: Any) -> Quantize:
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as tool

    def quantize(source: Path, target: Path, feeds: Feeds) -> None:
        config = tool.KQuantWeightOnlyQuantConfig() if k_quant else None
        quantizer = tool.MatMulNBitsQuantizer(onnx.load(source), block_size=32, algo_config=config, **options)
        quantizer.process()
        imports = quantizer.model.model.opset_import
        if all(each.domain != "com.microsoft" for each in imports):  # k_quant leaves that out
            imports.append(onnx.helper.make_opsetid("com.microsoft", 1))
        quantizer.model.save_model_to_file(str(target))

    return quantize


# --- others -----------------------------------------------------------------------------------------------------------


def nncf() -> Quantize:
    import nncf
    import onnx

    def quantize(source: Path, target: Path, feeds: Feeds) -> None:
        text = "attention_mask" in feeds[0]
        kind = nncf.ModelType.TRANSFORMER if text else None
        onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(feeds), model_type=kind), target)

    return quantize


def neural_compressor() -> Quantize:
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import config
    from onnx_neural_compressor.quantization import quantize as run

    def quantize(source: Path, target: Path, feeds: Feeds) -> None:
        reader = _reader(data_reader.CalibrationDataReader, feeds)
        run(str(source), str(target), config.StaticQuantConfig(calibration_data_reader=reader))

    return quantize


def graphopt(pipeline: str, calibrated: bool = True) -> Quantize:
    import graphopt

    def quantize(source: Path, target: Path, feeds: Feeds) -> None:
        given = feeds if calibrated else None
        result = graphopt.optimize(source, pipeline, calibration=given, verify=False, strict=True)
        result.save(target)
        notes = [note for entry in result.report.passes for note in entry.notes if "times as long" in note]
        figures["remarks"] = [*result.report.remarks, *notes]

    return quantize


figures: dict[str, Any] = {}
WEIGHTS = "speed,quantize-weights{bits=4,block_size=32}"
Maker = Callable[[], Quantize]
TOOLS: dict[str, tuple[str, str | None, Maker]] = {
    "onnxruntime static": ("onnxruntime", "quantize-onnxruntime", static),
    "onnxruntime static, uint8×int8 per channel": (
        "onnxruntime",
        "quantize-onnxruntime",
        lambda: static(activation_type="QUInt8", weight_type="QInt8", per_channel=True),
    ),
    "onnxruntime dynamic": ("onnxruntime", "quantize-onnxruntime", dynamic),
    "NNCF": ("nncf", "nncf", nncf),
    "Neural Compressor": ("onnx-neural-compressor", "onnx-neural-compressor", neural_compressor),
    "graphopt static": ("graphopt", None, lambda: graphopt("speed,quantize-static")),
    "graphopt": ("graphopt", None, lambda: graphopt("quantize")),
}
"""Package, environment and function by tool, for activations and weights."""
WEIGHT_TOOLS: dict[str, tuple[str, str | None, Maker]] = {
    "onnxruntime": ("onnxruntime", "quantize-onnxruntime", four_bits),
    "onnxruntime, symmetric": (
        "onnxruntime",
        "quantize-onnxruntime",
        lambda: four_bits(is_symmetric=True),
    ),
    "onnxruntime, k_quant": ("onnxruntime", "quantize-onnxruntime", lambda: four_bits(k_quant=True)),
    "graphopt without data": ("graphopt", None, lambda: graphopt(WEIGHTS, calibrated=False)),
    "graphopt with data": ("graphopt", None, lambda: graphopt(WEIGHTS)),
}
"""The same for weights alone, at 4 bits and blocks of 32."""


def main(tool: str, source: Path, folder: Path, calibration: str) -> None:
    """Run ``tool`` on ``source``, and write the result and the figures into ``folder``."""
    package, _, make = (TOOLS | WEIGHT_TOOLS)[tool]
    feeds = read_feeds(calibration)
    quantize = make()
    start, busy = time.perf_counter(), time.process_time()
    quantize(source, folder / "model.onnx", feeds)
    figures.update(
        package=package,
        version=importlib.metadata.version(package),
        seconds=time.perf_counter() - start,
        cpu=time.process_time() - busy,
        peak=peak_bytes(),
    )
    (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
