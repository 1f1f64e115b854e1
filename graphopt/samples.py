"""Sample inputs: drawn from what a model declares and does with them, or the user's, checked."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from .analysis.roles import Dim, Kind, Role, roles
from .context import Feeds
from .errors import InputError
from .feeds import calibration, check, load, save, shape_text

__all__ = ["calibration", "candidates", "check", "draw", "load", "save"]

LIMIT_BYTES = 1 << 30
"""Inputs larger than this are not drawn."""
BINDINGS = 2
"""How many sets of sizes a model with symbolic dimensions is run at."""


@dataclass(frozen=True)
class Rung:
    """Sizes to try for symbolic dimensions: a batch, a length, an edge of a picture."""

    batch: int
    length: int
    edge: int
    apart: bool = True
    """Give each symbol a size of its own, so that mixing two of them up is seen."""


LADDER = (
    *(Rung(2, 8, 64), Rung(3, 13, 96)),
    *(Rung(2, 8, 64, False), Rung(3, 13, 96, False)),
    *(Rung(2, 16, 224, False), Rung(3, 32, 256, False)),
    *(Rung(1, 7, 32, False), Rung(1, 4, 48, False)),
    *(Rung(4, 64, 128, False), Rung(1, 128, 640, False)),
    *(Rung(1, 197, 320, False), Rung(1, 1, 416, False), Rung(1, 2, 1, False)),
)
"""From what tells most to what any model takes; each next one is for models that refuse those before."""


def draw(model: ir.Model, seed: int = 0) -> list[Feeds]:
    """Draw sample inputs from the shapes that the graph's inputs declare.

    One feed where all dimensions are numbers, else two, with other sizes for each symbol in the second. Values
    depend on ``seed`` and the inputs' names. Whether the model takes them is for its runner to see, who finds
    more in :func:`candidates`.

    Raises:
        InputError: an input has no type to draw, or is too large to.
    """
    return list(islice(candidates(model, seed), BINDINGS))


def candidates(model: ir.Model, seed: int = 0) -> Iterator[Feeds]:
    """Yield feeds that the model may accept, the best first: a ladder of sizes for its symbolic dimensions.

    A model without symbols has one, or two where an input decides which branch runs.
    """
    asked = inputs(model)
    known = roles(model)
    sizes = _Sizes([value.shape for value in asked if value.shape is not None])
    branches = any(known[value.name or ""].kind is Kind.BRANCH for value in asked)
    rungs: Sequence[Rung] = (
        LADDER if sizes.kinds or any(v.shape is None for v in asked) else LADDER[: 1 + branches]
    )
    last = BINDINGS - 1 if len(rungs) > 1 else 0
    for i, rung in enumerate(rungs):
        bound = sizes.at(rung)
        shapes = {value.name or "": _shape(value, rung, bound) for value in asked}
        _small_enough(asked, shapes)
        yield {
            name: _Drawing(_rng(seed, name, i), i % BINDINGS, last, bound).value(
                value.type, shapes[name], name, role
            )
            for value, name, role in ((v, v.name or "", known[v.name or ""]) for v in asked)
        }


def inputs(model: ir.Model) -> list[ir.Value]:
    """Return the graph inputs that a caller must feed: those without a default."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def _rng(seed: int, name: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])


def _small_enough(asked: Sequence[ir.Value], shapes: Mapping[str, Sequence[int]]) -> None:
    for value in asked:
        bits = (
            64 if value.dtype in (None, ir.DataType.STRING, ir.DataType.UNDEFINED) else value.dtype.bitwidth
        )
        size = math.prod(shapes[value.name or ""]) * bits / 8
        if size > LIMIT_BYTES:
            raise InputError(
                f"input {value.name!r}: it is too large to be drawn, got {size / (1 << 30):.1f} GiB "
                f"for shape {shape_text(value.shape)}; give sample inputs"
            )


# --- sizes --------------------------------------------------------------------------------------------------


