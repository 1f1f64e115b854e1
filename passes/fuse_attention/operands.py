"""Bring queries, keys and values into the layout that fused attention reads: (batch, rows, heads * width)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape

from .layout import BATCH, HEADS, PACKED, ROWS, WIDTH, Axes, Groups, View, product

TOKENS = (BATCH, ROWS, HEADS, WIDTH)
"""The order of the elements in the layout that fused attention reads."""


@dataclass
class Operand:
    """Queries, keys or values, and all the tensors that they are rearranged from."""

    axes: Axes
    path: list[View]

    @classmethod
    def of(cls, value: ir.Value, axes: Axes, *groups: Sequence[str], factor: float = 1.0) -> Operand:
        """Follow ``value``, whose dimensions hold ``groups``, back as far as it is only rearranged."""
        return cls(axes, list(axes.path(View(value, axes.groups(*groups), factor))))

    @property
    def by_tokens(self) -> View | None:
        """The farthest tensor in the order of :data:`TOKENS`, but for Q, K, V that lie side by side in it."""
        order = self.axes.kept(TOKENS)
        fitting = [view for view in self.path if tuple(n for n in view.order if n != PACKED) == order]
        return fitting[-1] if fitting else None

    @property
    def by_heads(self) -> View | None:
        """The farthest tensor of shape (batch, heads, rows, width)."""
        groups = self.axes.groups((BATCH,), (HEADS,), (ROWS,), (WIDTH,))
        fitting = [view for view in self.path if view.groups == groups]
        return fitting[-1] if fitting else None

    def unless_packed(self) -> Operand:
        """Return the same without the tensors that hold other operands too."""
        return Operand(self.axes, [view for view in self.path if PACKED not in view.order])

    @property
    def best(self) -> View:
        """The tensor to read: one in the right order, else the one that everything is rearranged from."""
        return self.by_tokens or self.path[-1]


@dataclass
class Rows:
    """Records operands in the layout (batch, rows, heads * width); what is cut into several is cut once."""

    tape: Tape
    _parts: dict[tuple[ir.Value, Groups], tuple[list[ir.Value], Groups]] = field(default_factory=dict)

    def record(self, axes: Axes, view: View) -> ir.Value:
        """Return ``view`` in that layout."""
        value, groups = self._part(axes, view) if PACKED in view.order else (view.value, view.groups)
        value, groups = self._ordered(axes, value, groups, TOKENS)
        return self._reshaped(axes, value, groups, axes.groups((BATCH,), (ROWS,), (HEADS, WIDTH)))

    def _part(self, axes: Axes, view: View) -> tuple[ir.Value, Groups]:
        """Return what lies at ``view.index`` along the packed axis."""
        key = view.value, view.groups
        if key not in self._parts:
            self._parts[key] = self._split(axes, view)
        parts, groups = self._parts[key]
        return parts[view.index], groups

    def _split(self, axes: Axes, view: View) -> tuple[list[ir.Value], Groups]:
        before = view.order[view.order.index(PACKED) + 1] if view.order[-1] != PACKED else None
        target = [n for name in TOKENS for n in ([PACKED, name] if name == before else [name])]
        value, groups = self._ordered(axes, view.value, view.groups, target if before else view.order)
        dim = next(i for i, group in enumerate(groups) if PACKED in group)
        if groups[dim][0] != PACKED:
            cut = groups[dim].index(PACKED)
            apart = (*groups[:dim], groups[dim][:cut], groups[dim][cut:], *groups[dim + 1 :])
            value, groups, dim = self._reshaped(axes, value, groups, apart), apart, dim + 1
        size, count = product(axes[n] for n in groups[dim][1:]), axes[PACKED].number
        if size.symbols:
            raise Decline(f"the size of the parts of {value.name} is not known")
        if self.tape.opset < 13:
            lengths = ir.AttrInt64s("split", [size.number] * count)
            along = ir.AttrInt64("axis", dim)
            parts = self.tape.op_multi_out(
                "Split", [value], {"axis": along, "split": lengths}, num_outputs=count
            )
        else:
            sizes = self.tape.constant(np.full(count, size.number, np.int64), "parts")
            parts = self.tape.op_multi_out("Split", [value, sizes], {"axis": dim}, num_outputs=count)
        return list(parts), tuple(tuple(n for n in group if n != PACKED) for group in groups)

    def _ordered(
        self, axes: Axes, value: ir.Value, groups: Groups, target: Sequence[str]
    ) -> tuple[ir.Value, Groups]:
        """Return ``value`` with its axes in the order of ``target``."""
        order = tuple(n for group in groups for n in group)
        wanted = [n for n in target if n in order]
        if list(order) == wanted:
            return value, groups
        filled = [group for group in groups if group]
        if [n for group in sorted(filled, key=lambda g: wanted.index(g[0])) for n in group] != wanted:
            each = tuple((n,) for n in order)
            value, groups = self._reshaped(axes, value, groups, each), each
        places = sorted(range(len(groups)), key=lambda i: wanted.index(groups[i][0]) if groups[i] else -1)
        moved = self.tape.op("Transpose", [value], {"perm": places})
        return moved, tuple(groups[i] for i in places)

    def _reshaped(self, axes: Axes, value: ir.Value, groups: Groups, target: Groups) -> ir.Value:
        if groups == target:
            return value
        dims = []
        for i, group in enumerate(target):
            size = product(axes[n] for n in group)
            same = i < len(groups) and groups[i] == group
            dims.append(size.number if not size.symbols else 0 if same else -1)
        if dims.count(-1) > 1:
            raise Decline(f"the sizes of {value.name} show at a run only")
        shape = self.tape.constant(np.array(dims, np.int64), "shape")
        return self.tape.op("Reshape", [value, shape])

    def by_heads(self, axes: Axes, y: ir.Value, groups: Groups) -> ir.Value:
        """Return ``y``, of shape (batch, rows, heads * width), as ``groups``: (batch, heads, rows, width) or so."""
        tokens = axes.groups((BATCH,), (ROWS,), (HEADS, WIDTH))
        if [n for group in groups for n in group] == list(axes.kept(TOKENS)):
            return self._reshaped(axes, y, tokens, groups)
        four = axes.groups((BATCH,), (ROWS,), (HEADS,), (WIDTH,))
        y = self._reshaped(axes, y, tokens, four)
        y = self.tape.op("Transpose", [y], {"perm": [0, 2, 1, 3]})
        return self._reshaped(axes, y, axes.groups((BATCH,), (HEADS,), (ROWS,), (WIDTH,)), groups)
