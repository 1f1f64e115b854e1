"""Fill in the types and shapes that the graph implies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import Pass, PassReport, Shapes
from graphopt.query import attribute, has_subgraphs, is_op, same_dim, subgraphs

if TYPE_CHECKING:
    from graphopt.context import Context

Description = tuple["ir.TypeProtocol | None", "ir.Shape | None"]
Dim = int | ir.SymbolicDim


class InferShapes(Pass):
    """Write down the type and shape of every value, as far as they follow from the inputs, in one sweep.

    What is declared stays, a dimension that is declared without a size is filled in, and the model's own symbols are
    used. Bodies of Loop and Scan learn the types of what is passed to them and the shapes of scanned slices; If, Loop
    and Scan learn from their bodies what holds whichever way they go: the dimensions in which the branches agree,
    and of a carried value those in which its start and its next value agree.

    Exact: no node changes. Source: ONNX, "Shape inference"; If-16, Loop-16, Scan-16. Classifiers, regressors and
    maps of ``ai.onnx.ml`` keep what is declared.
    """

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Sweep each graph from its start."""
        sweep = _Sweep(context.analysis(Shapes), context)
        for graph in (*(function.graph for function in model.functions.values()), model.graph):
            sweep.graph(graph)
        return sweep.report


class _Sweep:
    def __init__(self, shapes: Shapes, context: Context) -> None:
        self.shapes = shapes
        self.context = context
        self.report = PassReport()

    def graph(self, graph: ir.Graph) -> None:
        for node in graph:
            if has_subgraphs(node):
                self._control(node)
            elif not all(map(self._settled, node.outputs)):
                before = [(value.type, value.shape) for value in node.outputs]
                self.shapes.infer(node)
                self._account(node, node.outputs, before)
                if not _known(node):
                    self.report.decline(node, "nothing tells the shapes of what it gives")

    def _account(self, node: ir.Node, values: Sequence[ir.Value], before: Sequence[Description]) -> None:
        """Number what ``values`` gained over ``before`` as one rewrite, or take it back."""
        gained = [v.name or "?" for v, old in zip(values, before, strict=True) if self._gained(v, *old)]
        if gained and not self.context.admit(self.report, node, ", ".join(gained)):
            for value, (old_type, old_shape) in zip(values, before, strict=True):
                value.type, value.shape = old_type, old_shape

    def _gained(self, value: ir.Value, old_type: ir.TypeProtocol | None, old_shape: ir.Shape | None) -> bool:
        if value.type is not old_type and old_type is None:
            return True
        if value.shape is old_shape or value.shape is None:
            return False
        return old_shape is None or any(
            self._knows(new) > self._knows(old) for new, old in zip(value.shape, old_shape, strict=True)
        )

    def _settled(self, value: ir.Value) -> bool:
        """Return whether nothing is missing of type and shape of ``value``; an output that is left out needs none."""
        if value.name == "":
            return True
        return (
            value.type is not None and value.shape is not None and all(map(self.shapes.is_named, value.shape))
        )

    def _knows(self, dim: Dim) -> int:
        return 2 if isinstance(dim, int) else int(self.shapes.is_named(dim))

    def _control(self, node: ir.Node) -> None:
        """Tell the bodies of ``node`` what is passed to them, sweep them, and learn from what they give."""
        if any(attr.is_ref() for attr in node.attributes.values()):
            return
        for inner in subgraphs(node):
            before = [(value.type, value.shape) for value in inner.inputs]
            for value, description in zip(inner.inputs, _passed(node), strict=False):
                self._learn(value, description)
            self._account(node, inner.inputs, before)
            self.graph(inner)
        before = [(value.type, value.shape) for value in node.outputs]
        for value, description in zip(node.outputs, _given(node), strict=False):
            self._learn(value, description)
        self._account(node, node.outputs, before)

    def _learn(self, value: ir.Value, description: Description) -> None:
        """Fill in what is missing of type and shape of ``value``."""
        new_type, new_shape = description
        if value.type is None:
            value.type = new_type
        if value.shape is None or new_shape is None:
            value.shape = value.shape if new_shape is None else new_shape.copy()
        elif len(value.shape) == len(new_shape):
            dims = [
                n if self._knows(n) > self._knows(o) else o
                for n, o in zip(new_shape, value.shape, strict=True)
            ]
            if any(n is not o for n, o in zip(dims, value.shape, strict=True)):
                value.shape = ir.Shape(dims)


