"""What commands share of their output: tables, and the ``--json`` file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError

WIDE = 10_000
"""Columns of a table that goes to a file or a pipe, where a cut name could not be searched for."""


def writable(path: Path | None) -> Path | None:
    """Return ``path``, an option's file, if it looks as if it could be written: said before the work, not after it.

    Raises:
        UsageError: it is a folder, or its folder is none or cannot be written to.
    """
    if path is None or str(path) == "-":
        return path
    if path.is_dir():
        raise UsageError(f"{path}: it is a folder; name a file")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {str(path.parent)!r}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: you may not write to the folder {str(path.parent)!r}; choose another")
    return path


def folder(path: Path | None) -> Path | None:
    """Return ``path``, an option's folder, if it is one or could be made.

    Raises:
        UsageError: it is a file or lies below one.
    """
    if path is None:
        return path
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"{path}: {'it' if there == path else there} is no folder; name another")
    return path


JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", callback=writable, help="Write the result as JSON; - for standard output."
    ),
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
        reason = str(error.strerror).lower()
        raise UsageError(f"{path}: it cannot be written: {reason}; choose another file") from error
    return False


def table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()
) -> None:
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
    given = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(soft_wrap=False, width=None if given else WIDE)
    with console.capture() as captured:
        console.print(made)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
