"""``graphopt explain``: where a pass applies and what stopped it, or what of a model the target runs on integers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import JsonFile, table, write_json
from .progress import progress

if TYPE_CHECKING:
    from ..lowering import Lowering
    from ..report import PassEntry


def explain(
    source: Annotated[str, typer.Argument(metavar="MODEL", help=".onnx, .pt2 or package.module:callable")],
    step: Annotated[
        str | None, typer.Argument(metavar="PASS", help="A pass with its options, or a pipeline.")
    ] = None,
    after: Annotated[str | None, typer.Option(metavar="PIPELINE", help="Run these passes first.")] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Inputs to run on; else drawn.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FILE.npz|DIR|module:function", help="Inputs that lossy passes may look at."),
    ] = None,
    target: Annotated[str, typer.Option(metavar="NAME", help="See `graphopt backends`.")] = "onnxruntime:cpu",
    json_file: JsonFile = None,
) -> None:
    """Say where a pass applies, or what runs on integers.

    Each place where PASS applies or nearly applied is named, and the condition that stopped it. Without PASS, the
    graph that the target made of MODEL is read back: how many nodes run on integers and on floats, why each
    conversion between them is left, and the time in each.
    """
    from .. import lowering, optimizer, samples

    feeds = samples.load(inputs) if inputs is not None else None
    given: dict[str, Any] = {
        "calibration": samples.calibration(calibration) if calibration is not None else None,
        "target": target,
        "verify": False,
    }
    with progress() as show:
        model: object = source
        if after is not None:
            model = optimizer.optimize(source, after, inputs=feeds, progress=show, **given).model
        if step is None:
            found = lowering.explain_integers(model, target, feeds, progress=show)
        else:
            report = optimizer.optimize(model, step, inputs=feeds, progress=show, **given).report
    if step is None:
        if not write_json(found.to_json(), json_file):
            _show_lowering(found)
    elif not write_json([_plain(entry) for entry in report.passes], json_file):
        for entry in report.passes:
            _show_pass(entry)


def _plain(entry: PassEntry) -> dict[str, Any]:
    return {
        "pass": entry.text,
        "applies": [dataclasses.asdict(a) for a in entry.applied],
        "declines": [dataclasses.asdict(d) for d in entry.declined],
        "notes": entry.notes,
        "rolled_back": entry.rolled_back,
    }


def _show_pass(entry: PassEntry) -> None:
    applied, declined = len(entry.applied), len(entry.declined)
    print(
        f"{entry.text}: applies at {applied} place{'s' * (applied != 1)}, "
        f"stopped at {declined} place{'s' * (declined != 1)}"
    )
    for note in [*([f"rolled back: {entry.rolled_back}"] if entry.rolled_back else []), *entry.notes]:
        print(f"  {note}")
    if entry.applied:
        table(
            None,
            ["number", "applies at", ""],
            [(a.number, a.where, a.detail) for a in entry.applied],
            right=(0,),
        )
    if entry.declined:
        rows = [(d.op_type, d.where, d.reason) for d in entry.declined]
        table(None, ["operator", "nearly at", "stopped because"], rows)


def _show_lowering(found: Lowering) -> None:
    done, products = found.products
    print(f"{found.target}: {done} of {products} products run on integers")
    rows = [
        (kind, op_type, count, f"{milliseconds:.3f}")
        for kind, op_type, count, milliseconds in found.operators()
    ]
    table(None, ["computes in", "operator", "nodes", "ms"], rows, right=(2, 3))
    left = sorted(found.of("conversion"), key=lambda kernel: not kernel.stranded)
    if left:
        print()
        reasons = [
            (k.op_type, k.name, f"{k.milliseconds:.3f}", f"{'STRANDED: ' * k.stranded}{k.reason}")
            for k in left
        ]
        table(None, ["left", "node", "ms", "because"], reasons, right=(2,))
