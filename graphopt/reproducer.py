"""Save what it takes to see a wrong rewrite again: the model before and after it, the inputs, the commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import samples
from .context import Feeds
from .model import save
from .report import PassEntry

if TYPE_CHECKING:
    import onnx_ir as ir


def write(
    folder: Path,
    before: ir.Model,
    after: ir.Model,
    feeds: Sequence[Feeds],
    entry: PassEntry,
    number: int,
    reason: str,
) -> Path:
    """Write a reproducer into ``folder``, which is made, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save(before, folder / "before.onnx")
    save(after, folder / "after.onnx")
    samples.save(folder / "inputs.npz", feeds)
    check = "graphopt check before.onnx after.onnx --inputs inputs.npz"
    (folder / "README.md").write_text(
        f"# Rewrite {number}, {entry.name}\n\n"
        f"`{entry.text}` turned `before.onnx` into `after.onnx`, which computes something else:\n{reason}\n\n"
        f"See the difference with `sh check.sh`, or in this folder (exit code 1 while it is there):\n\n"
        f"    {check}\n\nRun the pass again:\n\n"
        f"    graphopt optimize before.onnx -o again.onnx --pipeline '{entry.text}' --inputs inputs.npz\n",
        encoding="utf-8",
    )
    (folder / "check.sh").write_text(f'#!/bin/sh\ncd "$(dirname "$0")" && exec {check}\n', encoding="utf-8")
    return folder
