"""Structured pruning side by side: MACs left, seconds, and what the pruned models really take.

python benchmarks/prune.py [--models resnet50 …] [--seconds 10] [--output benchmarks/results/prune.md]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import presets  # beside this file
import pruners
from sidebyside import HERE, PEERS, attempt, bold, figures, install

import graphopt

zoo = presets.zoo
MODELS = (
    "resnet18 resnet50 mobilenet_v2 mobilenet_v3_large efficientnet_b0 densenet121 convnext_tiny vit_b_16 swin_t"
).split()
RACED = "resnet18 resnet50 mobilenet_v2 mobilenet_v3_large efficientnet_b0 densenet121".split()
LIMIT = 200.0
"""Seconds that a tool may take."""
UNSOURCED = ("ppocr-det", "ppocr-rec", "ppocr-cls")
"""Models that come as files alone."""


def sources(model: str, folder: Path) -> dict[str, Path]:
    """Write the model in each form that users have it in."""
    module, (x,), _, _ = zoo.torchvision(model)()
    made = {}
    for form, dynamo in (("dynamo", True), ("torchscript", False)):
        made[form] = folder / f"{form}.onnx"
        try:
            pruners.write(module, x[:1], made[form], dynamo)
        except RuntimeError as error:  # the older exporter does not know all operators
            print(f"{model}: {form} export fails: {error}", file=sys.stderr)
    return made


def run(tool: str, model: str, source: Path, *more: str) -> dict[str, Any]:
    """Let one tool prune, and say what is left: seconds, MACs, the path."""
    if not source.exists():
        return {"failure": "cannot be exported"}
    folder = Path(tempfile.mkdtemp(prefix=f"{tool}-", dir=source.parent))
    environment = tool if tool in pruners.PACKAGES else None
    failure = attempt(environment, "pruners.py", [tool, model, source, folder, *more], LIMIT)
    if failure:
        return {"failure": failure}
    path = folder / "model.onnx"
    return {**figures(folder)[0], "macs": graphopt.cost(graphopt.load(path)).macs, "path": path}


def local(model: str, folder: Path) -> str:
    """Return a line: half of each group's channels go."""
    forms = sources(model, folder)
    whole = graphopt.cost(graphopt.load(forms["dynamo"])).macs
    found = {
        "torch-pruning": run("torch-pruning", model, forms["dynamo"]),
        "onnxsim": run("onnxsim", model, forms["dynamo"]),
        **{form: run("graphopt", model, path) for form, path in forms.items()},
    }
    peer = found["torch-pruning"]
    cells = []
    for tool, outcome in found.items():
        if "failure" in outcome:
            cells += [outcome["failure"], ""]
            continue
        ours = tool in forms
        left, best = outcome["macs"] / whole, peer.get("macs", float("inf")) / whole
        limit = min(1.0, peer["seconds"]) if peer.get("seconds", 0.0) > 0.5 else 1.0
        slow = ours and outcome["seconds"] > limit
        cells += [bold(f"{left:.3f}", ours and left > best + 0.01), bold(f"{outcome['seconds']:.2f}", slow)]
    return f"| {model} | {' | '.join(cells)} |"


def ranked(model: str, folder: Path, seconds: float) -> str:
    """Return a line: channels of all layers compete, and what is left is timed."""
    forms = sources(model, folder)
    whole = graphopt.cost(graphopt.load(forms["dynamo"])).macs
    peer = run("torch-pruning", model, forms["dynamo"], "global")
    if "failure" in peer:
        return f"| {model} | {peer['failure']} |"
    share = peer["macs"] / whole
    ours = run("graphopt", model, forms["dynamo"], "global", f"{share:.4f}")
    race = graphopt.measure([forms["dynamo"], peer["path"], ours["path"]], seconds=seconds)
    cells = [f"{share:.3f}", f"{ours['macs'] / whole:.3f}"]
    cells += [f"{t.ratio:.3f} ({t.low:.3f} … {t.high:.3f})" for t in race.timings[1:]]
    cells[-1] = bold(cells[-1], race.timings[2].ratio > min(0.55, race.timings[1].ratio))
    return f"| {model} | {' | '.join(cells)} |"


