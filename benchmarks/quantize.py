"""Quantizers side by side: graphopt's defaults and its peers on the same models and data, in one run.

python benchmarks/quantize.py [--models minilm …] [--weights gpt2 …] [--seconds 60] [--limit 1200]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import presets  # beside this file
from quantizers import PACKAGES, TOOLS, WEIGHT_TOOLS
from sidebyside import HERE, Outcome, attempt, bold, figures, install, python

import graphopt
from graphopt import feeds as files
from graphopt.errors import GraphoptError
from graphopt.interfaces import Executable
from graphopt.plugins import get_backend
from graphopt.racing import judge, race

zoo = presets.zoo
import data  # noqa: E402  (it lies with the tests)

MODELS = ("efficientnet-lite0", "minilm", "resnet50", "mobilenet-v2", "ppocr-rec")
WEIGHT_MODELS = ("minilm", "gpt2")
BFLOAT16 = "OpenVINO bfloat16"
USABLE_DB = 10.0
"""A peer's time, memory and file count as better only where the result is worth something."""
Array = np.ndarray[Any, Any]


@dataclass
class Row(Outcome):
    """What one tool did to one model."""

    share: float = math.nan
    """Of the float bytes of the matrices that have few bits now."""
    sqnr: float = math.nan
    score: float = math.nan

    def cells(self, peers: Sequence[Row], weights: bool) -> Iterator[str]:
        """Yield the row's text; in bold where graphopt is behind."""
        yield self.tool
        if self.failure:
            yield from [""] * (9 if weights else 8)
            yield f"failed: {self.failure}"
            return
        usable = [peer for peer in peers if peer.sqnr >= USABLE_DB]
        for name, text in (
            ("seconds", "{:.1f}"),
            ("cpu", "{:.1f}"),
            ("peak", "{:.0f}"),
            ("megabytes", "{:.1f}"),
            *([("share", "{:.3f}")] if weights else []),
        ):
            value = self.value(name)
            behind = self.ours and any(value > peer.value(name) * 1.001 for peer in usable)
            yield "" if math.isnan(value) else bold(text.format(value), behind)
        slower, worse, wrong = self.behind(peers) if self.ours else (False, False, False)
        t = self.timing
        yield bold(f"{t.ratio:.3f}", slower) if t else ""
        yield f"{t.low:.3f} … {t.high:.3f}" if t else ""
        yield bold(f"{self.sqnr:.1f}", worse)
        yield bold(f"{self.score:.4f}", wrong)
        yield t.verdict if t else ""

    def behind(self, peers: Sequence[Row]) -> tuple[bool, bool, bool]:
        """Return whether a peer is faster and no worse (or float is faster), or more accurate and no slower."""
        t = self.timing
        if t is None:
            return False, False, False
        timed = [(peer, peer.timing) for peer in peers if peer.timing]
        slower = t.low > 1 or any(p.high < t.low and peer.sqnr >= self.sqnr for peer, p in timed)
        rivals = [peer for peer, p in timed if p.low <= t.high]
        worse = any(peer.sqnr > self.sqnr + 0.05 for peer in rivals)
        return slower, worse, any(peer.score > self.score + 5e-5 for peer in rivals)


# --- running ----------------------------------------------------------------------------------------------------------


class Remote(Executable):
    """OpenVINO in its own environment, one line there and back a run."""

    def __init__(self, model: Path, scratch: Path) -> None:
        self.scratch = scratch
        command = [python("openvino"), HERE / "openvino_server.py", model, str(os.cpu_count())]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        first = self._line()
        self.facts: dict[str, Any] = json.loads(first) if first else {"failure": "it ended at once"}

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def _ask(self, *words: str | Path) -> None:
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)
        if not self._line():
            raise graphopt.GraphoptError(f"OpenVINO's process ended with code {self.process.wait()}")

    def _saved(self, inputs: Mapping[str, Array]) -> Path:
        path = self.scratch / "openvino-in.npz"
        np.savez(path, allow_pickle=False, **inputs)
        return path

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        output = self.scratch / "openvino-out.npz"
        self._ask("run", self._saved(inputs), output)
        return dict(np.load(output))

    def bind(self, inputs: Mapping[str, Array]) -> None:
        self._ask("bind", self._saved(inputs))

    def step(self) -> None:
        self._ask("step")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def run(tool: str, source: Path, scratch: Path, calibration: Path, limit: float) -> Row:
    """Run one tool in a process of its own; a failure is a row too."""
    folder = scratch / tool.replace(" ", "-")
    folder.mkdir()
    _, environment, _ = (TOOLS | WEIGHT_TOOLS)[tool]
    arguments = [tool, source, folder, calibration]
    if failure := attempt(environment, "quantizers.py", arguments, limit, scratch):
        return Row(tool, failure)
    found, size = figures(folder)
    return Row(tool, figures=found, path=folder / "model.onnx", megabytes=size)


