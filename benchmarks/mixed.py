"""What quantize-mixed reaches for wanted accuracies, beside leaving products out in the order of noise alone.

python benchmarks/mixed.py [--models minilm …] [--sqnr 25 30 35]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import presets  # beside this file
from sidebyside import HERE

import graphopt

zoo = presets.zoo
import data  # noqa: E402  (it lies with the tests)

MODELS = ("efficientnet-lite0", "minilm")


def rows(name: str, wanted: list[float]) -> list[str]:
    """Return a line of the table for each accuracy."""
    model = graphopt.optimize(
        zoo.onnx_path(name), "speed,smooth-activations", calibration=data.calibration(name)
    ).model
    lines = []
    for sqnr in wanted:
        result = graphopt.optimize(
            model,
            f"quantize-mixed{{sqnr={sqnr:g}}}",
            calibration=data.calibration(name),
            inputs=data.timing(name),
        )
        note = next(entry.notes[0] for entry in result.report.passes if entry.notes)
        lines.append(f"| {name} | {sqnr:g} dB | {note} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS, metavar="MODEL")
    parser.add_argument("--sqnr", nargs="*", type=float, default=[25.0, 30.0, 35.0], help="in dB")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "mixed.md")
    given = parser.parse_args()
    head = [
        "# Wanted accuracies",
        "",
        *presets.machine(),
        "",
        "What `quantize-mixed{sqnr=…}` found behind `speed,smooth-activations`, as its report says: latencies in one "
        "interleaved race with the float model and with products left in floats in the order of noise alone; SQNR of "
        "the worst output on calibration samples.",
        "",
        "| model | wanted | found |",
        "|---|---|---|",
    ]
    body: list[str] = []
    for name in given.models:
        body += rows(name, given.sqnr)
        given.output.write_text("\n".join([*head, *body]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