def unsourced(name: str) -> str:
    """Return a line: a file that nobody has the source of."""
    given = graphopt.optimize(zoo.onnx_path(name), "simplify", verify=False).model
    result = graphopt.optimize(given, "prune-channels{ratio=0.5}", strict=True)
    macs = graphopt.channel_groups(result.model).macs() / graphopt.channel_groups(given).macs()
    race = graphopt.measure([given, result.model], seconds=5).timings[1]
    seconds = result.report.passes[0].milliseconds / 1e3
    return f"| {name} | {macs:.3f} | {seconds:.2f} | {race.ratio:.3f} ({race.low:.3f} … {race.high:.3f}) |"


def to_latency(model: str, folder: Path) -> list[str]:
    """Return what ``latency=0.5`` noted, and what an independent race says of its result."""
    given = graphopt.optimize(sources(model, folder)["dynamo"], "speed", verify=False).model
    result = graphopt.optimize(given, "prune-channels{latency=0.5}", strict=True)
    race = graphopt.measure([given, result.model], seconds=10).timings[1]
    notes = result.report.passes[0].notes
    return [
        f"- {model}: measured again {race.ratio:.3f} ({race.low:.3f} … {race.high:.3f}); {'; '.join(notes)}"
    ]


def main() -> None:
    """Run the benchmark; the report is written anew after each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS, metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=10.0, help="of racing, a model")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "prune.md")
    given = parser.parse_args()
    install(pruners.PACKAGES)
    target = PEERS / "torch-pruning"
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target]
        subprocess.run([*command, pruners.TORCH_PRUNING], check=True)
    parts: list[list[str]] = [[], [], [], []]
    for model in given.models:
        with tempfile.TemporaryDirectory(prefix="prune-") as scratch:
            parts[0].append(local(model, Path(scratch)))
            if model in RACED:
                parts[1].append(ranked(model, Path(scratch), given.seconds))
            if model in ("resnet50", "mobilenet_v2"):
                parts[3] += to_latency(model, Path(scratch))
        given.output.write_text(report(parts), encoding="utf-8")
    parts[2] = [unsourced(name) for name in UNSOURCED if not zoo.ZOO[name].missing]
    given.output.write_text(report(parts), encoding="utf-8")


def report(parts: list[list[str]]) -> str:
    """Return the report."""
    return "\n".join(
        [
            "# Structured pruning side by side",
            "",
            *presets.machine(),
            "Peers: Torch-Pruning 1.6.1 (on the torch module), onnxsim 0.8.1 (`apply_structured_pruning`).",
            "",
            "## Half of the channels of each group",
            "",
            "torchvision models with random weights, the classifier stays; *MACs*: share that is left, as "
            "`graphopt.cost` counts them in the result; *s*: analysis and surgery, without reading and exporting. "
            "graphopt prunes the `.onnx` file of either exporter, with its default widths (multiples of 8); the model "
            "that the proof compares with is made apart from these seconds. **Bold**: more than 0.01 above "
            "Torch-Pruning; or slower "
            "than it where it takes over 0.5 s, or than 1 s.",
            "",
            "| model | Torch-Pruning MACs | s | onnxsim MACs | s | graphopt (dynamo export) MACs | s "
            "| graphopt (TorchScript export) MACs | s |",
            "|---|---|---|---|---|---|---|---|---|",
            *parts[0],
            "",
            "## Channels of all layers compete",
            "",
            "Torch-Pruning with global ranking at a ratio of 0.5; graphopt `prune-channels{macs=…,scope=global}` at "
            "the same MACs. Latency as a ratio to the model before, all three in one interleaved race, onnxruntime's "
            "default settings. **Bold**: over 0.55, or slower than the peer's.",
            "",
            "| model | Torch-Pruning MACs | graphopt MACs | Torch-Pruning latency | graphopt latency |",
            "|---|---|---|---|---|",
            *parts[1],
            "",
            "## A latency that was asked for",
            "",
            *parts[3],
            "",
            "## Files alone",
            "",
            "`prune-channels{ratio=0.5}` of models that have no source here.",
            "",
            "| model | MACs | s | latency |",
            "|---|---|---|---|",
            *parts[2],
            "",
        ]
    )


if __name__ == "__main__":
    main()
