"""Simplifiers side by side: graphopt's presets and its peers on the same models, in one run.

python benchmarks/simplify.py [--models swin-t …] [--seconds 10] [--limit 300] [--output benchmarks/results/simplify.md]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import presets  # beside this file
from peers import MEASURED, PACKAGES, TOOLS
from sidebyside import HERE, Outcome, attempt, bold, figures, install

import graphopt
from graphopt.errors import GraphoptError
from graphopt.verify import Baseline

zoo = presets.zoo
MODELS = (
    "silero-vad ppocr-rec ppocr-cls mobilenet-v2 mobilenet-v3 efficientnet-b0 efficientnet-lite0 densenet121 resnet50 "
    "minilm swin-t swin-t-optimized vit-b16 vit-b16-optimized gpt2 gpt2-optimized bert-base bert-base-optimized "
    "bert-base-torchscript"
)
HEADER = "| tool | time s | CPU s | peak MB | nodes | file MB | worst error | latency ratio | 95 % | |"
RULE = "|---" * 10 + "|"


@dataclass
class Row(Outcome):
    """What one tool did to one model."""

    nodes: int = 0
    error: float = 0.0
    equal: bool = True
    verdict: str = ""

    @property
    def sound(self) -> bool:
        """Whether there is a result that computes what the original does."""
        return not self.failure and self.equal

    def cells(self, best: dict[str, float]) -> Iterator[str]:
        """Yield the row's text; in bold where the best peer does better."""
        yield self.tool
        if self.failure:
            yield from ("", "", "", "", "", "", "", "", f"failed: {self.failure}")
            return
        for name, text in (
            ("seconds", "{:.3f}"),
            ("cpu", "{:.3f}"),
            ("peak", "{:.0f}"),
            ("nodes", "{:.0f}"),
            ("megabytes", "{:.1f}"),
        ):
            value = self.value(name)
            raced = self.tool == MEASURED and name in ("seconds", "cpu", "peak")
            yield bold(text.format(value), self.ours and not raced and value > best.get(name, value) * 1.001)
        yield bold(f"{self.error:.1e}" if self.error else "0", self.ours and not self.equal)
        t = self.timing
        yield bold(f"{t.ratio:.3f}", self.ours and t.low > best.get("high", t.low)) if t else ""
        yield f"{t.low:.3f} … {t.high:.3f}" if t else ""
        yield self.verdict if not self.equal else t.verdict if t else ""


# --- peers ------------------------------------------------------------------------------------------------------------


def run(tool: str, source: Path, folder: Path, inputs: Path, limit: float) -> Row:
    """Run one tool in a process of its own; a failure is a row too."""
    folder.mkdir()
    arguments = [tool, source, folder, inputs]
    if failure := attempt(tool if tool in PACKAGES else None, "peers.py", arguments, limit):
        return Row(tool, failure)
    found, size = figures(folder)
    return Row(tool, figures=found, path=folder / "model.onnx", megabytes=size)


# --- one model --------------------------------------------------------------------------------------------------------


def judge(row: Row, baseline: Baseline) -> None:
    """Count what ``row``'s result holds, and compare it with the original."""
    assert row.path is not None
    try:
        model = graphopt.load(row.path)
        row.nodes = sum(1 for _ in graphopt.all_nodes(model))
        comparison = baseline.check(model)
    except GraphoptError as error:
        row.failure = f"onnxruntime refuses the result: {' '.join(str(error).split())[:200]}"
        return
    row.error = max((output.max_rel for output in comparison.outputs), default=0.0)
    row.equal = comparison.ok
    row.verdict = "" if comparison.ok else comparison.text()


def race(name: str, rows: Sequence[Row], seconds: float) -> list[str]:
    """Time the original and every result in turns; return what went wrong."""
    field = [row for row in rows if not row.failure]
    try:
        timings = graphopt.measure(
            [zoo.onnx_path(name), *(row.path for row in field)],
            zoo.samples(name)[0],
            names=["original", *(row.tool for row in field)],
            seconds=seconds,
        )
    except GraphoptError as error:
        return [f"Latency was not measured: {error}"]
    for row, timing in zip(field, timings[1:], strict=True):
        row.timing = timing
    return []


