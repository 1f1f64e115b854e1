"""What of a node must change with the sizes of axes: attributes, shapes, bounds, indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from .atoms import Labels


class _OneAxis:
    axis: Labels

    @property
    def all_axes(self) -> tuple[Labels, ...]:
        """What decides whether anything changes."""
        return (self.axis,)


class _Axes:
    axes: tuple[Labels, ...]

    @property
    def all_axes(self) -> tuple[Labels, ...]:
        """What decides whether anything changes."""
        return self.axes


@dataclass(frozen=True)
class Count(_OneAxis):
    """An attribute is the size of an axis: ``group``, ``hidden_size``, ``num_heads``."""

    node: ir.Node
    attribute: str
    axis: Labels


@dataclass(frozen=True)
class Counts(_Axes):
    """An attribute lists the sizes of axes: ``split``, ``qkv_hidden_sizes``."""

    node: ir.Node
    attribute: str
    axes: tuple[Labels, ...]


@dataclass(frozen=True)
class Fix(_OneAxis):
    """An attribute whose default depends on sizes is written out as it was: ``scale``."""

    node: ir.Node
    attribute: str
    value: float
    axis: Labels


@dataclass(frozen=True)
class Length(_OneAxis):
    """Element ``position`` of an input, a constant or computed list of sizes, is the size of an axis."""

    node: ir.Node
    input: int
    position: int
    axis: Labels


@dataclass(frozen=True)
class Lengths(_Axes):
    """An input, which may be missing, lists the sizes of all these axes: the parts of a Split."""

    node: ir.Node
    input: int
    axes: tuple[Labels, ...]


@dataclass(frozen=True)
class Bound(_OneAxis):
    """Element ``position`` of an input is a place along an axis: where a Slice begins or ends."""

    node: ir.Node
    input: int
    position: int
    axis: Labels


@dataclass(frozen=True)
class Indices(_OneAxis):
    """An input holds places along ``axis``; those that are gone along ``made``, its own axes, are left out."""

    node: ir.Node
    input: int
    axis: Labels
    made: tuple[Labels, ...]


Edit = Count | Counts | Fix | Length | Lengths | Bound | Indices
