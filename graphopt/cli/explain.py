"""``graphopt explain``: where a pass applies, where it nearly did, and what stopped it."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from .output import JsonFile, table, write_json
from .progress import progress


def explain(
    source: Annotated[str, typer.Argument(metavar="MODEL", help=".onnx, .pt2 or package.module:callable")],
    step: Annotated[str, typer.Argument(metavar="PASS", help="A pass with its options, or a pipeline.")],
    after: Annotated[str | None, typer.Option(metavar="PIPELINE", help="Run these passes first.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Say where a pass applies, and what stopped it.

    Each place where PASS applies or nearly applied is named, and the condition that stopped it.
    """
    from .. import optimizer

    with progress() as show:
        model: object = source
        if after is not None:
            model = optimizer.optimize(source, after, verify=False, progress=show).model
        report = optimizer.optimize(model, step, verify=False, progress=show).report
    found = [
        {
            "pass": entry.text,
            "applies": [dataclasses.asdict(a) for a in entry.applied],
            "declines": [dataclasses.asdict(d) for d in entry.declined],
            "notes": entry.notes,
            "rolled_back": entry.rolled_back,
        }
        for entry in report.passes
    ]
    if write_json(found, json_file):
        return
    for entry in report.passes:
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
