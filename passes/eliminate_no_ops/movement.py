"""Operators that move elements about, and here leave them where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import attribute, constant_tensor, is_op, opset, optional, same_dim, same_shape, scalar

Dim = int | ir.SymbolicDim
END = 2**31 - 1
"""From here on the end of a slice means the end of the axis: exporters write the largest int32 or int64."""


def reshape(node: ir.Node, _: Tape) -> ir.Value | None:
    """Return x where the result has its shape."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    if same_shape(x, y):
        return x
    if x.shape is None or y.shape is None:
        raise Decline(f"the shape of {(x if x.shape is None else y).name} is not known")
    if len(x.shape) != len(y.shape) or any(_differ(m, n) for m, n in zip(x.shape, y.shape, strict=True)):
        return None
    raise Decline(f"{x.name} is not known to have the shape of {y.name}")


def _differ(m: Dim, n: Dim) -> bool:
    return isinstance(m, int) and isinstance(n, int) and m != n


def slice_(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Return x where each axis is taken from its start to its end in steps of 1."""
    x = node.inputs[0]
    assert x is not None
    steps = _sizes(node, tape, 4, "steps")
    if steps is not None and any(step != 1 for step in steps):
        return None
    if same_shape(x, node.outputs[0]):
        return x
    starts, ends = _sizes(node, tape, 1, "starts") or (), _sizes(node, tape, 2, "ends") or ()
    axes = _sizes(node, tape, 3, "axes") or range(len(starts))
    if any(start != 0 for start in starts):
        return None
    return x if all(_reaches_end(x, axis, end) for axis, end in zip(axes, ends, strict=False)) else None


def _reaches_end(x: ir.Value, axis: Dim, end: Dim) -> bool:
    if isinstance(end, int) and end >= END:
        return True
    if x.shape is None or not isinstance(axis, int) or not -len(x.shape) <= axis < len(x.shape):
        return False
    dim = x.shape[axis]
    return same_dim(dim, end) or (isinstance(dim, int) and isinstance(end, int) and end >= dim)


def _sizes(node: ir.Node, tape: Tape, index: int, name: str) -> Sequence[Dim] | None:
    """Return what an attribute of older opsets, which became an input, says; ``None`` where it is left out.

    Raises:
        Decline: it is known at a run only.
    """
    if name in node.attributes:
        value: list[Dim] = list(attribute(node, name))
        return value
    given = optional(node, index)
    if given is None:
        return None
    known = tape.shapes().contents(given)
    if known is None:
        raise Decline(f"{given.name} is not a constant")
    return known


def pad(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Return x where it is padded by nothing."""
    name = "paddings" if opset(node) < 2 else "pads"
    pads = _sizes(node, tape, 1, name)
    return node.inputs[0] if pads is not None and not any(p != 0 for p in pads) else None


def tile(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Return x where it is repeated once along each axis."""
    if opset(node) < 6:
        return None
    repeats = _sizes(node, tape, 1, "repeats")
    return node.inputs[0] if repeats is not None and all(r == 1 for r in repeats) else None


def transpose(node: ir.Node, _: Tape) -> ir.Value | None:
    """Return x where the axes keep their order."""
    x = node.inputs[0]
    assert x is not None
    perm = attribute(node, "perm", None)
    if perm is not None:
        return x if perm == sorted(perm) else None
    if x.shape is None:
        raise Decline(f"the rank of {x.name} is not known")
    return x if len(x.shape) <= 1 else None


def squeeze(node: ir.Node, _: Tape) -> ir.Value | None:
    """Return x where it has no axis of size 1 to remove; no axes at all mean every such axis."""
    x = node.inputs[0]
    assert x is not None
    if "axes" in node.attributes or optional(node, 1) is not None:
        return None
    if x.shape is None or any(not isinstance(dim, int) for dim in x.shape):
        raise Decline(f"the shape of {x.name} is not known")
    return None if 1 in list(x.shape) else x


def unsqueeze(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Return x where no axis is added."""
    axes = _sizes(node, tape, 1, "axes")
    return node.inputs[0] if axes is not None and not axes else None


def resize(node: ir.Node, tape: Tape) -> ir.Value | None:
    """Return x where every scale is 1: then each output element lies on an input element, in every mode."""
    x = node.inputs[0]
    assert x is not None
    if attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    scales = _scales(node)
    if scales is not None:
        return x if all(scale == 1 for scale in scales) else None
    return reshape(node, tape) if optional(node, 3) is not None else None


def _scales(node: ir.Node) -> list[float] | None:
    if "scales" in node.attributes:
        return list(attribute(node, "scales"))
    value = optional(node, 1 if node.op_type == "Upsample" or opset(node) < 11 else 2)
    if value is None:
        return None
    tensor = constant_tensor(value)
    if tensor is None:
        raise Decline(f"{value.name} is not a constant")
    return [float(scale) for scale in tensor.numpy().reshape(-1)] or None


def blocks(node: ir.Node, _: Tape) -> ir.Value | None:
    """Return x where a block is one element."""
    return node.inputs[0] if attribute(node, "blocksize") == 1 else None


def gather(node: ir.Node, _: Tape) -> ir.Value | None:
    """Return x where its elements are flattened and picked one after the other: what as_strided becomes."""
    flat, index = node.inputs
    flatten = flat.producer() if flat is not None else None
    if not is_op(flatten, "Reshape") or flat is None or flat.shape is None or len(flat.shape) != 1:
        return None
    assert flatten is not None
    x = flatten.inputs[0]
    return x if same_shape(x, node.outputs[0]) and _counts(index) else None


def _counts(index: ir.Value | None) -> bool:
    """Return whether ``index`` holds 0, 1, 2, … in row-major order: as a constant, or as ``k * rows + (0 … k - 1)``."""
    tensor = constant_tensor(index)
    if tensor is not None:
        return _is_range(tensor.numpy())
    columns, rows = _with_constant(index, "Add")
    while rows is not None and is_op(rows.producer(), "Unsqueeze", "Reshape"):
        if rows.shape is None or any(dim != 1 for dim in rows.shape[1:]):
            return False
        rows = _first(rows)
    stride, number = _with_constant(rows, "Mul")
    if columns is None or stride is None or number is None or not is_op(number.producer(), "Range"):
        return False
    start, _, step = map(scalar, number.producer().inputs)  # type: ignore[union-attr]
    across = columns.ndim > 1 and columns.shape[0] == 1 and _is_range(columns)
    return across and start == 0 and step == 1 and stride.size == 1 and int(stride.item()) == columns.size


def _is_range(array: np.ndarray[Any, Any]) -> bool:
    return bool((array.reshape(-1) == np.arange(array.size)).all())


def _with_constant(
    value: ir.Value | None, op_type: str
) -> tuple[np.ndarray[Any, Any] | None, ir.Value | None]:
    """Return the constant and the other operand of the ``op_type`` that makes ``value``, where it has one."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, op_type):
        return None, None
    for one, other in (node.inputs, node.inputs[::-1]):
        tensor = constant_tensor(one)
        if tensor is not None:
            return tensor.numpy(), other
    return None, None


def _first(value: ir.Value) -> ir.Value | None:
    node = value.producer()
    return node.inputs[0] if node is not None else None


RULES: Mapping[str, Callable[[ir.Node, Tape], ir.Value | None]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Expand"), reshape),
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Tile": tile,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), blocks),
}