def outputs(name: str, executable: Executable, tests: int | None) -> list[Array]:
    """Return the first output for the first ``tests`` test inputs, or all."""
    return [next(iter(executable.run(feeds).values())) for feeds in data.test(name)[:tests]]


def sqnr(reference: Sequence[Array], found: Sequence[Array]) -> float:
    """Return the ratio of signal to error over all test inputs, in decibels."""
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a in reference)
    noise = sum(
        float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(reference, found, strict=True)
    )
    return 10 * math.log10(signal / noise) if noise else math.inf


def share(path: Path) -> float:
    """Return what the matrices with few bits take of their float bytes, their scales and zero points counted."""
    stored = floats = 0
    for node in graphopt.all_nodes(graphopt.load(path)):
        if node.op_type == "MatMulNBits":
            floats += 4 * node.attributes["K"].as_int() * node.attributes["N"].as_int()
            constants = node.inputs[1:4]
        elif node.op_type == "GatherBlockQuantized":
            packed = node.inputs[0]
            if (
                packed.const_value is None
            ):  # codes that a product holds, in another shape: both read the same ones
                continue
            bits = node.attributes["bits"].as_int() if "bits" in node.attributes else 4
            floats += 4 * packed.const_value.nbytes * 8 // bits
            constants = [packed, *node.inputs[2:4]]
        else:
            continue
        stored += sum(v.const_value.nbytes for v in constants if v is not None)
    return stored / floats if floats else math.nan


# --- one model --------------------------------------------------------------------------------------------------------


class Contest:
    """One model: the float one, and what became of it."""

    def __init__(self, name: str, seconds: float, tests: int | None, scratch: Path, weights: bool) -> None:
        self.name, self.seconds, self.tests = name, seconds, tests
        self.scratch, self.weights = scratch, weights
        self.source = scratch / "float.onnx"
        graphopt.optimize(zoo.onnx_path(name), "simplify", verify=False).save(self.source)
        self.backend = get_backend("onnxruntime:cpu")

    def rows(self, limit: float) -> list[Row]:
        """Let every tool make a model, judge each, and race all in turns."""
        calibration = self.scratch / "calibration.npz"
        files.save(calibration, data.calibration(self.name))
        tools = WEIGHT_TOOLS if self.weights else TOOLS
        rows = [run(tool, self.source, self.scratch, calibration, limit) for tool in tools]
        if not self.weights:
            rows.insert(-1, Row(BFLOAT16))
        with ExitStack() as stack:
            original = stack.enter_context(self.backend.compile(graphopt.load(self.source)))
            reference = outputs(self.name, original, self.tests)
            score = data.score(self.name, reference, reference)
            size = self.source.stat().st_size / 1e6
            rows.insert(0, Row("float", sqnr=math.inf, score=score, megabytes=size))
            runners = {"float": original}
            for row in rows[1:]:
                if not row.failure and (runner := self.judged(row, reference, stack)):
                    runners[row.tool] = runner
            self.race([row for row in rows if row.tool in runners], list(runners.values()))
        return rows

    def judged(self, row: Row, reference: Sequence[Array], stack: ExitStack) -> Executable | None:
        """Compare a result with the float model on the test inputs; return it ready to run, if it runs."""
        try:
            runner = self.compiled(row, stack)
            if runner is None:
                return None
            found = outputs(self.name, runner, self.tests)
        except GraphoptError as error:
            row.failure = f"the result does not run: {' '.join(str(error).split())[:200]}"
            return None
        row.score = data.score(self.name, found, reference)
        row.sqnr = sqnr(data.relevant(self.name, reference), data.relevant(self.name, found))
        return runner

    def compiled(self, row: Row, stack: ExitStack) -> Executable | None:
        if row.tool == BFLOAT16:
            remote = stack.enter_context(Remote(self.source, self.scratch))
            row.failure = remote.facts.pop("failure", "")
            row.figures = remote.facts
            return None if row.failure else remote
        assert row.path is not None
        if self.weights:
            row.share = share(row.path)
        return stack.enter_context(self.backend.compile(graphopt.load(row.path)))

    def race(self, rows: Sequence[Row], runners: Sequence[Executable]) -> None:
        """Time all in turns, as :func:`graphopt.measure` does, which knows nothing of other processes."""
        feeds = data.timing(self.name)
        for runner in runners:
            runner.bind(feeds)
        times = race(runners, seconds=self.seconds)
        for row, timing in zip(rows, judge([row.tool for row in rows], times), strict=True):
            row.timing = timing


