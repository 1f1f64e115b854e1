"""Readers of models: ONNX files, torch modules, exported programs, and what plugins read."""

from __future__ import annotations

import abc
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir


class Frontend(abc.ABC):
    """A reader of one kind of source; the first line of its docstring is its help."""

    name: str

    @abc.abstractmethod
    def accepts(self, source: object) -> bool:
        """Return whether this frontend reads ``source``; it is asked often, and must be quick."""

    @abc.abstractmethod
    def read(self, source: object) -> ir.Model:
        """Return ``source`` as a model; called where ``accepts`` says yes.

        Raises:
            ModelError: it cannot be read.
        """


def read(source: object) -> ir.Model:
    """Return the model that ``source`` is or names. A plugin is asked before what graphopt reads by itself.

    Raises:
        UsageError: no frontend reads this kind of source.
        ModelError: one does, and the source is missing or malformed.
    """
    from .. import plugins
    from ..model import loading

    frontends = plugins.frontends()
    for frontend in reversed(frontends):
        if frontend.accepts(source):
            return frontend.read(source)
    if isinstance(source, (str, Path)) and not Path(source).exists():
        raise loading.missing(Path(source))
    known = "; ".join(f"{frontend.name}: {_help(frontend)}" for frontend in frontends)
    raise UsageError(f"{source!r}: no frontend reads this; there are {known}")


def _help(frontend: Frontend) -> str:
    first = (inspect.getdoc(frontend) or "no help").partition("\n")[0]
    return first.replace("``", "").rstrip(".")
