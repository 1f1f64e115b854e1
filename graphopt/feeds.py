"""Sample inputs that the user gives: read from files, checked against the model, every fault named."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from . import addresses
from .context import Feeds
from .errors import InputError

CHOICES = "FILE.npz, a folder of .npz files, or module:function"


def check(model: ir.Model, inputs: Feeds | Sequence[Feeds]) -> list[Feeds]:
    """Return the user's inputs as arrays of the types that ``model`` declares, one feed or several.

    Values are converted only where nothing is lost: Python numbers and lists, and integers that fit another
    integer type.

    Raises:
        InputError: a name, a type, a rank, a size or a symbol does not fit; or nothing is given.
    """
    feeds = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    if not feeds:
        raise InputError(
            "inputs: none are given, got an empty list; give at least one dictionary or leave them out"
        )
    for feed in feeds:
        if not isinstance(feed, Mapping):
            raise InputError(f"inputs: each must be a dictionary of arrays by name, got {_briefly(feed)}")
    return [_checked(model, feed) for feed in feeds]


def _checked(model: ir.Model, feed: Feeds) -> Feeds:
    from .plugins import did_you_mean

    known = {value.name or "": value for value in model.graph.inputs}
    for name in feed:
        if name not in known:
            raise InputError(f"input {name!r}: the model has none of this name{did_you_mean(name, known)}")
    missing = [name for name, value in known.items() if name not in feed and not value.is_initializer()]
    if missing:
        raise InputError(
            f"input {missing[0]!r}: it is missing, got {', '.join(sorted(feed)) or 'none'}; give all inputs"
        )
    symbols: dict[str, tuple[int, str]] = {}
    checked = {}
    for name, value in known.items():
        if name in feed:
            checked[name] = made = _typed(name, feed[name], value.type)
            _fits(name, made, value, symbols)
    return checked


def _typed(name: str, given: Any, kind: ir.TypeProtocol | None) -> Any:
    if isinstance(kind, ir.OptionalType):
        return None if given is None else _typed(name, given, kind.elem_type)
    if isinstance(kind, ir.SequenceType):
        if not isinstance(given, (list, tuple)):
            raise InputError(
                f"input {name!r}: it is a sequence, got {_briefly(given)}; give a list of arrays"
            )
        return [_typed(name, element, kind.elem_type) for element in given]
    if not isinstance(kind, ir.TensorType):
        raise InputError(f"input {name!r}: its type cannot be fed, got {kind}")
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise InputError(
            f"input {name!r}: it is no array, got {_briefly(given)}; give rows of equal length"
        ) from error
    return _converted(name, array, kind.dtype, hasattr(given, "dtype"))


def _converted(
    name: str, array: np.ndarray[Any, Any], dtype: ir.DataType, typed: bool
) -> np.ndarray[Any, Any]:
    """Return ``array`` as ``dtype`` if that loses nothing; Python's own floats may be rounded."""
    want = np.dtype(dtype.numpy())
    if array.dtype == want or (array.dtype.kind == "V" and array.dtype.itemsize == want.itemsize):
        return array.view(want)
    if dtype == ir.DataType.STRING and array.dtype.kind in "US":
        return (array if array.dtype.kind == "U" else np.char.decode(array, "utf-8")).astype(object)
    numbers = array.dtype.kind in "biu" and dtype != ir.DataType.STRING
    if not typed and (array.size == 0 or (array.dtype.kind == "f" and dtype.is_floating_point())):
        return array.astype(want)
    if numbers and (dtype.is_integer() or dtype == ir.DataType.BOOL or not typed):
        made = array.astype(want)
        if np.array_equal(made.astype(array.dtype), array):
            return made
        raise InputError(
            f"input {name!r}: its values do not fit {dtype.name.lower()}, got {array.min()} to {array.max()}"
        )
    raise InputError(
        f"input {name!r}: it must be {dtype.name.lower()}, got {array.dtype}; convert it with .astype(...)"
    )


