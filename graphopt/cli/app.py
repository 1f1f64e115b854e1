"""Put the commands together, and turn errors into one block and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ..errors import GraphoptError

app = typer.Typer(
    name="graphopt",
    help="Optimize neural-network graphs: every rewrite proved, every speed-up measured, every refusal explained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Optimize neural-network graphs: every rewrite proved, every speed-up measured, every refusal explained."""
    context.obj = {"debug": debug}


def main() -> None:
    """Run the command line; exit 0 done, 1 a check failed, 2 wrong usage or input, 3 something is not available."""
    debug = "--debug" in sys.argv[1:]
    try:
        app()
    except GraphoptError as error:
        if debug:
            raise
        fail(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def fail(error: BaseException) -> None:
    """Print ``error`` and its notes as one block on standard error."""
    print(f"graphopt: {error}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr)