def section(name: str, seconds: float, limit: float) -> tuple[list[str], list[Row]]:
    """Run everything on one model; return its part of the report, and the rows."""
    source = zoo.onnx_path(name)
    with tempfile.TemporaryDirectory(prefix="simplify-") as scratch:
        inputs = Path(scratch) / "inputs.npz"
        np.savez(inputs, allow_pickle=False, **zoo.samples(name)[0])
        rows = [run(tool, source, Path(scratch) / tool.replace(" ", "-"), inputs, limit) for tool in TOOLS]
        original = graphopt.load(source)
        nodes = sum(1 for _ in graphopt.all_nodes(original))
        baseline = Baseline(original, zoo.samples(name)[:2])
        for row in rows:
            if not row.failure:
                judge(row, baseline)
        remarks = race(name, rows, seconds)
    best = best_peer(rows)
    lines = [f"## {name}: {nodes} nodes, {source.stat().st_size / 1e6:.1f} MB", "", HEADER, RULE]
    lines += [f"| {' | '.join(row.cells(best))} |" for row in rows]
    return [*lines, "", *remarks], rows


def best_peer(rows: Sequence[Row]) -> dict[str, float]:
    """Return the best figure of each kind among the peers whose results are equal to the original."""
    peers = [row for row in rows if not row.ours and row.sound]
    if not peers:
        return {}
    best = {
        name: min(row.value(name) for row in peers)
        for name in ("seconds", "cpu", "peak", "nodes", "megabytes")
    }
    raced = [row.timing for row in peers if row.timing]
    if raced:
        best["high"] = min(raced, key=lambda timing: timing.ratio).high
    return best


# --- the report -------------------------------------------------------------------------------------------------------


def head(versions: dict[str, str]) -> list[str]:
    """Return what stands above the tables."""
    return [
        "# Simplifiers side by side",
        "",
        *presets.machine(),
        f"Peers: {', '.join(f'{tool} {version}' for tool, version in versions.items())}.",
        "",
        "Each tool runs in a process of its own, with its defaults: onnxscript is `optimizer.optimize` and the default "
        "rules of `rewriter.rewrite`, onnxruntime a session at level extended (the time includes reading). *time*: the "
        "tool's call on a model that is read already, after a call on a model of four nodes, so that nothing is "
        "imported within it; *CPU*: the same as processor time; *peak*: resident memory of the whole process, from "
        "importing to the written file; *nodes*: those in subgraphs and functions counted; *worst error*: largest "
        "difference of an output relative to its largest element, on the model's sample inputs; *latency ratio*: to "
        "the original, all of them in one interleaved race under onnxruntime's default settings. *graphopt measured* "
        "is `speed{measured=true}`: its time is that of racing candidates on the model's inputs, and its result runs "
        "under the settings that won and stand in its file. **Bold**: behind the best peer whose result is equal "
        "(latency: where the intervals do not meet; error: where it is more than rounding).",
        "",
    ]


def main() -> None:
    """Run the benchmark; the report is written anew after each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS.split(), choices=zoo.ZOO, metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=10.0, help="of racing, a model")
    parser.add_argument(
        "--limit", type=float, default=300.0, help="seconds that one tool may take for one model"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results" / "simplify.md")
    given = parser.parse_args()
    install(PACKAGES)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    versions: dict[str, str] = {}
    body: list[str] = []
    for name in given.models:
        if missing := zoo.ZOO[name].missing:
            body += [f"## {name}", "", f"Not run: it needs the package {missing}.", ""]
            continue
        lines, rows = section(name, given.seconds, given.limit)
        versions |= {row.tool: row.figures["version"] for row in rows if not row.failure and not row.ours}
        body += lines
        print("\n".join(lines), flush=True)
        given.output.write_text("\n".join([*head(versions), *body]).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