def _known(node: ir.Node) -> bool:
    """Return whether type and shape of all outputs that ``node`` has are known."""
    return all(v.name == "" or (v.type is not None and v.shape is not None) for v in node.outputs)


def _passed(node: ir.Node) -> Iterator[Description]:
    """Yield what each input of the body of a Loop or Scan is at every iteration."""
    if is_op(node, "Loop"):
        yield from ((ir.TensorType(dtype), None) for dtype in (ir.DataType.INT64, ir.DataType.BOOL))
        yield from ((value.type if value is not None else None, None) for value in node.inputs[2:])
    elif is_op(node, "Scan") and not _batched(node):
        carried = len(node.inputs) - attribute(node, "num_scan_inputs")
        axes: list[int] = attribute(node, "scan_input_axes", [])
        for i, value in enumerate(node.inputs):
            if value is None or i < carried:
                yield (value.type if value is not None else None), None
            else:
                axis = axes[i - carried] if i - carried < len(axes) else 0
                yield value.type, _without(value.shape, axis)


def _given(node: ir.Node) -> Iterator[Description]:
    """Yield what each output of an If, Loop or Scan is, however often its bodies run."""
    bodies = list(subgraphs(node))
    if is_op(node, "If"):
        for branches in zip(*(body.outputs for body in bodies), strict=False):
            yield _common(branches)
    elif is_op(node, "Loop"):
        carried = node.inputs[2:]
        for start, following in zip(carried, bodies[0].outputs[1:], strict=False):
            yield _common([start, following])
        for value in bodies[0].outputs[1 + len(carried) :]:
            yield value.type, _with(value.shape, 0, ir.SymbolicDim(None))
    elif is_op(node, "Scan") and not _batched(node):
        yield from _scanned(node, bodies[0])


def _scanned(node: ir.Node, body: ir.Graph) -> Iterator[Description]:
    count = attribute(node, "num_scan_inputs")
    carried = len(node.inputs) - count
    for start, following in zip(node.inputs[:carried], body.outputs, strict=False):
        yield _common([start, following])
    axes: list[int] = attribute(node, "scan_output_axes", [])
    source = node.inputs[carried]
    axis = (attribute(node, "scan_input_axes", None) or [0])[0]
    known = source is not None and source.shape is not None and -len(source.shape) <= axis < len(source.shape)
    length = (
        source.shape[axis]
        if known and source is not None and source.shape is not None
        else ir.SymbolicDim(None)
    )
    for i, value in enumerate(body.outputs[carried:]):
        yield value.type, _with(value.shape, axes[i] if i < len(axes) else 0, length)


def _batched(node: ir.Node) -> bool:
    """Return whether a Scan is of opset 8, whose inputs have a batch axis."""
    return "num_scan_inputs" not in node.attributes or "directions" in node.attributes


def _common(values: Sequence[ir.Value | None]) -> Description:
    """Return what is true of all ``values``."""
    types = {value.type if value is not None else None for value in values}
    shapes = [value.shape if value is not None else None for value in values]
    known = [shape for shape in shapes if shape is not None]
    shape = None
    if len(known) == len(shapes) and len({len(s) for s in known}) == 1:
        shape = ir.Shape(
            [
                dims[0] if all(same_dim(dims[0], d) for d in dims) else None
                for dims in zip(*known, strict=True)
            ]
        )
    return (types.pop() if len(types) == 1 else None), shape


def _without(shape: ir.Shape | None, axis: int) -> ir.Shape | None:
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    dims = list(shape)
    del dims[axis]
    return ir.Shape(dims)


def _with(shape: ir.Shape | None, axis: int, dim: Dim) -> ir.Shape | None:
    if shape is None or not -len(shape) - 1 <= axis <= len(shape):
        return None
    dims = list(shape)
    dims.insert(axis % (len(shape) + 1), dim)
    return ir.Shape(dims)
