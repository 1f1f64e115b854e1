"""Operators that move elements about, and here leave them where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import attribute, constant_tensor, opset, optional, same_dim, same_shape

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


RULES: Mapping[str, Callable[[ir.Node, Tape], ir.Value | None]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Expand"), reshape),
    "Slice": slice_,
    "Pad": pad,
    "Tile": tile,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), blocks),
}
