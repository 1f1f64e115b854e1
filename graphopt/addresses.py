"""What users name as ``package.module:function``: models, calibration data, metrics."""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from .errors import GraphoptError
from .plugins import did_you_mean

ADDRESS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_address(text: str) -> bool:
    """Return whether ``text`` is written like ``package.module:function``."""
    return ADDRESS.fullmatch(text) is not None


def function(address: str, wanted: str, error: type[GraphoptError]) -> Callable[..., Any]:
    """Return what ``address`` names. The current directory is importable, as for ``python -m``.

    ``wanted`` says in an ``error`` what should be named: "a function that returns …".

    Raises:
        GraphoptError: an ``error``: it is no address, it cannot be imported, or it cannot be called.
    """
    if not is_address(address):
        raise error(f"{address}: it is not written like package.module:function; name {wanted}")
    here = os.getcwd()  # noqa: PTH109 - sys.path holds text
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    module_name, _, qualified = address.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as cause:  # a stranger's module: whatever it raises on import is told
        raise error(
            f"{address}: cannot import {module_name}: {type(cause).__name__}: {cause}; "
            f"run where it can be imported from"
        ) from cause
    try:
        found: Any = functools.reduce(getattr, qualified.split("."), module)
    except AttributeError as cause:
        known = [
            name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")
        ]
        raise error(f"{address}: {cause}{did_you_mean(qualified, known)}") from cause
    if not callable(found):
        raise error(f"{address}: no callable, got {found!r}; name {wanted}")
    called: Callable[..., Any] = found
    return called
