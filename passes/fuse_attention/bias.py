"""Add up what is added to the scores, in the shape that fused attention reads: (batch, heads, rows, keys)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape

from .finite import FINITE, bound
from .layout import BATCH, HEADS, KEYS, ROWS, Axes, Size, product
from .scores import Scores, Term

ONE = Size()


@dataclass(frozen=True)
class Part:
    """A tensor to add, and its dimensions: of those that no one knows, broadcasting shows that they fit."""

    value: ir.Value
    dims: tuple[Size | None, ...]


@dataclass
class Bias:
    """Records the sum of what is added to the scores.

    ``axes`` are those of the scores; ``query`` has ``batch`` at dimension 0 and ``rows`` at 1, ``key`` the keys at
    ``key_dim``: sizes that show at a run only are read there.
    """

    tape: Tape
    axes: Axes
    dtype: ir.DataType
    query: ir.Value
    key: ir.Value
    key_dim: int

    def record(self, scores: Scores) -> ir.Value | None:
        """Return the sum as (batch or 1, heads or 1, rows, keys)."""
        if not scores.terms:
            return None
        fillers = [t.filler for t in scores.terms if t.kept_where is not None]
        if len(scores.terms) > 1 and any(map(math.isfinite, fillers)) and not self.finite(scores):
            raise Decline("its masks may add up to infinity")
        window = next((t.dims[:-3] for t in scores.terms if self._is_windowed(t)), None)
        parts = [self._windowed(term, window) if window else self._four(term) for term in scores.terms]
        total = functools.reduce(self._sum, parts)
        return self._tiled(total, window) if window else self._filled(total)

    def finite(self, scores: Scores) -> bool:
        """Return whether no run makes the sum infinite or not a number."""
        total = self._bound(scores)  # a little more rounds to the largest number
        return total is not None and total <= FINITE.get(self.dtype, 0.0) * (1 + 2.0**-26)

    def _bound(self, scores: Scores) -> float | None:
        total = 0.0
        for term in scores.terms:
            largest = abs(term.filler) if term.kept_where is not None else bound(term.value)
            if largest is None:
                return None
            total += largest if term.kept_where is not None else largest * abs(term.factor)
        return total

    def above_lowest(self, scores: Scores, total: ir.Value | None) -> ir.Value | None:
        """Keep a finite sum off the lowest number, which onnxruntime's ``Attention`` takes for -inf.

        A query that sees no key averages the values where the mask is any number, and gives 0 where it is that one.
        """
        largest, number = self._bound(scores), FINITE.get(self.dtype)
        if total is None or largest is None or number is None or largest < number * (1 - 2.0**-10):
            return total
        kind = self.dtype.numpy()
        least = np.nextafter(np.array(-number, kind), np.array(0, kind))
        return self.tape.op("Max", [total, self.tape.constant(least, "lowest")])

    def _is_windowed(self, term: Term) -> bool:
        """Return whether ``batch`` takes several dimensions of the scores where ``term`` is added."""
        *lead, heads, rows, keys = term.dims
        ours = [self.axes[n] for n in (BATCH, HEADS, ROWS, KEYS)]
        return len(lead) > 1 and [product(lead), heads, rows, keys] == ours

    def _windowed(self, term: Term, window: Sequence[Size]) -> Part:
        """Return ``term`` in the shape (*window, heads, rows, keys), where it may have 1 anywhere."""
        if self._is_windowed(term):
            if term.dims[:-3] != window:
                raise Decline(f"{term.value.name} is added to other windows than the term before")
            return self._lifted(self._part(term), len(window) + 3)
        part = self._four(term)
        if part.dims[0] != ONE:
            raise Decline(f"{term.value.name} differs from batch to batch, beside a mask for windows")
        return self._lifted(part, len(window) + 3)

    def _four(self, term: Term) -> Part:
        """Return ``term`` in the shape (batch, heads, rows, keys), where it may have 1 anywhere."""
        names = BATCH, HEADS, ROWS, KEYS
        groups = self.axes.regroup(self.axes.kept(names), term.dims)
        part = self._part(term)
        if groups == self.axes.groups(*((name,) for name in names)):
            return self._lifted(part, 4)
        if groups != self.axes.groups((BATCH, HEADS), (ROWS,), (KEYS,)):
            raise Decline(f"batch and heads are not told apart where {term.value.name} is added")
        if len(part.dims) < 3 or part.dims[0] == ONE:
            return self._lifted(part, 4)
        if self.axes[HEADS] != ONE:
            raise Decline(f"{term.value.name} holds batch and heads in one dimension")
        return Part(self._unsqueezed(part.value, [1]), (part.dims[0], ONE, *part.dims[1:]))

    def _part(self, term: Term) -> Part:
        """Return ``term`` as numbers to add."""
        value = term.value
        if value.shape is None:
            raise Decline(f"the rank of {value.name} is not known")
        aligned = term.dims[len(term.dims) - len(value.shape) :]
        sizes = zip(map(Size.of, value.shape), aligned, strict=True)
        dims = tuple(size if size in (ONE, there) else None for size, there in sizes)
        if term.kept_where is not None:
            zero = self.tape.constant(self._array(0.0), "zero")
            filler = self.tape.constant(self._array(term.filler), "filler")
            branches = (zero, filler) if term.kept_where else (filler, zero)
            return Part(self.tape.op("Where", [value, *branches]), dims)
        if term.factor == 1:
            return Part(value, dims)
        factor = self.tape.constant(self._array(term.factor), "factor")
        return Part(self.tape.op("Mul", [value, factor]), dims)

    def _array(self, number: float) -> np.ndarray[tuple[()], np.dtype[np.floating]]:
        return np.array(number, self.dtype.numpy())

    def _lifted(self, part: Part, rank: int) -> Part:
        missing = rank - len(part.dims)
        if not missing:
            return part
        return Part(self._unsqueezed(part.value, list(range(missing))), (ONE,) * missing + part.dims)

    def _unsqueezed(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        if self.tape.opset < 13:
            return self.tape.op("Unsqueeze", [value], {"axes": list(axes)})
        return self.tape.op("Unsqueeze", [value, self.tape.constant(np.array(axes, np.int64), "axes")])

    def _sum(self, a: Part, b: Part) -> Part:
        dims = tuple(_broadcast(m, n) for m, n in zip(a.dims, b.dims, strict=True))
        return Part(self.tape.op("Add", [a.value, b.value]), dims)

    def _filled(self, part: Part) -> ir.Value:
        """Repeat ``part`` along rows and keys where it has one for all; fused attention does not broadcast there."""
        wanted = self.axes[ROWS], self.axes[KEYS]
        if part.dims[2:] == wanted:
            return part.value
        rows, keys = (ONE if have == want else want for have, want in zip(part.dims[2:], wanted, strict=True))
        shape = self._shape([ONE, ONE, rows, keys], {rows: (self.query, 1), keys: (self.key, self.key_dim)})
        return self.tape.op("Expand", [part.value, shape])

    def _tiled(self, part: Part, window: Sequence[Size]) -> ir.Value:
        """Repeat ``part``, which differs from window to window, for each picture."""
        *_, heads, rows, keys = part.dims
        counts = [size.number for size in (heads, rows, keys) if size is not None and not size.symbols]
        if len(counts) != 3 or (rows, keys) != (self.axes[ROWS], self.axes[KEYS]):
            raise Decline(f"the size of {part.value.name} is not known")
        fixed = math.prod(size.number for size in window if not size.symbols)
        pictures = [size for size in window if size.symbols]
        if len(pictures) > 1:
            raise Decline(f"the number of windows in {part.value.name} is not known")
        shape = self._shape([*window, ONE, ONE, ONE], dict.fromkeys(pictures, (self.query, 0)), fixed)
        tiled = self.tape.op("Expand", [part.value, shape])
        return self.tape.op("Reshape", [tiled, self.tape.constant(np.array([-1, *counts]), "shape")])

    def _shape(
        self, dims: Sequence[Size], known_at: dict[Size, tuple[ir.Value, int]], divisor: int = 1
    ) -> ir.Value:
        """Record a shape tensor; sizes with symbols are ``known_at`` a dimension of a tensor, over ``divisor``."""
        pieces: list[ir.Value] = []
        read: dict[Size, ir.Value] = {}
        for symbolic, run in itertools.groupby(dims, lambda dim: bool(dim.symbols)):
            if symbolic:
                for dim in run:
                    read[dim] = read.get(dim) or self._size(*known_at[dim], divisor)
                    pieces.append(read[dim])
            else:
                pieces.append(self.tape.constant(np.array([dim.number for dim in run]), "shape"))
        return pieces[0] if len(pieces) == 1 else self.tape.op("Concat", pieces, {"axis": 0})

    def _size(self, value: ir.Value, dim: int, divisor: int) -> ir.Value:
        index = self.tape.constant(np.array([dim]), "index")
        size = self.tape.op("Gather", [self.tape.op("Shape", [value]), index])
        if divisor == 1:
            return size
        return self.tape.op("Div", [size, self.tape.constant(np.array([divisor]), "divisor")])


def _broadcast(m: Size | None, n: Size | None) -> Size | None:
    return n if m == ONE or (m is None and n != ONE) else m
