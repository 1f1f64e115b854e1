"""``graphopt check``: whether two models compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import JsonFile, table, write_json
from .progress import progress

if TYPE_CHECKING:
    from ..verify import Comparison

YES = {True: "yes", False: "NO"}
SOURCE = ".onnx, .pt2 or package.module:callable"


def check(
    a: Annotated[str, typer.Argument(metavar="A", help=f"The model that is right: {SOURCE}")],
    b: Annotated[str, typer.Argument(metavar="B", help="The model to compare with it.")],
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Arrays by input name, or as name/0, name/1, …; else drawn."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the inputs that are drawn.")] = 0,
    rtol: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Largest error allowed, relative to an output's largest element; else by type."
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Say whether two models compute the same.

    Both run on the same inputs; the exit code is 1 where they differ by more than rounding.
    """
    from .. import samples, verify

    with progress() as show:
        show("running both models", 0, 0)
        feeds = samples.load(inputs) if inputs is not None else None
        found = verify.compare(a, b, feeds, seed=seed, rtol=rtol)
    if not write_json(found.to_json(), json_file):
        show_comparison(found)
    if not found.ok:
        raise typer.Exit(1)


def show_comparison(found: Comparison) -> None:
    """Print the figures of each output and the verdict."""
    if found.problem is None:
        rows = [
            (o.name, f"{o.max_abs:.3g}", f"{o.max_rel:.3g}", f"{o.sqnr_db:.1f}", f"{o.cosine:.9f}", YES[o.ok])
            for o in found.outputs
        ]
        table(
            None,
            ["output", "largest error", "relative", "SQNR dB", "cosine", "equal"],
            rows,
            right=(1, 2, 3, 4),
        )
        print()
    print(found.text())
    for remark in found.remarks:
        print(f"remark: {remark}")
