"""Whether two arrays are equal up to the rounding of their type, and how far apart they are where they are not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tolerance:
    """How much rounding may do to a tensor."""

    peak: float
    """Largest error of one element, relative to the tensor's largest element."""
    rms: float
    """Root of the mean squared error, relative to that of the tensor."""

    def widened(self, noise: Difference) -> Tolerance:
        """Return the tolerance for an output that ``noise`` befalls when each node rounds a little differently."""
        if noise.fault is not None:
            return self
        most = self.most(AMPLE * noise.max_abs)
        peak, rms = min(AMPLE * noise.max_rel, most.peak), min(AMPLE * noise.max_rms, most.rms)
        return Tolerance(max(self.peak, peak), max(self.rms, rms))

    def covers(self, difference: Difference) -> bool:
        """Return whether this could be widened to take ``difference`` for rounding."""
        most = self.most(difference.max_abs)
        return difference.fault is None and difference.max_rel <= most.peak and difference.max_rms <= most.rms

    def most(self, error: float) -> Tolerance:
        """Return how wide this may become: ``MOST_WIDENED`` times as wide, or without end where ``error`` is tiny.

        That is where the whole output is as small as what rounding does to a number of size 1, as in a sigmoid that
        says no everywhere.
        """
        times = math.inf if error < SMALL * self.peak else MOST_WIDENED
        return Tolerance(times * self.peak, times * self.rms) if self.peak > 0 else self


AMPLE = 4.0
"""Sums inside a node round more than once, and other sums than the ones that were tried."""
MOST_WIDENED = 20.0
"""More is taken for a jump (a floor, a comparison), which says nothing of rounding."""
SMALL = 0.02
"""Of the usual tolerance, for a number of size 1: an error below it is some units in the last place of 1."""

TOLERANCES = {
    "float64": Tolerance(1e-9, 1e-10),
    "float32": Tolerance(5e-5, 1e-5),
    "float16": Tolerance(5e-3, 2e-3),
    "int8": Tolerance(2e-2, 2e-3),
    "bfloat16": Tolerance(4e-2, 1.6e-2),
    "float8": Tolerance(0.125, 0.0625),
}
"""By the coarsest type that takes part in computing an output; see :mod:`graphopt.analysis.precision`."""


def tolerance(grade: str | None, rtol: float | None = None) -> Tolerance:
    """Return what rounding may do to an output; nothing where nothing is computed in floating point."""
    if rtol is not None:
        return Tolerance(rtol, rtol)
    return TOLERANCES[grade] if grade is not None else Tolerance(0.0, 0.0)


@dataclass(frozen=True)
class Element:
    """One element of an output in both models."""

    index: tuple[int, ...]
    a: Any
    b: Any
    feed: int = 0
    """Which of the sample inputs."""

    def __str__(self) -> str:
        at = f" at {list(self.index)}" if self.index else ""
        return f"{at}: {_number(self.a)} became {_number(self.b)}"


def _number(value: Any) -> str:
    if isinstance(value, (bool, int, str)):
        return repr(value)
    return f"{value:.7g}" if isinstance(value, (float, complex)) else repr(value)


