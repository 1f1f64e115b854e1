"""Exported programs from ``.pt2`` files, without running what is in the file.

``torch.export.load`` by itself unpickles objects of any kind, evaluates the text of symbolic sizes as Python, and
looks up operators by any path below ``torch``. Here, pickles may hold tensors and plain data only, custom objects
are refused, and the text of sizes and operators is checked before torch sees it.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OBJECTS = ("custom_obj_", "opaque_obj_")
"""How the files of pickled objects that are no tensors begin."""
OPERATORS = re.compile(r"(torch\.ops|_operator|math)(\.[A-Za-z]\w*)+|torch\.(_)?sym_\w+|")
SYMBOL = re.compile(r"Symbol\('\w+'")
SIZES = re.compile(r"[\w\s+*/%(),.<>=!&|~-]*")
WORDS = re.compile(r"[A-Za-z_]\w*|\.\s*[A-Za-z_]")
LIMIT_BYTES = 1 << 30
"""A larger description of a graph is refused."""


def load(path: Path) -> ExportedProgram:
    """Return the exported program in ``path``.

    Raises:
        ModelError: it cannot be read, or loading it would run code that is in the file.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            _check(path, archive)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: no exported program: {error}; write it with torch.export.save") from error
    try:
        with _tensors_only():
            return torch.export.load(path)
    except Exception as error:  # torch raises exceptions of every kind on a file that it cannot read
        raise ModelError(
            f"{path}: torch cannot load it: {type(error).__name__}: {str(error).partition(chr(10))[0]}; "
            f"write it anew with this torch, {torch.__version__}"
        ) from error


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Let ``torch.load`` unpickle tensors and plain data only, also where torch asks for more."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def _check(path: Path, archive: zipfile.ZipFile) -> None:
    for entry in archive.infolist():
        name = entry.filename.rpartition("/")[2]
        if name.startswith(OBJECTS):
            raise ModelError(
                f"{path}: it holds a pickled object, {name}, which may run code when it is loaded; "
                f"load it yourself with torch.export.load and give the program"
            )
        if name.endswith(".json"):
            if entry.file_size > LIMIT_BYTES:
                raise ModelError(f"{path}: {name} has {entry.file_size} bytes; {LIMIT_BYTES} are allowed")
            _check_text(path, json.loads(archive.read(entry)))


def _check_text(path: Path, root: Any) -> None:
    """Refuse text that torch would evaluate, or look up, to more than sizes and operators."""
    pending = [root]
    while pending:
        found = pending.pop()
        if isinstance(found, list):
            pending += found
        elif isinstance(found, dict):
            pending += found.values()
            size, operator = found.get("expr_str"), found.get("target")
            if isinstance(size, str) and not _is_size(size):
                raise ModelError(f"{path}: a size is no arithmetic, got {size[:80]!r}")
            if isinstance(operator, str) and "inputs" in found and not OPERATORS.fullmatch(operator):
                raise ModelError(f"{path}: no operator of torch, got {operator[:80]!r}")


def _is_size(text: str) -> bool:
    text = SYMBOL.sub("Symbol(", text)
    return SIZES.fullmatch(text) is not None and not any(
        word.startswith((".", "_")) or (hasattr(builtins, word) and word not in ("True", "False"))
        for word in WORDS.findall(text)
    )