@dataclass
class _Sizes:
    """Gives each symbolic dimension of the inputs a size: by its name, and by where it stands."""

    shapes: Sequence[ir.Shape]
    kinds: dict[str, str] = field(default_factory=dict)
    """Each symbol's kind: batch, length or edge; an unnamed dimension is a symbol of its own."""

    def __post_init__(self) -> None:
        for shape in self.shapes:
            for axis, dim in enumerate(shape):
                name = _name(shape, axis, dim)
                if name is not None:
                    kind = _kind(shape, axis)
                    self.kinds[name] = kind if self.kinds.get(name, kind) == kind else "length"
        for name in self.kinds:
            if re.search(r"batch", name, re.I):
                self.kinds[name] = "batch"
            elif re.search(r"seq|len|past|token", name, re.I):
                self.kinds[name] = "length"

    def at(self, rung: Rung) -> dict[str, int]:
        """Return the size of each symbol."""
        base = {"batch": rung.batch, "length": rung.length, "edge": rung.edge}
        step = {"batch": 0, "length": 1, "edge": 32} if rung.apart else {"batch": 0, "length": 0, "edge": 0}
        count = {"batch": 0, "length": 0, "edge": 0}
        bound: dict[str, int] = {}
        for name, kind in self.kinds.items():
            bound[name] = base[kind] + step[kind] * count[kind]
            count[kind] += 1
        for name in self.kinds:
            bound[name] = _derived(name, bound) or bound[name]
        return bound


def _derived(name: str, bound: Mapping[str, int]) -> int | None:
    """Return the size of a symbol that is an expression over others, or by custom a total."""
    if name.startswith("total_"):
        parts = [bound.get(f"past_{name[6:]}"), bound.get(name[6:])]
        return sum(p for p in parts if p is not None) if all(parts) else None
    if re.fullmatch(r"[\w.]*|[^+*/() -]*", name):
        return None
    dim = ir.SymbolicDim(name)
    try:
        size = dim.evaluate(dict(bound)) if dim.free_symbols() <= bound.keys() else None
    except (ValueError, TypeError, ArithmeticError):  # a name like any other: "batch size", "N+", "N/0"
        return None
    return size if isinstance(size, int) and size > 0 else None


def _name(shape: ir.Shape, axis: int, dim: Dim) -> str | None:
    """Return what a symbolic dimension is known by; an unnamed one gets a name of its own."""
    if isinstance(dim, int):
        return None
    return dim.value if dim.value is not None else f"?{id(shape)}:{axis}"


def _kind(shape: ir.Shape, axis: int) -> str:
    """Return what a dimension at this place mostly is; a picture's edges stand next to its channels."""
    rank = len(shape)
    if axis == 0 and rank > 1:
        return "batch"
    channels_last = rank == 4 and shape[3] in (1, 3, 4)
    if rank in (4, 5) and (axis < 3 if channels_last else axis >= 2):
        return "edge"
    return "length"


def _shape(value: ir.Value, rung: Rung, bound: Mapping[str, int]) -> tuple[int, ...]:
    if value.shape is None:
        return (rung.batch, rung.length) if isinstance(value.type, ir.TensorType) else (rung.length,)
    return tuple(
        dim if isinstance(dim, int) else bound[_name(value.shape, axis, dim) or ""]
        for axis, dim in enumerate(value.shape)
    )


# --- values -------------------------------------------------------------------------------------------------


WORDS = ("graph", "Node", "edge case", "naïve", "0", "", "größer", "42")


