"""Shapes in numbers: symbols get sizes, and shapes that a model does not bring are inferred on a clone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..errors import ModelError, UsageError
from ..interfaces import place
from ..query import all_nodes, optional, scalar, subgraphs
from .macs import Shape, Unknown

if TYPE_CHECKING:
    from .shapes import Shapes

ENDLESS = 2**31
"""A loop whose limit is as large ends by its condition: exporters write the largest integer there."""


class Sizes:
    """Shapes in numbers: symbols of the inputs have the sizes that were asked for, or 1."""

    def __init__(self, model: ir.Model, dims: Mapping[str, int]) -> None:
        self.assumed: dict[str, int] = {}
        self._bound = dict(dims)
        self._cache: dict[str, int | None] = {}
        known = {symbol for value in model.graph.inputs for symbol in _symbols(value)}
        for symbol, size in dims.items():
            if symbol not in known:
                have = ", ".join(sorted(known)) or "none"
                raise UsageError(f"dims: no input has a dimension called {symbol!r}; those there are: {have}")
            if not isinstance(size, int) or size < 1:
                raise UsageError(f"dims: the size of {symbol} must be a positive integer, got {size!r}")
        for value in model.graph.inputs:
            for symbol in _symbols(value):
                if symbol not in self._bound:
                    self._bound[symbol] = self.assumed[symbol] = 1

    def __call__(self, value: ir.Value | None) -> Shape:
        """Return the shape of ``value``.

        Raises:
            Unknown: it, or a dimension of it, is not known.
        """
        if value is None or value.shape is None:
            if value is not None and value.const_value is not None:
                return tuple(int(dim) for dim in value.const_value.shape.numpy())
            raise Unknown("no shape")
        return tuple(self._size(value, axis, dim) for axis, dim in enumerate(value.shape))

    def _size(self, value: ir.Value, axis: int, dim: int | ir.SymbolicDim) -> int:
        if isinstance(dim, int):
            return dim
        name = dim.value if dim.value is not None else f"{value.name}[{axis}]"
        if name not in self._cache:
            self._cache[name] = self._bound[name] if name in self._bound else self._evaluate(dim)
        size = self._cache[name]
        if size is None:
            raise Unknown(f"dimension {name}")
        return size

    def _evaluate(self, dim: ir.SymbolicDim) -> int | None:
        try:
            size = dim.evaluate(self._bound)
        except (ValueError, TypeError, ArithmeticError):
            return None
        return size if isinstance(size, int) and size >= 0 else None

    def settle(self, value: ir.Value, stored: ir.Shape | None) -> ir.Shape | None:
        """Return the shape of ``value`` in numbers: as it was inferred, else as ``stored``, else as far as is known."""
        inferred = value.shape
        for shape in (inferred, stored):
            if shape is not None:
                value.shape = shape
                try:
                    return ir.Shape(self(value))
                except Unknown:
                    pass
        shape = inferred if inferred is not None else stored
        return self.assume(value, shape) if shape is not None else None

    def assume(self, value: ir.Value, shape: ir.Shape) -> ir.Shape:
        """Return ``shape`` in numbers, 1 where nothing is known, which is noted."""
        sizes = []
        for axis, dim in enumerate(shape):
            try:
                sizes.append(self._size(value, axis, dim))
            except Unknown:
                assert not isinstance(dim, int)
                self.assumed[dim.value or f"{value.name}[{axis}]"] = 1
                sizes.append(1)
        return ir.Shape(sizes)

    def trips(self, node: ir.Node) -> int:
        """Return how often the body of ``node`` runs, at most; 1 where nobody knows, which is noted."""
        if node.op_type == "Loop" and (limit := scalar(optional(node, 0))) is not None and limit < ENDLESS:
            return max(0, int(limit))
        if node.op_type == "Scan" and (scanned := _scanned(node)):
            axes = node.attributes.get_ints("scan_input_axes", [0] * len(scanned))
            try:
                return self(node.inputs[-len(scanned)])[axes[0]]
            except (Unknown, IndexError):
                pass
        if node.op_type in ("Loop", "Scan"):
            self.assumed[f"runs of {place(node)}"] = 1
        return 1


def _symbols(value: ir.Value) -> Iterator[str]:
    """Yield the names of the open dimensions of an input; one without a name is ``input[axis]``."""
    for axis, dim in enumerate(value.shape or ()):
        if not isinstance(dim, int):
            yield dim.value if dim.value is not None else f"{value.name}[{axis}]"


def _scanned(node: ir.Node) -> list[ir.Value | None]:
    count = node.attributes.get_int("num_scan_inputs", 0)
    return list(node.inputs[-count:]) if count else []


def shaped(model: ir.Model, sizes: Sizes) -> ir.Model:
    """Return a clone of ``model``, its functions inlined and its shapes inferred, in numbers."""
    from onnx_ir.passes import PreconditionError
    from onnx_ir.passes.common import InlinePass

    from ..model import clone
    from .shapes import Shapes

    copy = clone(model)
    if copy.functions:
        for node in all_nodes(copy):
            node.name = place(node)
        try:
            InlinePass()(copy)
        except PreconditionError as error:
            raise ModelError(f"functions of the model: {error}; break the circle") from error
    for value in copy.graph.inputs:
        if value.shape is not None:
            value.shape = sizes.assume(value, value.shape)
    _infer(copy.graph, Shapes(copy), sizes)
    return copy


def _infer(graph: ir.Graph, shapes: Shapes, sizes: Sizes) -> None:
    for node in graph:
        inner = list(subgraphs(node))
        for body in inner:
            _enter(node, body)
            _infer(body, shapes, sizes)
        stored = [value.shape for value in node.outputs]
        for value, shape in zip(node.outputs, stored, strict=True):
            if shape is not None and not shape.is_static():
                value.shape = None
        shapes.infer(node)
        if inner:
            _leave(node, inner[0], sizes)
        for value, shape in zip(node.outputs, stored, strict=True):
            if value.shape is None or not value.shape.is_static():
                value.shape = sizes.settle(value, shape)


def _enter(node: ir.Node, body: ir.Graph) -> None:
    """Tell the inputs of a loop's body what the loop hands to them, where they do not know."""
    if node.op_type == "Loop":
        pairs = [(value, outer, None) for value, outer in zip(body.inputs[2:], node.inputs[2:], strict=False)]
    elif node.op_type == "Scan":
        scanned = len(_scanned(node))
        axes = node.attributes.get_ints("scan_input_axes", [0] * scanned)
        sliced = [None] * (len(body.inputs) - scanned) + list(axes)
        pairs = list(zip(body.inputs, node.inputs, sliced, strict=False))  # type: ignore[arg-type]
    else:
        return
    for value, outer, axis in pairs:
        if outer is None or outer.shape is None:
            continue
        value.type = value.type or outer.type
        if value.shape is None or not value.shape.is_static():
            kept = list(outer.shape)
            if axis is not None and kept:
                del kept[axis % len(kept)]
            value.shape = ir.Shape(kept)


def _leave(node: ir.Node, body: ir.Graph, sizes: Sizes) -> None:
    """Give the outputs of a node with subgraphs the shapes that its first one makes, where they have none."""
    made = list(body.outputs)[1 if node.op_type == "Loop" else 0 :]
    states = {"Loop": len(node.inputs) - 2, "Scan": len(node.inputs) - len(_scanned(node))}.get(node.op_type)
    for i, (value, inner) in enumerate(zip(node.outputs, made, strict=False)):
        value.type = value.type or inner.type
        if value.shape is None and inner.shape is not None:
            front = [sizes.trips(node)] if states is not None and i >= states else []
            value.shape = ir.Shape([*front, *inner.shape])
