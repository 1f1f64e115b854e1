"""Take parts of a tensor by a Split instead of a sequence of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import attribute, axis_of, constant, is_op, optional, producer, rank, scalar


class UnpackSequences(Rewrite):
    """Replace ``SequenceAt(SplitToSequence(x, split), i)`` by output ``i`` of ``Split(x, split)``.

    In two steps, so that all elements share one Split: ``SplitToSequence(x, split)``, whose elements are all taken
    by SequenceAt, becomes ``SequenceConstruct(Split(x, split))``; then ``SequenceAt(SequenceConstruct(a, b, …), i)``
    becomes its element. Where the parts are one element thick and lose their axis (``keepdims=0``), each is squeezed.

    Exact. Source: ONNX SplitToSequence-11 (a scalar ``split`` gives chunks of that size, the last one may be
    smaller), SequenceConstruct-11, SequenceAt-11 (a negative position counts from the end), Split-13 and -18.
    """

    anchor = ("SplitToSequence", "SequenceAt")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value:
        """Return the element, or the sequence of parts."""
        return _element(node) if node.op_type == "SequenceAt" else _parts(node, tape)


def _element(node: ir.Node) -> ir.Value:
    values = producer(node.inputs[0], "SequenceConstruct").inputs
    position = _position(node)
    if not -len(values) <= position < len(values):
        raise Decline(f"position {position} lies outside the {len(values)} elements")
    value = values[position]
    assert value is not None, "a sequence has no gaps"
    return value


def _position(node: ir.Node) -> int:
    position = scalar(node.inputs[1])
    if position is None:
        raise Decline(f"the position {node.inputs[1].name if node.inputs[1] else '?'} is not a constant")
    return int(position)


def _parts(node: ir.Node, tape: Tape) -> ir.Value:
    sequence = node.outputs[0]
    if tape.opset < 13:
        raise Decline(f"Split takes no sizes as an input in opset {tape.opset}")
    if sequence.is_graph_output() or not all(is_op(reader, "SequenceAt") for reader in sequence.consumers()):
        raise Decline(f"{sequence.name} is needed as a sequence")
    for reader in sequence.consumers():
        _position(reader)
    x, split = node.inputs[0], optional(node, 1)
    axis = axis_of(attribute(node, "axis", 0), rank(x))
    assert x is not None and x.shape is not None
    size = x.shape[axis]
    if not isinstance(size, int):
        raise Decline(f"dimension {axis} of {x.name} is not known")
    sizes = _sizes(size, None if split is None else constant(split))

    lengths = tape.constant(np.array(sizes, np.int64), f"{sequence.name}_sizes")
    parts: Sequence[ir.Value] = tape.op_multi_out(
        "Split", [x, lengths], {"axis": axis}, num_outputs=len(sizes)
    )
    if split is None and not attribute(node, "keepdims", 1):
        axes = tape.constant(np.array([axis], np.int64), f"{sequence.name}_axis")
        parts = [tape.op("Squeeze", [part, axes]) for part in parts]
    return tape.op("SequenceConstruct", parts)


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
