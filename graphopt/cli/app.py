"""Put the commands together, and turn errors into one block and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import GraphoptError
from .bench import bench
from .check import check
from .demo import demo
from .diff import diff
from .explain import explain
from .listing import backends, passes, plugins
from .optimize import optimize
from .show import show

HELP = "Optimize neural-network graphs: rewrites are proved, speed is measured, refusals are explained."


class Commands(TyperGroup):
    """The commands; a reader that has seen enough of their output, as ``head``, is no error."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and flush here: at the interpreter's exit a closed pipe would be noise."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from None
        return result


app = typer.Typer(
    name="graphopt",
    cls=Commands,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(optimize)
app.command()(diff)
app.command()(show)
app.command()(check)
app.command()(bench)
app.command()(explain)
app.command()(passes)
app.command()(backends)
app.command()(plugins)
app.command()(demo)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"graphopt {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command; ``main`` has read ``--debug`` by then."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 wrong usage or input, 3 not available."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, prog_name="graphopt")
    except Exception as error:  # the command line's edge
        if len(arguments) < len(sys.argv) - 1:
            raise
        text, code = explained(error)
        print("\n  ".join([f"graphopt: {text}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        sys.exit(code)


def explained(error: Exception) -> tuple[str, int]:
    """Return what the user is told of ``error``, and the exit code."""
    if isinstance(error, GraphoptError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {(error.strerror or type(error).__name__).lower()}", 2
    return f"{type(error).__name__}: {error}; this is a fault in the code, and --debug shows where", 1
