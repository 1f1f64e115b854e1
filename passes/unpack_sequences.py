"""Take parts of a tensor by a Split instead of a sequence of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import attribute, axis_of, constant, optional, producer, rank, scalar


class UnpackSequences(Rewrite):
    """Replace ``SequenceAt(SplitToSequence(x, split), i)`` by output ``i`` of ``Split(x, split)``,
    and ``SequenceAt(SequenceConstruct(a, b, …), i)`` by its element.

    Each element that is taken gets a Split of its own; ``eliminate-common`` makes one of them. Where the parts are
    one element thick and lose their axis (``keepdims=0``), a Squeeze follows.

    Exact. Source: ONNX SplitToSequence-11 (a scalar ``split`` gives chunks of that size, the last one may be
    smaller), SequenceConstruct-11, SequenceAt-11 (a negative position counts from the end), Split-13 and -18.
    """

    anchor = "SequenceAt"

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value:
        """Return the part."""
        made = producer(node.inputs[0], "SplitToSequence", "SequenceConstruct")
        position = scalar(node.inputs[1])
        if position is None:
            raise Decline(f"the position {node.inputs[1].name if node.inputs[1] else '?'} is not a constant")
        if made.op_type == "SequenceConstruct":
            return _element(made.inputs, int(position))
        if tape.opset < 13:
            raise Decline(f"Split takes no sizes as an input in opset {tape.opset}")
        x, split = made.inputs[0], optional(made, 1)
        axis = axis_of(attribute(made, "axis", 0), rank(x))
        assert x is not None and x.shape is not None
        size = x.shape[axis]
        if not isinstance(size, int):
            raise Decline(f"dimension {axis} of {x.name} is not known")
        sizes = _sizes(size, None if split is None else constant(split))
        squeezed = split is None and not attribute(made, "keepdims", 1)

        inputs = [x, tape.constant(np.array(sizes, np.int64), f"{made.outputs[0].name}_sizes")]
        parts = tape.op_multi_out("Split", inputs, {"axis": axis}, num_outputs=len(sizes))
        part = _element(parts, int(position))
        if not squeezed:
            return part
        return tape.op(
            "Squeeze", [part, tape.constant(np.array([axis], np.int64), f"{node.outputs[0].name}_axis")]
        )


def _element(values: Sequence[ir.Value | None], position: int) -> ir.Value:
    """Return the value at ``position``, counted from the end where it is negative."""
    if not -len(values) <= position < len(values):
        raise Decline(f"position {position} lies outside the {len(values)} elements")
    value = values[position]
    assert value is not None, "a sequence has no gaps"
    return value


def _sizes(size: int, split: np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None) -> list[int]:
    """Return the sizes of the parts of a dimension of ``size``."""
    if split is None:
        return [1] * size
    if split.ndim:
        sizes = [int(i) for i in split]
        if sum(sizes) != size:
            raise Decline(f"the parts {sizes} do not make up {size}")
        return sizes
    chunk = int(split)
    if chunk < 1:
        raise Decline(f"its chunks have {chunk} elements")
    return [min(chunk, size - start) for start in range(0, size, chunk)]
