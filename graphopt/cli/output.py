"""What commands share of their output: tables, and the ``--json`` file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for standard output.")
]


def write_json(data: Any, path: Path | None) -> bool:
    """Write ``data`` where ``--json`` asked for it; return whether standard output is taken by it.

    Raises:
        UsageError: the file cannot be written.
    """
    if path is None:
        return False
    text = json.dumps(data, indent=2, default=str) + "\n"
    if str(path) == "-":
        print(text, end="")
        return True
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}; choose another file") from error
    return False


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> None:
    """Print a table; the columns whose numbers are in ``right`` are aligned right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    Console(soft_wrap=False).print(made)
