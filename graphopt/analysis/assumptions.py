"""What shape inference takes for granted and a run need not grant: found, and taken back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from ..ops import op_info

Dim = int | ir.SymbolicDim
Contents = Callable[[ir.Value], "list[Dim] | None"]
Fresh = Callable[[], ir.SymbolicDim]

END = 2**31 - 1
"""From here on the end of a slice means the end of the axis."""
EXACT = {
    ir.DataType.INT64: 2**63,
    ir.DataType.INT32: 2**31,
    ir.DataType.FLOAT: 2**24,
    ir.DataType.DOUBLE: 2**53,
}
"""Types that sizes are computed in, and up to where they hold every integer."""


def certain(node: ir.Node | None, shape: ir.Shape, contents: Contents, fresh: Fresh) -> ir.Shape:
    """Return the inferred ``shape`` of what ``node`` makes, with a new symbol for each size that is a mere assumption.

    Two different symbols are broadcast as if they were equal, though one of them may be 1 at a run; and a slice of
    an axis of unknown size is taken to lie within it.
    """
    if node is None or node.domain != "":
        return shape
    if node.op_type == "Slice":
        doubtful = set(_beyond_the_end(node, contents))
    else:
        doubtful = set(_one_of_several(_broadcast(node, contents)))
    if not doubtful:
        return shape
    rank = len(shape)
    return ir.Shape([fresh() if axis - rank in doubtful else dim for axis, dim in enumerate(shape)])


def holds(node: ir.Node | None, value: ir.Value, elements: Sequence[Dim]) -> bool:
    """Return whether ``elements`` are as many as ``value`` has, and of numbers that ``node`` computes as integers."""
    shape = value.shape
    if shape is not None and shape.is_static() and math.prod(shape.numpy()) != len(elements):
        return False
    if node is None or value.dtype is None:
        return True
    if node.op_type == "Div" and not value.dtype.is_integer():
        return False  # it would be rounded to an integer
    limit = EXACT.get(value.dtype, 0)
    return node.op_type != "Cast" or (
        limit > 0 and all(not isinstance(element, int) or -limit <= element < limit for element in elements)
    )


def _broadcast(node: ir.Node, contents: Contents) -> Iterator[Sequence[Dim]]:
    """Yield the shapes that ``node`` broadcasts against each other, from the back; an axis in front of them is none."""
    values = [value for value in node.inputs if value is not None]
    if node.op_type == "Expand":
        target = contents(values[1])
        shapes = [values[0].shape, target]
        yield from (list(shape) for shape in shapes if shape is not None)
    elif node.op_type == "MatMul":
        for value in values:
            if value.shape is not None and len(value.shape) > 2:
                yield [*list(value.shape)[:-2], 1, 1]
    elif len(values) > 1 and op_info(node).elementwise and op_info(node).arity != 1:
        yield from (list(value.shape) for value in values if value.shape is not None)


def _one_of_several(shapes: Iterator[Sequence[Dim]]) -> Iterator[int]:
    """Yield the axes, counted from the back, where different symbols meet and no number decides."""
    dims: dict[int, list[Dim]] = {}
    for shape in shapes:
        for axis, dim in enumerate(reversed(shape), 1):
            if dim != 1:
                dims.setdefault(-axis, []).append(dim)
    for axis, met in dims.items():
        if (
            len(met) > 1
            and not any(isinstance(dim, int) for dim in met)
            and any(dim != met[0] for dim in met)
        ):
            yield axis


def _beyond_the_end(node: ir.Node, contents: Contents) -> Iterator[int]:
    """Yield the axes, counted from the back, whose size a Slice with an input for it does not tell."""
    x = node.inputs[0]
    if len(node.inputs) < 3 or x is None or x.shape is None:
        return
    starts, ends, axes, steps = (
        contents(value) if value is not None else None for value in [*node.inputs[1:], None, None][:4]
    )
    if starts is None or ends is None:
        return
    rank = len(x.shape)
    for i, (start, end) in enumerate(zip(starts, ends, strict=False)):
        axis = axes[i] if axes is not None and i < len(axes) else i
        step = steps[i] if steps is not None and i < len(steps) else 1
        if not (isinstance(axis, int) and isinstance(step, int) and -rank <= axis < rank):
            continue
        dim = x.shape[axis]
        if isinstance(dim, int):
            unsure = step < 0 and isinstance(start, int) and start < -dim
        else:
            unsure = step > 0 and isinstance(end, int) and 0 <= end < END and start != end
        if unsure:
            yield axis % rank - rank
