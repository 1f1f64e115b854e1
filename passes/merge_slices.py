"""Merge slices with each other and with the concatenation or split that they undo."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape, op_info
from graphopt.query import attribute, axis_of, ints, is_op, opset, optional, rank, used_once

OPEN = 2**31 - 1
"""An end from here on means the end of the axis: ONNX recommends the largest int32 or int64 for it."""
LARGEST = 2**63 - 1


class Range(NamedTuple):
    """What a Slice takes of one axis, as it is written."""

    start: int
    end: int
    step: int = 1


class MergeSlices(Rewrite):
    """Replace a Slice of a Slice or of a Concat by one Slice or none, and the Concat of a Split by what was split.

    ::

        Slice(Slice(x, r), s)         ->  Slice(x, r and s), where both take of one axis: r[s]
        Slice(Concat(a, b, c), s)     ->  b, or Slice(b, s'), where s takes elements of b only
        Concat(Split(x))              ->  x, where all parts are joined in order along the axis of the split
        Squeeze(Slice(x, i : i + 1))  ->  Gather(x, i), where nothing reshapes the result anyway
        Split(x)                      ->  Slice(x), where one part alone is used

    Of one axis with ``n`` elements, ``r`` takes ``r.start, r.start + r.step, …`` and ``r[s]`` every ``s.step``-th of
    them. Where ``n`` is not a number, both must step forward from a start that is counted from the front::

        r[s] = (r.start + s.start · r.step,  min(r.end, r.start + s.end · r.step),  r.step · s.step)

    and an end may be counted from the back where ``r.step`` is 1. Exact: elements are moved, not computed. Source:
    ONNX Slice-1 to 13 (attributes before opset 10), Concat-1 to 13, Split-1 to 18, Squeeze-13, Gather-13.
    """

    anchor = ("Slice", "Concat", "Squeeze", "Split")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | list[ir.Value | None] | None:
        """Return the one Slice, or what was concatenated or split."""
        if node.op_type == "Split":
            return _one_part(node, tape)
        value = node.inputs[0]
        before = value.producer() if value is not None else None
        if node.op_type == "Concat":
            return _unsplit(node, before) if before is not None and is_op(before, "Split") else None
        if node.op_type == "Squeeze":
            return _one_element(node, before, tape) if before is not None and is_op(before, "Slice") else None
        if before is not None and is_op(before, "Slice"):
            return _slice_of_slice(node, before, tape)
        if before is not None and is_op(before, "Concat"):
            return _slice_of_concat(node, before, tape)
        return None


def _slice_of_slice(node: ir.Node, inner: ir.Node, tape: Tape) -> ir.Value:
    x = inner.inputs[0]
    assert x is not None
    taken = _ranges(inner)
    for axis, s in _ranges(node).items():
        r = taken.get(axis)
        taken[axis] = s if r is None else _composed(r, s, _size(x, axis), f"axis {axis} of {x.name}")
    return _slice(node, x, taken, tape)


def _slice_of_concat(node: ir.Node, concat: ir.Node, tape: Tape) -> ir.Value:
    y = concat.outputs[0]
    axis = _axis(concat, 1 if opset(concat) < 4 else None, y)
    taken = _ranges(node)
    if axis not in taken:
        raise Decline(f"{y.name} is joined along axis {axis}, of which it takes all")
    start, end, step = taken.pop(axis)
    if step < 0:
        raise Decline(f"it takes axis {axis} of {y.name} backwards")
    size = _size(y, axis)
    if size is not None:
        start, end, _ = slice(start, end).indices(size)
    if start < 0 or end < 0:
        raise Decline(f"the size of axis {axis} of {y.name} is not known")
    begin = 0
    for i, part in enumerate(concat.inputs):
        assert part is not None
        length = _size(part, axis)
        last = i + 1 == len(concat.inputs) and end >= OPEN
        if begin <= start and (last or (length is not None and start < end <= begin + length)):
            if start > begin or not (last or end == begin + (length or 0)) or step > 1:
                taken[axis] = Range(start - begin, LARGEST if last else end - begin, step)
            return _slice(node, part, taken, tape) if taken else part
        if length is None:
            raise Decline(f"the size of axis {axis} of {part.name} is not known")
        begin += length
    raise Decline(f"it takes elements of several parts of {y.name}, or none")


def _unsplit(node: ir.Node, split: ir.Node) -> ir.Value:
    x = split.inputs[0]
    assert x is not None
    if list(node.inputs) != list(split.outputs):
        raise Decline(f"it does not join all parts of {x.name} in order")
    if _axis(node, 1 if opset(node) < 4 else None, x) != _axis(split, 0, x):
        raise Decline(f"{x.name} is split along another axis")
    return x


def _one_element(node: ir.Node, slice_: ir.Node, tape: Tape) -> ir.Value | None:
    x, y = slice_.inputs[0], node.outputs[0]
    assert x is not None
    if any(op_info(reader).keeps_elements for reader in y.consumers()):
        return None
    given = optional(node, 1)
    axes = attribute(node, "axes", None) if given is None else ints(given)
    taken = _ranges(slice_)
    if axes is None or len(taken) != 1 or [axis_of(axis, rank(x)) for axis in axes] != list(taken):
        return None
    ((axis, (start, end, _)),) = taken.items()
    if end != start + 1 if start != -1 else end < OPEN:
        return None
    if start < 0 and tape.opset < 11:
        raise Decline("Gather counts from the back from opset 11 on")
    if not used_once(slice_.outputs[0]):
        raise Decline(f"{slice_.outputs[0].name} is used elsewhere")
    return tape.op("Gather", [x, tape.constant(np.array(start, np.int64), f"{y.name}_index")], {"axis": axis})


def _one_part(node: ir.Node, tape: Tape) -> list[ir.Value | None] | None:
    x = node.inputs[0]
    used = [bool(part.uses()) or part.is_graph_output() for part in node.outputs]
    if x is None or used.count(True) != 1 or len(used) < 2:
        return None
    i, axis = used.index(True), _axis(node, 0, x)
    sizes = [_size(part, axis) for part in node.outputs[: i + 1]]
    numbers = [size for size in sizes if size is not None]
    if len(numbers) < len(sizes):
        raise Decline(f"the size of axis {axis} of {node.outputs[sizes.index(None)].name} is not known")
    start = sum(numbers[:-1])
    part = _slice(node, x, {axis: Range(start, start + numbers[-1])}, tape)
    return [part if j == i else None for j in range(len(used))]


def _ranges(node: ir.Node) -> dict[int, Range]:
    """Return what a Slice takes, by axis; before opset 10 attributes say it."""
    x = node.inputs[0]
    assert x is not None
    if opset(node) < 10:
        starts, ends = attribute(node, "starts", []), attribute(node, "ends", [])
        axes, steps = attribute(node, "axes", None), None
    else:
        starts, ends = ints(node.inputs[1]), ints(node.inputs[2])
        axes = ints(node.inputs[3]) if optional(node, 3) is not None else None
        steps = ints(node.inputs[4]) if optional(node, 4) is not None else None
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    if any(axis < 0 for axis in axes):
        axes = [axis_of(axis, rank(x)) for axis in axes]
    if not len(starts) == len(ends) == len(steps) == len(set(axes)):
        raise Decline("its starts, ends, axes and steps are not one each for an axis")
    return {axis: Range(*taken) for axis, *taken in zip(axes, starts, ends, steps, strict=True)}


def _composed(r: Range, s: Range, size: int | None, where: str) -> Range:
    """Return what ``s`` takes of what ``r`` takes."""
    if size is not None:
        return _of_known(r, s, size, where)
    if min(r.start, s.start, r.step - 1, s.step - 1) < 0 or (r.step > 1 and min(r.end, s.end) < 0):
        raise Decline(f"the size of {where} is not known")
    if r.end >= 0 and s.end >= 0:
        end = min(r.end, r.start + s.end * r.step, LARGEST)
    elif r.end < 0 and s.end < 0:
        end = r.end + s.end
    elif max(r.end, s.end) >= OPEN:
        end = min(r.end, s.end)
    else:
        raise Decline(f"the size of {where} is not known")
    return Range(min(r.start + s.start * r.step, LARGEST), end, r.step * s.step)


def _of_known(r: Range, s: Range, size: int, where: str) -> Range:
    indices = range(size)
    for start, end, step in (r, s):
        if step < 0 and start < -len(indices):
            raise Decline(f"its backward start {start} lies before {where}")
        indices = indices[start:end:step]
    if not indices:
        return Range(0, 0)
    end = indices[-1] + (1 if indices.step > 0 else -1)
    return Range(indices[0], end if end >= 0 else -size - 1, indices.step)


def _slice(node: ir.Node, x: ir.Value, taken: dict[int, Range], tape: Tape) -> ir.Value:
    """Record a Slice."""
    ranges = dict(sorted(taken.items()))
    starts, ends, steps = zip(*ranges.values(), strict=True)
    if tape.opset < 10:
        return tape.op("Slice", [x], {"axes": list(ranges), "starts": starts, "ends": ends})
    given = {"starts": starts, "ends": ends, "axes": list(ranges), "steps": steps}
    if set(steps) == {1}:
        del given["steps"]
    y = next(value.name for value in node.outputs if value.uses() or value.is_graph_output())
    return tape.op(
        "Slice", [x, *(tape.constant(np.array(v, np.int64), f"{y}_{k}") for k, v in given.items())]
    )


def _axis(node: ir.Node, default: int | None, value: ir.Value) -> int:
    """Return the axis of a Concat or Split, counted from the front."""
    axis: int | None = attribute(node, "axis", default)
    if axis is None:
        raise Decline("it has no axis")
    return axis if axis >= 0 else axis_of(axis, rank(value))


def _size(value: ir.Value, axis: int) -> int | None:
    """Return the size of an axis where it is a number."""
    if value.shape is None or axis >= len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None
