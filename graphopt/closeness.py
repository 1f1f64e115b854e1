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

    def widened(self, peak: float, rms: float) -> Tolerance:
        """Return the tolerance for an output that moves so far when each node rounds a little differently."""
        if not (math.isfinite(peak) and math.isfinite(rms)):
            return self
        widest = Tolerance(MOST_WIDENED * self.peak, MOST_WIDENED * self.rms)
        return Tolerance(
            max(self.peak, min(AMPLE * peak, widest.peak)), max(self.rms, min(AMPLE * rms, widest.rms))
        )


AMPLE = 4.0
"""Sums inside a node round more than once, and other sums than the ones that were tried."""
MOST_WIDENED = 20.0
"""An output that needs a tolerance wider than so many times the usual one is called different."""


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
    ok: bool = True
    worst: Element | None = None
    """The element to blame where ``ok`` is false, else the one that is furthest off; ``None`` where all are equal."""
    reason: str | None = None
    """Why ``ok`` is false, in one sentence that begins with the output's name."""
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

    @property
    def rms(self) -> float:
        """Root of the mean squared error, relative to that of the output."""
        return math.sqrt(_ratio(self.noise, self.signal))

    def fail(self, what: str) -> None:
        """Record the first thing that is wrong."""
        if self.ok:
            self.ok, self.reason = False, f"output {self.name!r}{what}"

    def add(
        self, a: Any, b: Any, tolerance: Tolerance | None, feed: int = 0, at: tuple[int, ...] = ()
    ) -> None:
        """Compare what two models gave: arrays, lists or dictionaries of them, or ``None``.

        Where ``tolerance`` is ``None`` only types and shapes must be equal.
        """
        if isinstance(a, dict) and isinstance(b, dict):
            self._keys(a, b, at)
            a, b = [a[k] for k in sorted(a)], [b[k] for k in sorted(a) if k in b]
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            if len(a) != len(b):
                self.fail(f"{_at(at)}: {len(a)} elements became {len(b)}")
            for i, (one, other) in enumerate(zip(a, b, strict=False)):
                self.add(one, other, tolerance, feed, (*at, i))
        elif a is None or b is None:
            if a is not b:
                self.fail(f"{_at(at)}: {_kind(a)} became {_kind(b)}")
        else:
            self._arrays(np.asarray(a), np.asarray(b), tolerance, feed, at)

    def _keys(self, a: dict[Any, Any], b: dict[Any, Any], at: tuple[int, ...]) -> None:
        odd = sorted(a.keys() ^ b.keys())
        if odd:
            self.fail(f"{_at(at)}: key {odd[0]!r} is in one of the models only")

    def _arrays(
        self, a: Array, b: Array, tolerance: Tolerance | None, feed: int, at: tuple[int, ...]
    ) -> None:
        if a.dtype.kind in "OSU" and b.dtype.kind in "OSU":
            a, b = a.astype(object), b.astype(object)
        if a.shape != b.shape:
            self.fail(f"{_at(at)}: shape {list(a.shape)} became {list(b.shape)}")
            return
        if a.dtype != b.dtype:
            self.fail(f"{_at(at)}: {a.dtype} became {b.dtype}")
        if tolerance is None or a.size == 0:
            return
        if a.dtype == object or b.dtype == object or (_whole(a) and _whole(b)):
            different = np.asarray(a != b)
            if different.any():
                self._blame(int(different.argmax()), a, b, feed, at)
            tolerance = Tolerance(math.inf, math.inf)
        if a.dtype != object and b.dtype != object:
            self._measure(a, b, tolerance, feed, at)

    def _blame(self, flat: int, a: Array, b: Array, feed: int, at: tuple[int, ...], more: str = "") -> None:
        if self.ok:
            self.worst = _element(flat, a, b, feed, at)
            self.fail(f"{self.worst}{more}")

    def _measure(self, a: Array, b: Array, limit: Tolerance, feed: int, at: tuple[int, ...]) -> None:
        x, y = _wide(a), _wide(b)
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            odd = ~finite & ~((np.isnan(x) & np.isnan(y)) | (x == y))
            if odd.any():
                self.max_abs = self.max_rel = math.inf
                self._blame(int(odd.argmax()), a, b, feed, at)
            x, y = np.where(finite, x, 0), np.where(finite, y, 0)
        error = np.abs(y - x)
        worst = int(error.argmax())
        largest, scale = float(error.flat[worst]), float(np.abs(x).max())
        signal, noise = _energy(x), _energy(error)
        self.signal, self.noise, self.power = (
            self.signal + signal,
            self.noise + noise,
            self.power + _energy(y),
        )
        self.product += float(np.vdot(x, y).real)
        relative, rms = _ratio(largest, scale), math.sqrt(_ratio(noise, signal))
        if self.ok and largest > 0 and relative >= self.max_rel:
            self.worst = _element(worst, a, b, feed, at)
        self.max_abs, self.max_rel = max(self.max_abs, largest), max(self.max_rel, relative)
        if relative > limit.peak:
            by = f", {relative:.2g} of its largest element (rounding does at most {limit.peak:.0e})"
            self._blame(worst, a, b, feed, at, by if limit.peak else "")
        elif rms > limit.rms:
            by = f", worst of many: the error is {rms:.2g} of the output (rounding does at most {limit.rms:.0e})"
            self._blame(worst, a, b, feed, at, by)

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