@dataclass
class Difference:
    """How far one output of two models is apart, over all sample inputs."""

    name: str
    max_abs: float = 0.0
    """Largest error of an element; infinite where positions of NaN or infinity differ."""
    max_rel: float = 0.0
    """Largest error, relative to the largest finite element of its tensor."""
    max_rms: float = 0.0
    """Largest root of the mean squared error of a tensor, relative to that of the tensor."""
    ok: bool = True
    worst: Element | None = None
    """The element to blame where ``ok`` is false, else the one that is furthest off; ``None`` where all are equal."""
    reason: str | None = None
    """Why ``ok`` is false, in one sentence that begins with the output's name."""
    fault: str | None = field(default=None, repr=False)
    """What is wrong that no tolerance covers: types, shapes, integers, NaN, infinity."""
    furthest: dict[str, Element] = field(default_factory=dict, repr=False)
    """The elements behind ``max_rel`` and ``max_rms``."""
    signal: float = field(default=0.0, repr=False)
    noise: float = field(default=0.0, repr=False)
    product: float = field(default=0.0, repr=False)
    power: float = field(default=0.0, repr=False)

    @property
    def sqnr_db(self) -> float:
        """Ratio of signal to error, in decibels; infinite where all elements are equal."""
        if self.noise == 0.0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the outputs of the two models."""
        if self.signal == 0.0 or self.power == 0.0:
            return 1.0 if self.signal == self.power else 0.0
        return min(1.0, self.product / math.sqrt(self.signal * self.power))

    def judge(self, limit: Tolerance | None) -> Difference:
        """Decide whether the difference is rounding; ``None``: whatever the numbers are, they may be."""
        peak, rms = (
            limit is not None and self.max_rel > limit.peak,
            limit is not None and self.max_rms > limit.rms,
        )
        self.ok, self.reason = self.fault is None and not peak and not rms, None
        if self.fault is not None:
            self.reason = f"output {self.name!r}{self.fault}"
        elif limit is not None and not self.ok:
            self.worst = self.furthest["peak" if peak else "rms"]
            at, most = f"output {self.name!r}{self.worst}", "rounding does at most"
            self.reason = (
                f"{at}, {self.max_rel:.2g} of its largest element ({most} {limit.peak:.0e})"
                if peak
                else f"{at}, worst of many: the error is {self.max_rms:.2g} of the output ({most} {limit.rms:.0e})"
            )
        else:
            self.worst = self.furthest.get("peak")
        return self

    def add(self, a: Any, b: Any, feed: int = 0, at: tuple[int, ...] = (), numbers: bool = True) -> None:
        """Take in what two models gave: arrays, lists or dictionaries of them, or ``None``.

        Without ``numbers`` only types and shapes are looked at.
        """
        if isinstance(a, dict) and isinstance(b, dict):
            self._keys(a, b, at)
            a, b = [a[k] for k in sorted(a)], [b[k] for k in sorted(a) if k in b]
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            if len(a) != len(b):
                self._fail(f"{_at(at)}: {len(a)} elements became {len(b)}")
            for i, (one, other) in enumerate(zip(a, b, strict=False)):
                self.add(one, other, feed, (*at, i), numbers)
        elif a is None or b is None:
            if a is not b:
                self._fail(f"{_at(at)}: {_kind(a)} became {_kind(b)}")
        else:
            self._arrays(np.asarray(a), np.asarray(b), feed, at, numbers)

    def _fail(self, what: str, element: Element | None = None) -> None:
        """Record the first thing that is wrong."""
        if self.fault is None:
            self.fault, self.worst = what, element

    def _keys(self, a: dict[Any, Any], b: dict[Any, Any], at: tuple[int, ...]) -> None:
        odd = sorted(a.keys() ^ b.keys())
        if odd:
            self._fail(f"{_at(at)}: key {odd[0]!r} is in one of the models only")

    def _arrays(self, a: Array, b: Array, feed: int, at: tuple[int, ...], numbers: bool) -> None:
        if a.dtype.kind in "OSU" and b.dtype.kind in "OSU":
            a, b = a.astype(object), b.astype(object)
        if a.shape != b.shape:
            self._fail(f"{_at(at)}: shape {list(a.shape)} became {list(b.shape)}")
            return
        if a.dtype != b.dtype:
            self._fail(f"{_at(at)}: {a.dtype} became {b.dtype}")
        if not numbers or a.size == 0:
            return
        if a.dtype == object or b.dtype == object or (_whole(a) and _whole(b)):
            self._differ(np.asarray(a != b), a, b, feed, at)
        if a.dtype != object and b.dtype != object:
            self._measure(a, b, feed, at)

    def _differ(self, where: Array, a: Array, b: Array, feed: int, at: tuple[int, ...]) -> None:
        """Record a fault at the first element where something that no tolerance covers differs."""
        if where.any():
            element = _element(int(where.argmax()), a, b, feed, at)
            self._fail(str(element), element)

    def _measure(self, a: Array, b: Array, feed: int, at: tuple[int, ...]) -> None:
        x, y = _wide(a), _wide(b)
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            odd = ~finite & ~((np.isnan(x) & np.isnan(y)) | (x == y))
            self._differ(odd, a, b, feed, at)
            self.max_abs = self.max_rel = math.inf if odd.any() else self.max_rel
            x, y = np.where(finite, x, 0), np.where(finite, y, 0)
        error = np.abs(y - x)
        worst = int(error.argmax())
        largest, signal, noise = float(error.flat[worst]), _energy(x), _energy(error)
        peak, rms = _ratio(largest, float(np.abs(x).max())), math.sqrt(_ratio(noise, signal))
        if peak > self.max_rel:
            self.furthest["peak"] = _element(worst, a, b, feed, at)
        if rms > self.max_rms:
            self.furthest["rms"] = _element(worst, a, b, feed, at)
        self.max_abs, self.max_rel = max(self.max_abs, largest), max(self.max_rel, peak)
        self.max_rms = max(self.max_rms, rms)
        self.signal, self.noise, self.power = (
            self.signal + signal,
            self.noise + noise,
            self.power + _energy(y),
        )
        self.product += float(np.vdot(x, y).real)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        worst = None
        if self.worst is not None:
            worst = {
                "index": list(self.worst.index),
                "a": _plain(self.worst.a),
                "b": _plain(self.worst.b),
                "feed": self.worst.feed,
            }
        figures = {k: _plain(getattr(self, k)) for k in ("max_abs", "max_rel", "sqnr_db", "cosine")}
        return {"name": self.name, "ok": self.ok, **figures, "worst": worst, "reason": self.reason}


def _whole(array: Array) -> bool:
    return str(array.dtype).startswith(("int", "uint", "bool"))


def _wide(array: Array) -> Array:
    """Return numbers in which differences of ``array``'s type can be told."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.inf if part > 0 else 0.0


def _element(flat: int, a: Array, b: Array, feed: int, at: tuple[int, ...]) -> Element:
    index = tuple(int(i) for i in np.unravel_index(flat, a.shape))
    return Element((*at, *index), _item(a[index]), _item(b[index]), feed)


def _energy(array: Array) -> float:
    return float(np.vdot(array, array).real)


def _item(element: Any) -> Any:
    item = element.item() if hasattr(element, "item") else element
    return item if isinstance(item, (bool, int, float, complex, str)) else float(item)


def _at(at: tuple[int, ...]) -> str:
    return f" at {list(at)}" if at else ""


def _kind(value: Any) -> str:
    return "nothing" if value is None else "a value"


def _plain(value: Any) -> Any:
    """Return what JSON can hold: numbers that are not finite, and complex ones, as text."""
    if isinstance(value, (float, complex)) and not (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return value
