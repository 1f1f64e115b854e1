"""Merge chains of Reshape, Flatten, Squeeze and Unsqueeze."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import attribute, constant_tensor, is_op, opset, same_dim, same_shape

Dim = int | ir.SymbolicDim
RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class MergeReshapes(Rewrite):
    """Replace a chain of Reshape, Flatten, Squeeze and Unsqueeze by one of them, or by none.

    With ``y`` the end of the chain and ``x`` a value before it, in this order::

        y has the shape of x                          x
        a Reshape is last, and copies no other size   Reshape(x, the same shape)
        y is x without, or with more, sizes of 1      Squeeze(x), Unsqueeze(x)
        at most one size of y is not known            Reshape(x, sizes of y, −1 for that one)
        the others stand at the same place in x       Reshape(x, sizes of y, 0 for those)

    A size is known where shape inference gives a number; two are the same where it gives the same symbol. Chains are
    followed through Identity, and to the earliest ``x`` from which one node suffices. A Reshape of a tensor that may
    have no elements at all keeps its meaning: a −1 is not put beside a size that may be 0. Exact: the elements and
    their order stay. Source: ONNX Reshape-1 to 25, Flatten-1 to 25, Squeeze-1 to 25, Unsqueeze-1 to 25.
    """

    anchor = RESHAPING

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return what takes the place of the whole chain."""
        sources = list(_sources(node))
        if not sources:
            return None
        y = node.outputs[0]
        for x in sources:
            if same_shape(x, y):
                return x
        reason: Decline | None = None
        for x in sources:
            try:
                return _one_node(node, x, tape)
            except Decline as decline:
                reason = reason or decline
        assert reason is not None
        raise reason


def _sources(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values that ``node`` reshapes, each through at least one other reshape; the earliest first."""
    found: list[ir.Value] = []
    merges = False
    value = node.inputs[0]
    while value is not None and (before := value.producer()) is not None:
        if is_op(before, *RESHAPING):
            merges = True
        elif not is_op(before, "Identity"):
            break
        value = before.inputs[0]
        if value is not None and merges:
            found.append(value)
    yield from reversed(found)


def _one_node(node: ir.Node, x: ir.Value, tape: Tape) -> ir.Value:
    """Record the one node that makes ``node``'s output from ``x``."""
    doubt = _doubt(node, x, tape) if node.op_type == "Reshape" else None
    if doubt == "":
        return tape.op("Reshape", [x, *node.inputs[1:]], node.attributes)
    try:
        return _by_sizes(node, x, tape)
    except Decline as decline:
        raise Decline(f"{doubt}, and {decline}") if doubt else decline from None


def _by_sizes(node: ir.Node, x: ir.Value, tape: Tape) -> ir.Value:
    y = node.outputs[0]
    for value in (x, y):
        if value.shape is None:
            raise Decline(f"the shape of {value.name} is not known")
    assert x.shape is not None and y.shape is not None
    if (axes := _ones(list(x.shape), list(y.shape))) is not None:
        return _with_axes("Squeeze", x, axes, node, tape)
    if (axes := _ones(list(y.shape), list(x.shape))) is not None:
        return _with_axes("Unsqueeze", x, axes, node, tape)
    return _reshape(node, x, _sizes(x, y), tape)


def _doubt(node: ir.Node, x: ir.Value, tape: Tape) -> str:
    """Return why a Reshape may ask for something else of ``x`` than of its own input: a 0 copies a size of it."""
    if attribute(node, "allowzero", 0):
        return ""
    if opset(node) < 5:
        return "a 0 in its shape copies a size" if 0 in attribute(node, "shape", [0]) else ""
    before, shape = node.inputs[:2]
    assert before is not None and shape is not None
    tensor = constant_tensor(shape)
    sizes = tensor.numpy().tolist() if tensor is not None else tape.shapes().contents(shape)
    if sizes is None:
        return f"{shape.name} is not known and may hold a 0, which copies a size"
    for i, size in enumerate(sizes):
        if (not isinstance(size, int) or size == 0) and not _same_place(i, before.shape, x.shape):
            return f"{size} in {shape.name} " + (
                "copies a size" if size == 0 else "may be 0, which copies a size"
            )
    return ""


def _same_place(i: int, a: ir.Shape | None, b: ir.Shape | None) -> bool:
    return a is not None and b is not None and i < min(len(a), len(b)) and same_dim(a[i], b[i])


def _ones(longer: list[Dim], shorter: list[Dim]) -> list[int] | None:
    """Return the axes of ``longer``, each of size 1, without which it is ``shorter``; ``None`` if it never is."""
    axes: list[int] = []
    rest = list(shorter)
    for axis, size in enumerate(longer):
        if rest and same_dim(size, rest[0]):
            rest.pop(0)
        elif size == 1:
            axes.append(axis)
        else:
            return None
    return axes if axes and not rest else None


def _with_axes(op_type: str, x: ir.Value, axes: list[int], node: ir.Node, tape: Tape) -> ir.Value:
    """Record a Squeeze or Unsqueeze; before opset 13 the axes are an attribute."""
    if tape.opset < 13:
        return tape.op(op_type, [x], {"axes": axes})
    return tape.op(op_type, [x, tape.constant(np.array(axes, np.int64), f"{node.outputs[0].name}_axes")])


def _sizes(x: ir.Value, y: ir.Value) -> list[int]:
    """Return what to ask of a Reshape that makes ``y`` of ``x``: numbers, 0 to copy a size, −1 to infer one."""
    assert x.shape is not None and y.shape is not None
    unknown = [i for i, size in enumerate(y.shape) if not isinstance(size, int)]
    if len(unknown) == 1 and 0 not in y.shape:
        return [size if isinstance(size, int) else -1 for size in y.shape]
    for i in unknown:
        if not _same_place(i, x.shape, y.shape):
            others = ", ".join(_written(y.shape[j]) for j in unknown if j != i) or "0"
            raise Decline(f"size {_written(y.shape[i])} of {y.name} cannot be inferred beside {others}")
    return [size if isinstance(size, int) else 0 for size in y.shape]


def _written(size: Dim) -> str:
    return "?" if not isinstance(size, int) and size.value is None else str(size)


def _reshape(node: ir.Node, x: ir.Value, sizes: list[int], tape: Tape) -> ir.Value:
    """Record a Reshape; before opset 5 its shape is an attribute, and it takes floating-point numbers only."""
    y = node.outputs[0]
    assert x.shape is not None and y.shape is not None
    literal = [i for i, size in enumerate(y.shape) if size == 0 and not _same_place(i, x.shape, y.shape)]
    if literal and (tape.opset < 14 or not y.shape.is_static()):
        raise Decline(f"{y.name} has no elements, and a size of 0 cannot be asked for")
    if tape.opset < 5:
        if x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16):
            raise Decline(f"before opset 5 no Reshape takes {x.dtype}")
        return tape.op("Reshape", [x], {"shape": ir.AttrInt64s("shape", sizes)})
    shape = tape.constant(np.array(sizes, np.int64), f"{y.name}_shape")
    return tape.op("Reshape", [x, shape], {"allowzero": 1} if literal else {})
