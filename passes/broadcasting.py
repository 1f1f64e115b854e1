"""Which shape operands broadcast to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from graphopt.query import same_dim

Dim = int | ir.SymbolicDim


def broadcast(shapes: Iterable[Sequence[Dim] | ir.Shape | None]) -> list[Dim] | None:
    """Return the shape that ``shapes`` broadcast to at every run; ``None`` where that is not known.

    Where a number other than 1 meets a symbol it decides, since the symbol is that number, or 1; two different
    symbols leave open which of them is 1.
    """
    known = [list(shape) if shape is not None else None for shape in shapes]
    axes: list[Dim] = []
    for shape in known:
        if shape is None:
            return None
        axes = [*[1] * (len(shape) - len(axes)), *axes]
        for axis in range(-len(shape), 0):
            met = _met(axes[axis], shape[axis])
            if met is None:
                return None
            axes[axis] = met
    return axes


def _met(m: Dim, n: Dim) -> Dim | None:
    if isinstance(m, int) and m != 1:
        return m if not isinstance(n, int) or n in (1, m) else None
    if m == 1 or (isinstance(n, int) and n != 1):
        return n
    return m if n == 1 or same_dim(m, n) else None


def gives(values: Iterable[ir.Value | None], wanted: ir.Value) -> bool:
    """Return whether ``values`` are known to broadcast to the shape of ``wanted``."""
    return is_shape(broadcast([None if value is None else value.shape for value in values]), wanted)


def is_shape(shape: Sequence[Dim] | None, wanted: ir.Value) -> bool:
    """Return whether ``shape`` is known to be that of ``wanted``."""
    if shape is None or wanted.shape is None or len(shape) != len(wanted.shape):
        return False
    return all(same_dim(m, n) for m, n in zip(shape, wanted.shape, strict=True))
