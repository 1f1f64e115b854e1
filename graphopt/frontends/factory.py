"""Models by the name of what makes them: ``package.module:callable``."""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys

from ..errors import GraphoptError, ModelError
from ..plugins import did_you_mean

ADDRESS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
SOURCES = "(module, args[, kwargs[, dynamic_shapes]]), an ExportedProgram or an onnx_ir.Model"
"""What a callable may return."""


def is_address(text: str) -> bool:
    """Return whether ``text`` is written like ``package.module:callable``."""
    return ADDRESS.fullmatch(text) is not None


def call(address: str) -> object:
    """Return what the callable at ``address`` returns. The current directory is importable, as for ``python -m``.

    Raises:
        ModelError: it cannot be imported, is no callable, raises, or returns nothing.
    """
    here = os.getcwd()  # noqa: PTH109 - sys.path holds text
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    module_name, _, qualified = address.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a stranger's module: whatever it raises on import is told
        raise ModelError(
            f"{address}: cannot import {module_name}: {type(error).__name__}: {error}; "
            f"run where it can be imported from"
        ) from error
    try:
        function = functools.reduce(getattr, qualified.split("."), module)
    except AttributeError as error:
        known = [
            name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")
        ]
        raise ModelError(f"{address}: {error}{did_you_mean(qualified, known)}") from error
    if not callable(function):
        raise ModelError(f"{address}: no callable, got {function!r}; name a function that returns {SOURCES}")
    try:
        made = function()
    except GraphoptError:
        raise
    except Exception as error:  # a stranger's code again
        raise ModelError(f"{address}: it raised {type(error).__name__}: {error}") from error
    if made is None:
        raise ModelError(f"{address}: it returned nothing; return {SOURCES}")
    return made