def _fits(name: str, array: Any, value: ir.Value, symbols: dict[str, tuple[int, str]]) -> None:
    """Check the shape of a tensor; ``symbols`` remembers each symbol's size and the input that set it."""
    if value.shape is None or not isinstance(array, np.ndarray):
        return
    fits = array.ndim == len(value.shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(value.shape, array.shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"input {name!r}: its shape must be {shape_text(value.shape)}, got {list(array.shape)}"
        )
    for dim, size in zip(value.shape, array.shape, strict=True):
        if isinstance(dim, int) or dim.value is None:
            continue
        before, where = symbols.setdefault(dim.value, (size, name))
        if before != size:
            raise InputError(
                f"input {name!r}: dimension {dim.value} must be {before} as in {where!r}, got {size}; "
                f"give the same symbol the same size"
            )


def shape_text(shape: ir.Shape | None) -> str:
    """Return a declared shape for messages: ``[N, 3, ?]``."""
    if shape is None:
        return "unknown"
    return f"[{', '.join(str(d) if isinstance(d, int) else d.value or '?' for d in shape)}]"


def _briefly(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- files --------------------------------------------------------------------------------------------------


def save(path: str | Path, feeds: Sequence[Feeds]) -> None:
    """Write feeds to an ``.npz`` for :func:`load`: ``name``, or ``name/i`` of feed i, ``name/i/j`` of a list."""
    arrays: dict[str, Any] = {}
    numbered = len(feeds) > 1 or any(
        isinstance(given, (list, tuple)) for feed in feeds for given in feed.values()
    )
    for i, feed in enumerate(feeds):
        for name, given in feed.items():
            key = f"{name}/{i}" if numbered else name
            if isinstance(given, (list, tuple)):
                arrays |= {f"{key}/{j}": _plain(element) for j, element in enumerate(given)}
            elif given is not None:
                arrays[key] = _plain(given)
    np.savez(path, allow_pickle=False, **arrays)


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Strings as numpy's own, which need no pickle."""
    return array.astype(str) if array.dtype == object else array


def load(path: str | Path) -> Feeds | list[Feeds]:
    """Read an ``.npz`` file: one feed of arrays by name, or several, as ``name/0``, ``name/1``, …

    Raises:
        InputError: the file cannot be read, or a name lacks an array for one of the feeds.
    """
    arrays = _read(Path(path))
    parts = {key: re.fullmatch(r"(.+?)/(\d+)(?:/(\d+))?", key) for key in arrays}
    if not all(parts.values()):
        return arrays
    feeds: dict[int, dict[str, Any]] = {}
    for key, match in sorted(
        parts.items(), key=lambda item: [int(n or 0) for n in item[1].groups()[1:]] if item[1] else []
    ):
        assert match is not None
        feed = feeds.setdefault(int(match[2]), {})
        if match[3] is None:
            feed[match[1]] = arrays[key]
        else:
            feed.setdefault(match[1], []).append(arrays[key])
    names = {name for feed in feeds.values() for name in feed}
    for i in range(max(feeds) + 1):
        lacking = sorted(names - feeds.get(i, {}).keys())
        if lacking:
            raise InputError(
                f"{path}: feed {i} lacks {lacking[0]!r}; give {lacking[0]}/0 to {lacking[0]}/{max(feeds)}"
            )
    return [feeds[i] for i in sorted(feeds)]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; write one with numpy.savez")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as head:
            what = (
                "one array without a name"
                if head.read(6) == np.lib.format.MAGIC_PREFIX
                else "no .npz archive"
            )
        raise InputError(f"{path}: it holds {what}; write it with numpy.savez(path, name=array)")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        why = "it holds Python objects, which are not unpickled" if "pickle" in str(error) else str(error)
        raise InputError(f"{path}: it cannot be read as .npz: {why}; write it with numpy.savez") from error
    if not arrays:
        raise InputError(f"{path}: it holds no arrays; write it with numpy.savez(path, name=array)")
    return arrays


# --- calibration data ---------------------------------------------------------------------------------------


class Calibration:
    """Feeds from a file, a folder or a function, read anew at each iteration, one at a time."""

    def __init__(self, text: str, read: Callable[[], Iterable[Any]]) -> None:
        self.text = text
        self._read = read

    def __iter__(self) -> Iterator[Feeds]:
        empty = True
        for feed in self._read():
            if not isinstance(feed, Mapping):
                raise InputError(
                    f"{self.text}: each element must be a dictionary of arrays, got {_briefly(feed)}"
                )
            empty = False
            yield feed
        if empty:
            raise InputError(f"{self.text}: it gives no inputs; give at least one")


def calibration(text: str) -> Iterable[Feeds]:
    """Return the feeds in ``FILE.npz``, in a folder of such files (sorted), or from ``module:function``.

    Plain names in a file hold samples along their first axis, given one at a time; ``name/i`` is feed i.

    Raises:
        InputError: there is no such file, folder or function, or (while iterating) it gives something else.
    """
    path = Path(text)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if not files:
            raise InputError(f"{text}: the folder holds no .npz file; give {CHOICES}")
        return Calibration(text, lambda: (feed for file in files for feed in _samples(file)))
    if path.suffix == ".npz" or path.exists():
        _samples(path)
        return Calibration(text, lambda: _samples(path))
    if not addresses.is_address(text):
        raise InputError(f"{text}: there is no such file or folder; give {CHOICES}")
    return Calibration(text, _function(text))


def _samples(path: Path) -> list[Feeds]:
    """Return the feeds of one file; arrays whose first axes agree are cut into samples."""
    loaded = load(path)
    if not isinstance(loaded, Mapping):
        return loaded
    lengths = {array.shape[0] if array.ndim else 0 for array in loaded.values()}
    if len(lengths) != 1 or 0 in lengths:
        return [loaded]
    return [{name: array[i : i + 1] for name, array in loaded.items()} for i in range(lengths.pop())]


def _function(text: str) -> Callable[[], Iterable[Any]]:
    function = addresses.function(text, "a function that returns an iterable of dictionaries", InputError)

    def read() -> Iterable[Any]:
        made = function()
        if not isinstance(made, Iterable):
            raise InputError(f"{text}: it must return an iterable of dictionaries, got {_briefly(made)}")
        return made

    return read