@dataclass
class _Drawing:
    """Draws the values of one input of one feed."""

    rng: np.random.Generator
    feed: int
    last: int
    """The feed whose masks end in zeros."""
    bound: Mapping[str, int]

    def value(self, kind: ir.TypeProtocol | None, shape: tuple[int, ...], name: str, role: Role) -> Any:
        """Draw a tensor, a sequence of some, or what an optional holds."""
        if isinstance(kind, ir.OptionalType):
            return self.value(kind.elem_type, shape, name, role)
        if isinstance(kind, ir.SequenceType):
            return [self.value(kind.elem_type, shape, name, role) for _ in range(2)]
        if not isinstance(kind, ir.TensorType) or kind.dtype == ir.DataType.UNDEFINED:
            raise InputError(
                f"input {name!r}: nothing can be drawn for its type, got {kind}; give sample inputs"
            )
        return self.tensor(kind.dtype, shape, name, role)

    def tensor(
        self, dtype: ir.DataType, shape: tuple[int, ...], name: str, role: Role
    ) -> np.ndarray[Any, Any]:
        """Draw a tensor."""
        made = np.dtype(dtype.numpy())
        if dtype == ir.DataType.STRING:
            return self.rng.choice(np.array(WORDS, dtype=object), shape)
        if role.kind in (Kind.INDEX, Kind.LENGTH):
            return self._below(shape, name, role).astype(made)
        if role.kind is Kind.BRANCH:
            return np.full(shape, self.feed == 0, made)
        floating = dtype.is_floating_point() or made.kind == "c"
        if (role.kind is Kind.MASK and not floating) or dtype == ir.DataType.BOOL or "mask" in name.lower():
            return self._mask(shape, "mask" in name.lower()).astype(made)
        if role.kind in (Kind.TARGET, Kind.SIZE, Kind.BEGIN):
            return _arguments(role.kind, shape).astype(made)
        if floating:
            return self._normal(shape, made, dtype)
        return self._integers(dtype, shape, name).astype(made)

    def _normal(
        self, shape: tuple[int, ...], made: np.dtype[Any], dtype: ir.DataType
    ) -> np.ndarray[Any, Any]:
        if made.kind == "c":
            return (self.rng.standard_normal(shape) + 1j * self.rng.standard_normal(shape)).astype(made)
        drawn = self.rng.standard_normal(shape)
        if dtype == ir.DataType.FLOAT8E8M0:
            drawn = np.exp2(np.round(drawn))
        return np.asarray(drawn).astype(made)

    def _below(self, shape: tuple[int, ...], name: str, role: Role) -> np.ndarray[Any, Any]:
        """Draw ids that every table has a row for; lengths are at least 1."""
        low = 1 if role.kind is Kind.LENGTH else max(0, *(-added for _, added in role.limits), 0)
        sizes = [(self._size(dim), added) for dim, added in role.limits]
        tops = [size - added for size, added in sizes if size is not None and size - added > low]
        high = min(tops, default=low + 1) + (role.kind is Kind.LENGTH)
        if role.kind is Kind.INDEX and "position" in name.lower() and shape:
            steps = low + np.arange(shape[-1]) % (high - low)
            return np.broadcast_to(steps, shape)
        return self.rng.integers(low, max(high, low + 1), shape)

    def _size(self, dim: Dim) -> int | None:
        if isinstance(dim, int):
            return dim
        try:
            size = dim.evaluate(dict(self.bound)) if dim.value is not None else None
        except (ValueError, TypeError, ArithmeticError):
            return None
        return size if isinstance(size, int) else None

    def _mask(self, shape: tuple[int, ...], named: bool) -> np.ndarray[Any, Any]:
        """Draw ones; in the last feed each row ends in zeros, and a bool that is called no mask mixes."""
        if not shape or 0 in shape:
            return np.ones(shape, bool)
        if not named:
            mask = self.rng.random(shape) < 0.6
        else:
            rows = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) if len(shape) > 1 else np.zeros(1)
            tail = 1 + (rows + shape[-1] // 4) % max(shape[-1] - 1, 1)
            mask = np.broadcast_to(
                np.arange(shape[-1]) < shape[-1] - tail * (self.feed == self.last), shape
            ).copy()
        mask[..., 0] = True
        return mask

    def _integers(self, dtype: ir.DataType, shape: tuple[int, ...], name: str) -> np.ndarray[Any, Any]:
        """Draw small integers without nought, which may be a divisor; a picture's are 0 to 255."""
        if "position" in name.lower() and shape:
            return np.broadcast_to(np.arange(shape[-1]), shape)
        if dtype == ir.DataType.UINT8 and len(shape) > 2:
            return self.rng.integers(0, 256, shape)
        low, high = (-3 if len(shape) > 1 else 1), 9
        if dtype in (ir.DataType.INT8, ir.DataType.UINT8):
            low, high = -128, 255
        bits = int(dtype.bitwidth)
        least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if dtype.is_signed() else (0, (1 << bits) - 1)
        drawn = self.rng.integers(max(low, least), min(high, most) + 1, shape)
        return np.where(drawn == 0, 1, drawn)


def _arguments(kind: Kind, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return what most operators take as a shape, a count or an axis."""
    made = np.full(shape, 0 if kind is Kind.BEGIN else 1)
    if kind is Kind.TARGET and made.size:
        made.reshape(-1)[0] = -1
    return made
