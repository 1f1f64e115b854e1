"""Look at several values of a model together, position by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt import Context, Names, clone
from graphopt.calibration import observe

Array = np.ndarray[Any, Any]


class Rows(Protocol):
    """Sees values of one sample as (positions, channels of all values, one value behind the other)."""

    def update(self, array: Array) -> None:
        """Take in the positions of one sample."""


class _AsRows:
    """Brings the channels to the back."""

    def __init__(self, axis: int, rows: Rows) -> None:
        self.axis, self.rows = axis, rows

    def update(self, array: Array) -> None:
        moved = np.moveaxis(array, self.axis, -1)
        self.rows.update(moved.reshape(-1, moved.shape[-1]))


def observe_together(
    model: ir.Model, wanted: Mapping[tuple[ir.Value, ...], tuple[int, Rows]], context: Context, what: str
) -> None:
    """Show the values of each key to its observer, joined along an axis: positions as rows."""
    joined = clone(model)
    names = Names(joined)
    known = {v.name: v for v in (*joined.graph.inputs, *(v for node in joined.graph for v in node.outputs))}
    observers = {}
    for values, (axis, rows) in wanted.items():
        node = ir.node("Concat", [known[value.name] for value in values], {"axis": axis})
        made = node.outputs[0]
        made.name, made.type = names.fresh("together"), values[0].type
        joined.graph.append(node)
        observers[made.name] = _AsRows(axis, rows)
    observe(
        joined, observers, Context(joined, calibration=data(context), progress=context.progress), what=what
    )


def data(context: Context) -> Sequence[Mapping[str, Any]] | Any:
    """Return the calibration data, or else the sample inputs."""
    return context.calibration if context.calibration is not None else context.samples


class Influence:
    """One minus the mean cosine between two values, position by position.

    Source: Men et al. 2024 (arXiv:2403.03853), block influence.
    """

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0

    def update(self, array: Array) -> None:
        """Take in rows of x and y."""
        self.count += len(array)
        self.total += float(cosines(*np.split(array, 2, 1)).sum())

    @property
    def value(self) -> float:
        """From 0, where the directions are the same, to 2."""
        return 1 - self.total / max(self.count, 1)


def cosines(a: Array, b: Array) -> Array:
    """Return the cosine of each row of one with that of the other; 1 where both are zeros."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    dot, size = np.einsum("rc,rc->r", a, b), np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    equal = (a == b).all(1).astype(np.float64)
    found: Array = np.divide(dot, size, out=equal, where=size > 0)
    return found


class Sample:
    """Keeps rows of all samples, each with the same probability, in their order."""

    def __init__(self, most: int, limit_bytes: int, seed: int) -> None:
        self.most, self.limit_bytes = most, limit_bytes
        self._random = np.random.default_rng(seed)
        self._keys: Array = np.zeros(0)
        self.rows: Array = np.zeros((0, 0), np.float32)

    def update(self, array: Array) -> None:
        """Take in rows."""
        new = np.asarray(array, np.float32)
        keys = np.concatenate([self._keys, self._random.random(len(new))])
        limit = min(self.most, self.limit_bytes // max(new[:1].nbytes, 1))
        kept = np.sort(np.argsort(keys)[:limit])
        rows = np.concatenate([self.rows, new]) if self.rows.size else new
        self._keys, self.rows = keys[kept], rows[kept]
