"""Follow a tensor back through reshapes and transposes, by the names of its axes instead of their numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import Decline
from graphopt.query import attribute, axis_of, is_op, scalar, used_once

BATCH, HEADS, ROWS, WIDTH, PACKED, KEYS = "batch", "heads", "rows", "width", "packed", "keys"
"""What an axis counts; ``rows`` is the sequence, ``packed`` tells Q, K and V apart, ``keys`` are the rows of K."""

Groups = tuple[tuple[str, ...], ...]
"""For each dimension of a tensor, from the first to the last, the axes that it holds, the slowest first."""

_NAME = re.compile(r"[A-Za-z_][\w.]*|\d+")


@dataclass(frozen=True)
class Size:
    """A product of a number and of symbols: ``12*batch``."""

    number: int = 1
    symbols: tuple[str, ...] = ()

    def __mul__(self, other: Size) -> Size:
        return Size(self.number * other.number, tuple(sorted(self.symbols + other.symbols)))

    @classmethod
    def of(cls, dim: int | ir.SymbolicDim) -> Size | None:
        """Read a dimension; ``None`` where it has no name."""
        if isinstance(dim, int):
            return cls(dim)
        if dim.value is None:
            return None
        return _quotient(dim.value) or _product(dim.value) or cls(1, (dim.value,))


def _product(text: str) -> Size | None:
    factors = [factor.strip() for factor in text.strip("()").split("*")]
    if not all(_NAME.fullmatch(factor) for factor in factors):
        return None
    number = math.prod(int(factor) for factor in factors if factor.isdecimal())
    return Size(number, tuple(sorted(factor for factor in factors if not factor.isdecimal())))


def _quotient(text: str) -> Size | None:
    """Return ``a`` of ``(a*b)//b``."""
    above, _, below = text.strip("()").partition("//")
    dividend, divisor = _product(above), _product(below)
    if dividend is None or divisor is None or divisor.number < 1 or dividend.number % divisor.number:
        return None
    left = Counter(dividend.symbols)
    left.subtract(divisor.symbols)
    if min(left.values(), default=0) < 0:
        return None
    return Size(dividend.number // divisor.number, tuple(sorted(left.elements())))


def product(sizes: Iterable[Size]) -> Size:
    """Return the size of several axes in one dimension."""
    return math.prod(sizes, start=Size())


def sizes_of(value: ir.Value) -> list[Size]:
    """Return the sizes of a tensor's dimensions.

    Raises:
        Decline: one of them is not known.
    """
    sizes = [Size.of(dim) for dim in value.shape] if value.shape is not None else [None]
    if any(size is None for size in sizes):
        raise Decline(f"the shape of {value.name} is not known")
    return [size for size in sizes if size is not None]


@dataclass(frozen=True)
class View:
    """A tensor that holds the elements of another one, in another order or shape, each divided by ``factor``."""

    value: ir.Value
    groups: Groups
    factor: float = 1.0
    index: int = 0
    """Where along ``packed`` the elements lie, if there is such an axis."""

    @property
    def order(self) -> tuple[str, ...]:
        """All axes, the slowest first."""
        return tuple(name for group in self.groups for name in group)


class Axes:
    """The axes of one operand of attention, and how long each is. Those of length 1 are left out everywhere."""

    def __init__(self, sizes: Mapping[str, Size]) -> None:
        self.sizes = dict(sizes)

    def __getitem__(self, name: str) -> Size:
        return self.sizes[name]

    def kept(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return ``names`` without what has length 1."""
        return tuple(name for name in names if self.sizes[name] != Size())

    def groups(self, *groups: Sequence[str]) -> Groups:
        """Return ``groups`` without what has length 1."""
        return tuple(self.kept(group) for group in groups)

    def regroup(self, order: Iterable[str], dims: Iterable[Size]) -> Groups | None:
        """Return how the axes in ``order`` fill dimensions ``dims``; ``None`` where one would be cut."""
        left = list(order)
        groups = []
        for dim in dims:
            group: list[str] = []
            while product(self.sizes[name] for name in group) != dim:
                if not left:
                    return None
                group.append(left.pop(0))
            groups.append(tuple(group))
        return tuple(groups) if not left else None

    def path(self, view: View) -> Iterator[View]:
        """Yield ``view`` and, one after the other, the views that it is made of."""
        step: View | None = view
        while step is not None:
            yield step
            step = self._before(step)

    def _before(self, view: View) -> View | None:
        node = view.value.producer()
        if node is None or node.domain != "":
            return None
        x = node.inputs[0] if node.inputs else None
        if x is None:
            return None
        if node.op_type == "Transpose":
            perm: list[int] = attribute(node, "perm", list(reversed(range(len(view.groups)))))
            places = sorted(range(len(perm)), key=perm.__getitem__)
            return View(x, tuple(view.groups[i] for i in places), view.factor, view.index)
        if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"):
            return self._reshaped(view, x)
        if node.op_type in ("Mul", "Div"):
            return _unscaled(view, node)
        return self._unpacked(view, node) if node.op_type == "Gather" else None

    def _reshaped(self, view: View, x: ir.Value) -> View | None:
        sizes = [Size.of(dim) for dim in x.shape] if x.shape is not None else [None]
        if any(size is None for size in sizes):
            return None
        groups = self.regroup(view.order, [size for size in sizes if size is not None])
        return View(x, groups, view.factor, view.index) if groups is not None else None

    def _unpacked(self, view: View, node: ir.Node) -> View | None:
        """Return the tensor that ``Gather`` took one slice of."""
        x, index = node.inputs[0], scalar(node.inputs[1])
        if x is None or x.shape is None or index is None or PACKED in view.order or node.inputs[1] is None:
            return None
        axis = axis_of(attribute(node, "axis", 0), len(x.shape))
        parts = x.shape[axis]
        if not isinstance(parts, int) or parts < 2 or node.inputs[1].shape != ():
            return None
        self.sizes[PACKED] = Size(parts)
        groups = (*view.groups[:axis], (PACKED,), *view.groups[axis:])
        return View(x, groups, view.factor, int(index) % parts)


def scaled(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """Return (x, c) of a ``Mul(x, c)`` or ``Div(x, 1/c)`` with one number c."""
    if not is_op(node, "Mul", "Div") or node is None:
        return None
    for x, c in (node.inputs, reversed(node.inputs)) if node.op_type == "Mul" else (node.inputs,):
        number = scalar(c)
        if x is None or number is None or isinstance(number, bool) or c is None or c.shape is None:
            continue
        if len(c.shape) and (x.shape is None or len(c.shape) > len(x.shape)):
            continue
        factor = float(number) if node.op_type == "Mul" else 1.0 / number if number else 0.0
        if factor and math.isfinite(factor):
            return x, factor
    return None


def _unscaled(view: View, node: ir.Node) -> View | None:
    found = scaled(node)
    if found is None or not used_once(view.value):
        return None
    return View(found[0], view.groups, view.factor * found[1], view.index)