def table(name: str, rows: Sequence[Row], weights: bool) -> list[str]:
    """Return the part of the report that tells of one model."""
    columns = ["tool", "time s", "CPU s", "peak MB", "file MB", "latency ratio", "95 %", "SQNR dB"]
    if weights:
        columns.insert(5, "share")
    columns += [data.measure_of(name), ""]
    original, *others = rows
    peers = [row for row in others if not row.ours and not row.failure]
    timing = original.timing
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    blank = [""] * (1 if weights else 0)
    first = ["float", "", "", "", f"{original.megabytes:.1f}", *blank, "1", "", "", f"{original.score:.4f}"]
    lines.append(f"| {' | '.join(first)} | {timing.median_ms:.2f} ms |" if timing else "")
    lines += [f"| {' | '.join(row.cells(peers, weights))} |" for row in others]
    remarks = [f"{row.tool}: {remark}" for row in others for remark in row.figures.get("remarks", ())]
    shape = ", ".join(f"{key} {list(array.shape)}" for key, array in data.timing(name).items())
    title = f"## {name}{', weights alone: 4 bits, blocks of 32' if weights else ''}"
    return [title, "", f"Timed with {shape}.", "", *lines, "", *(f"- {text}" for text in remarks), ""]


# --- the report -------------------------------------------------------------------------------------------------------


def head(versions: Mapping[str, str], seconds: float, tests: int | None) -> list[str]:
    """Return what stands above the tables."""
    return [
        "# Quantizers side by side",
        "",
        *presets.machine(),
        f"Peers: {', '.join(f'{tool} {version}' for tool, version in sorted(versions.items()))}.",
        *([f"A quick run, on the first {tests} test inputs of each model."] if tests else []),
        "",
        "Each tool runs in a process of its own on the same file (what `graphopt simplify` makes of torch's export, "
        "which several tools refuse as it is) and the same calibration data, with its defaults "
        "unless its name says otherwise: *onnxruntime* after `quant_pre_process`, NNCF with its model type for "
        "transformers where the input is text, *graphopt* as the preset `quantize`, *graphopt static* as "
        "`speed,quantize-static` (weights alone: `speed,quantize-weights{bits=4,block_size=32}`, with and without "
        "calibration data). *time*: from file to file, calibration included (OpenVINO: compiling); *CPU*: the same as "
        "processor time; *peak*: resident memory "
        "of the whole process; *latency ratio*: to the float model, all of them in one interleaved race of "
        f"{seconds:.0f} s under onnxruntime's default settings (OpenVINO in its own process, with bfloat16 in place of "
        "float32: it is not quantized); *SQNR*: of the first output over all test inputs, padding left out. "
        f"Pictures: {data.TEST_CROPS} crops of photographs, calibrated on {data.CALIBRATION_CROPS} of others; MiniLM: "
        f"{data.TEST_SENTENCES} and {data.CALIBRATION_SENTENCES} sentences of the standard library's docstrings, "
        f"{data.SENTENCES_A_FEED} at a time; PP-OCR: {data.TEST_LINES} and {data.CALIBRATION_LINES} rendered lines. "
        "MiniLM, EfficientNet-Lite0 and PP-OCR have trained weights, the others random ones. *share*: of the float "
        "bytes of the matrices that have few bits, scales counted. **Bold**: graphopt is behind: slower than float or "
        "than a peer with no lower SQNR; less accurate than a peer that is not slower; or more time, memory or file "
        f"than a peer whose result has at least {USABLE_DB:.0f} dB.",
        "",
    ]


def main() -> None:
    """Run the benchmark; the report is written anew after each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS, metavar="MODEL")
    parser.add_argument("--weights", nargs="*", default=WEIGHT_MODELS, choices=data.TASKS, metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=60.0, help="of racing, a model")
    parser.add_argument(
        "--limit", type=float, default=1200.0, help="seconds that one tool may take for one model"
    )
    parser.add_argument("--tests", type=int, help="use the first so many test inputs, for a quick run")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "quantize.md")
    given = parser.parse_args()
    install(PACKAGES)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    versions: dict[str, str] = {}
    body: list[str] = []
    for name, weights in [
        *((name, False) for name in given.models),
        *((name, True) for name in given.weights),
    ]:
        if missing := zoo.ZOO[name].missing:
            body += [f"## {name}", "", f"Not run: it needs the package {missing}.", ""]
            continue
        with tempfile.TemporaryDirectory(prefix="quantize-") as scratch:
            rows = Contest(name, given.seconds, given.tests, Path(scratch), weights).rows(given.limit)
        for row in rows:
            if "version" in row.figures and not row.ours:
                versions[row.figures["package"]] = row.figures["version"]
        lines = table(name, rows, weights)
        body += lines
        print("\n".join(lines), flush=True)
        report = "\n".join([*head(versions, given.seconds, given.tests), *body])
        given.output.write_text(report.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
