"""What `speed` does to real models: nodes, bytes, pass time, worst error, latency side by side.

python benchmarks/presets.py [--models resnet50 minilm …] [--seconds 10] [--output benchmarks/results/presets.md]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import graphopt
from graphopt.optimizer import versions

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "models"))
import zoo  # noqa: E402  (it lies with the tests)

MODELS = "efficientnet-lite0 minilm ppocr-rec ppocr-cls resnet50 mobilenet-v3 vit-b16 bert-base gpt2 swin-t"
COLUMNS = ("model", "nodes", "MB", "pass ms", "largest error", "ms before", "ms after", "ratio", "95 %", "")


def row(name: str, seconds: float) -> tuple[str, ...]:
    """Optimize one model, verify it, and time it against what came in."""
    feeds = zoo.samples(name)
    result = graphopt.optimize(zoo.onnx_path(name), "speed", inputs=feeds[:2], strict=True)
    race = graphopt.measure([result.original, result.model], feeds[0], seconds=seconds)
    before, after = result.report.before, result.report.after
    error = result.report.checks[-1].largest_error
    t = race[1]
    return (
        name,
        f"{before.nodes} → {after.nodes}",
        f"{before.weights_bytes / 1e6:.1f} → {after.weights_bytes / 1e6:.1f}",
        f"{result.report.pass_milliseconds:.0f}",
        f"{error:.1e}" if error else "0",
        f"{race[0].median_ms:.2f}",
        f"{t.median_ms:.2f}",
        f"{t.ratio:.3f}",
        f"{t.low:.3f} … {t.high:.3f}",
        t.verdict,
    )


def machine() -> Iterator[str]:
    """Yield what the figures depend on."""
    yield f"Measured {date.today()} on {os.cpu_count()} cores of {cpu()}, Python {platform.python_version()};"
    yield ", ".join(f"{package} {version}" for package, version in versions().items()) + "."


def cpu() -> str:
    """Return the processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS.split(), choices=zoo.ZOO)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "presets.md")
    given = parser.parse_args()
    lines = [
        "# The preset `speed` on real models",
        "",
        *machine(),
        "",
        " | ".join(COLUMNS),
        "|".join(["---"] * 10),
    ]
    for name in given.models:
        lines.append(" | ".join(row(name, given.seconds)))
        print(lines[-1], flush=True)
    lines += [
        "",
        "Nodes, megabytes of weights; the largest error of an output relative to its largest element, on two",
    ]
    lines += [
        "sample inputs; median latency and the ratio after ÷ before with its interval (`graphopt bench`), both"
    ]
    lines += ["under onnxruntime's default settings. Models with random weights have non-trivial statistics."]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
