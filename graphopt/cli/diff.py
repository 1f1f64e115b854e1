"""``graphopt diff``: how the structure of two models differs, by origin."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import JsonFile, write_json
from .progress import progress


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=".onnx, .pt2 or package.module:callable")],
    b: Annotated[str, typer.Argument(metavar="B", help="What A became.")],
    values: Annotated[
        bool, typer.Option("--values", help="Compare weights of more than 1,024 elements by value too.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Say how the graphs of two models differ.

    What went, came and changed is listed by module scope; the exit code is 1 where they differ.
    """
    from .. import frontends, structure

    with progress() as show:
        show("reading", 0, 0)
        found = structure.diff(frontends.read(a), frontends.read(b), values=values)
    if not write_json(found.to_json(), json_file):
        print(found.text(), end="")
    if not found.same:
        raise typer.Exit(1)
