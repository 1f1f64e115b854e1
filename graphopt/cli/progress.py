"""A progress bar on standard error, for work that takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from ..context import Progress

PATIENCE_SECONDS = 1.0


class _Display:
    """Shows nothing for a second, then a bar; nothing at all where standard error is no terminal."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.bar: Bar | None = None
        self.task = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        if not sys.stderr.isatty() or time.monotonic() - self.start < PATIENCE_SECONDS:
            return
        if self.bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task(what, total=None)
        self.bar.update(self.bar.task_ids[0], description=what, completed=done, total=total or None)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


@contextmanager
def progress() -> Iterator[Progress]:
    """Yield a function (what, done, total) that shows how far the work is."""
    display = _Display()
    try:
        yield display
    finally:
        display.close()
