"""One simplifier on one model, in a process of its own: ``python peers.py TOOL MODEL FOLDER INPUTS``.

Writes ``FOLDER/model.onnx``, and ``FOLDER/figures.json`` with the seconds that importing, reading and simplifying took
and the peak of resident memory. Runs in the environment of the tool, so nothing but the tool is imported here.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory import peak_bytes  # beside this file

PACKAGES = {
    "onnxsim": ["onnxsim==0.8.1", "onnx", "onnxruntime"],
    "onnxslim": ["onnxslim==0.1.98", "onnx", "onnxruntime"],
    "onnxoptimizer": ["onnxoptimizer==0.4.2", "onnx"],
    "onnxscript": ["onnxscript==0.7.2", "onnx"],
    "onnxruntime": ["onnxruntime", "onnx"],
}
"""What to install for each peer, in an environment of its own; the first is the peer."""

TINY = """<ir_version: 9, opset_import: ["" : 18]> tiny (float[N,4] x) => (float[M,4] y)
{ c = Concat<axis = 0>(x, x)  s = Shape(c)  r = Reshape(c, s)  y = Relu(r) }"""

MEASURED = "graphopt measured"
"""The tool that races candidates on the model's inputs, which come as an .npz."""

Read = Callable[[Path], Any]
Simplify = Callable[[Any], Any]
Write = Callable[[Any, Path], object]


def onnxsim() -> tuple[Read, Simplify, Write]:
    import onnx
    import onnxsim

    return onnx.load, lambda model: onnxsim.simplify(model)[0], onnx.save


def onnxslim() -> tuple[Read, Simplify, Write]:
    import onnx
    import onnxslim

    return onnx.load, onnxslim.slim, onnx.save


def onnxoptimizer() -> tuple[Read, Simplify, Write]:
    import onnx
    import onnxoptimizer

    return onnx.load, onnxoptimizer.optimize, onnx.save


def onnxscript() -> tuple[Read, Simplify, Write]:
    import onnx_ir
    from onnxscript import optimizer, rewriter

    def simplify(model: Any) -> Any:
        optimizer.optimize(model)
        return rewriter.rewrite(model)

    return onnx_ir.load, simplify, onnx_ir.save


def onnxruntime() -> tuple[Read, Simplify, Write]:
    """Time making a session at level extended, reading included; another one writes the file."""
    import onnxruntime

    def session(path: Path, output: Path | None = None) -> Path:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 3
        if output is not None:
            options.optimized_model_filepath = str(output)
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return path

    return lambda path: path, session, session


def graphopt(preset: str, inputs: Path | None = None) -> tuple[Read, Simplify, Write]:
    import numpy as np

    import graphopt

    feeds = dict(np.load(inputs)) if inputs is not None else None
    return (
        graphopt.load,
        lambda model: graphopt.optimize(model, preset, inputs=feeds, verify=False),
        lambda result, path: result.save(path),
    )


TOOLS: dict[str, Callable[[], tuple[Read, Simplify, Write]]] = {
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxoptimizer": onnxoptimizer,
    "onnxscript": onnxscript,
    "onnxruntime": onnxruntime,
    "graphopt simplify": lambda: graphopt("simplify"),
    "graphopt speed": lambda: graphopt("speed"),
    MEASURED: lambda: graphopt("speed{measured=true}", Path(sys.argv[4])),
}


def warm_up(read: Read, simplify: Simplify, folder: Path) -> None:
    """Simplify four nodes, so that modules which a tool imports when they are first needed are there."""
    import onnx.parser

    path = folder / "tiny.onnx"
    onnx.save(onnx.parser.parse_model(TINY), path)
    simplify(read(path))
    path.unlink()


def main(tool: str, source: Path, folder: Path) -> None:
    """Run ``tool`` on ``source``, and write the result and the figures into ``folder``."""
    marks = [time.perf_counter()]

    def mark() -> None:
        marks.append(time.perf_counter())

    read, simplify, write = TOOLS[tool]()
    warm_up(read, TOOLS["graphopt speed"]()[1] if tool == MEASURED else simplify, folder)
    mark()
    model = read(source)
    mark()
    busy = time.process_time()
    result = simplify(model)
    busy = time.process_time() - busy
    mark()
    write(result, folder / "model.onnx")
    mark()
    imports, reading, seconds, writing = (b - a for a, b in itertools.pairwise(marks))
    package = tool.split()[0]
    figures = {
        "version": importlib.metadata.version(package),
        "import": imports,
        "read": reading,
        "seconds": seconds,
        "cpu": busy,
        "write": writing,
        "peak": peak_bytes(),
    }
    (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
