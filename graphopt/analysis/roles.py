"""What a model does with its inputs: which are ids into a table, masks, sizes or axes."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import onnx_ir as ir

from ..query import constant_tensor, scalar, subgraphs

Dim = int | ir.SymbolicDim
Frame = Mapping[ir.Value, ir.Value]
"""Parameters of the function that is being read, and the caller's value behind each."""


class Kind(enum.IntEnum):
    """What an input is for; where readers disagree, the first of these wins."""

    INDEX = 0
    """Picks rows of a table."""
    LENGTH = 1
    """Counts the valid steps of a sequence."""
    TARGET = 2
    """The shape that a Reshape makes."""
    SIZE = 3
    """A count, a shape, a step."""
    BEGIN = 4
    """An axis, a pad or a start: nought always does."""
    MASK = 5
    """Switches elements on and off."""
    BRANCH = 6
    """Decides what runs."""
    PLAIN = 7


@dataclass
class Role:
    """What one graph input is for."""

    kind: Kind = Kind.PLAIN
    limits: list[tuple[Dim, int]] = field(default_factory=list)
    """Of an index or a length: the sizes it must stay below, each with what is added to it on the way."""

    def note(self, kind: Kind, limits: list[tuple[Dim, int]]) -> None:
        """Take over what one more reader tells."""
        self.kind = min(self.kind, kind)
        self.limits += limits


def roles(model: ir.Model) -> dict[str, Role]:
    """Return the role of each graph input, as far as its readers tell."""
    found = {}
    for value in model.graph.inputs:
        found[value.name or ""] = role = Role()
        _Tracer(model, role).follow(value, 0, {})
    return found


READERS: Mapping[tuple[str, int], Kind] = {
    (op, int(index)): kind
    for kind, readers in {
        Kind.TARGET: "Reshape:1",
        Kind.SIZE: (
            "Expand:1 Tile:1 ConstantOfShape:0 TopK:1 OneHot:1 Loop:0 Range:1 Range:2 Slice:2 Slice:4 "
            "Split:1 NonMaxSuppression:2 CenterCropPad:1 AffineGrid:1 Resize:3 MaxUnpool:2 SplitToSequence:1 "
            "HannWindow:0 HammingWindow:0 BlackmanWindow:0"
        ),
        Kind.BEGIN: (
            "Slice:1 Slice:3 Range:0 Pad:1 Pad:3 Trilu:1 CumSum:1 Squeeze:1 Unsqueeze:1 ReduceSum:1 "
            "ReduceMean:1 ReduceMax:1 ReduceMin:1 ReduceProd:1 ReduceL1:1 ReduceL2:1 ReduceSumSquare:1 ReduceLogSum:1 "
            "ReduceLogSumExp:1 SequenceAt:1 SequenceErase:1 SequenceInsert:2 DFT:2"
        ),
        Kind.MASK: "Where:0 Not:0 And:0 And:1 Or:0 Or:1 Xor:0 Xor:1 Compress:1",
        Kind.BRANCH: "If:0 Loop:1",
    }.items()
    for op, _, index in (reader.partition(":") for reader in readers.split())
}
"""What an operator's input is for, where that needs no look at the other inputs."""

ROWS: Mapping[tuple[str, int], tuple[int, int]] = {
    ("RoiAlign", 2): (0, 0),
    ("MaxRoiPool", 1): (0, 0),
}
"""Inputs that pick along a fixed axis of another input: (that input, the axis)."""

STEPS: Mapping[tuple[str, int], str] = {
    ("LSTM", 4): "",
    ("GRU", 4): "",
    ("RNN", 4): "",
    ("ReverseSequence", 1): "time_axis",
}
"""Inputs that count the valid steps of input 0, and the attribute that names its time axis (else it is 0)."""

CARRY: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            "Cast CastLike Identity Reshape Unsqueeze Squeeze Flatten Transpose Expand Slice Tile Split Pad "
            "Gather GatherElements GatherND Dropout Clip Compress Trilu"
        ).split(),
        (0,),
    ),
    "Where": (1, 2),
    "Concat": (),
    "Min": (),
    "Max": (),
}
"""Operators whose output has elements of these inputs, unchanged (``()``: of all inputs)."""


@dataclass
class _Tracer:
    model: ir.Model
    role: Role
    seen: set[tuple[int, int]] = field(default_factory=set)

    def follow(self, value: ir.Value, added: int, frame: Frame) -> None:
        """Look at every reader of ``value``, which is the input plus ``added``."""
        if (id(value), added) in self.seen:
            return
        self.seen.add((id(value), added))
        for node, index in value.uses():
            self._read(node, index, added, frame)
            for onward, more in self._onward(node, index, frame):
                self.follow(onward, added + more, frame)
            function = self.model.functions.get(node.op_identifier())
            if function is not None and index < len(function.inputs):
                inner = dict(zip(function.inputs, (_behind(v, frame) for v in node.inputs), strict=False))
                self.follow(function.inputs[index], added, {k: v for k, v in inner.items() if v is not None})
                self._returned(function, node, added, frame)

    def _returned(self, function: ir.Function, node: ir.Node, added: int, frame: Frame) -> None:
        """Go on behind a call where the function hands the input through."""
        for inner, outer in zip(function.outputs, node.outputs, strict=False):
            if (id(inner), added) in self.seen:
                self.follow(outer, added, frame)

    def _read(self, node: ir.Node, index: int, added: int, frame: Frame) -> None:
        if node.domain not in ("", "com.microsoft"):
            return
        limits = [(dim, added) for dim in self._limits(node, index, frame)]
        key = (node.op_type, index)
        if limits:
            self.role.note(Kind.LENGTH if key in STEPS else Kind.INDEX, limits)
        elif key in READERS:
            self.role.note(READERS[key], [])
        elif _switches(node, index):
            self.role.note(Kind.MASK, [])

    def _limits(self, node: ir.Node, index: int, frame: Frame) -> Iterator[Dim]:
        """Yield the sizes of the tables that input ``index`` picks from."""
        key = (node.op_type, index)
        if key in ROWS or key in STEPS:
            data, axis = ROWS.get(key) or (0, _int(node, STEPS[key], 0))
            yield from _dims(_behind(node.inputs[data], frame), axis, axis + 1)
        elif node.op_type == "EmbedLayerNormalization" and index in (0, 1, 8):
            yield from _dims(_behind(node.inputs[{0: 2, 1: 4, 8: 3}[index]], frame), 0, 1)
        elif node.op_type == "OneHot" and index == 0:
            depth = scalar(node.inputs[1])
            yield from [int(depth)] if depth is not None else []
        elif index == 1 and node.op_type in ("GatherND", "ScatterND"):
            start = _int(node, "batch_dims", 0)
            last = list(_dims(node.inputs[1], -1, None))
            depth = last[0] if last and isinstance(last[0], int) else 1
            yield from _dims(_behind(node.inputs[0], frame), start, start + depth)
        elif index == 1 and node.op_type in ("Gather", "GatherElements", "ScatterElements", "Scatter"):
            axis = _int(node, "axis", 0)
            yield from _dims(_behind(node.inputs[0], frame), axis, axis + 1 or None)

    def _onward(self, node: ir.Node, index: int, frame: Frame) -> Iterator[tuple[ir.Value, int]]:
        """Yield the values that have this input's elements, each with what is added to them."""
        carried = CARRY.get(node.op_type) if node.domain == "" else None
        if carried is not None and (not carried or index in carried):
            yield from ((output, 0) for output in node.outputs)
        elif node.op_type in ("Add", "Sub") and node.domain == "" and (node.op_type == "Add" or index == 0):
            by = scalar(_behind(node.inputs[1 - index], frame))
            if isinstance(by, int):
                yield node.outputs[0], by if node.op_type == "Add" else -by
        elif node.op_type in ("Loop", "Scan"):
            for body in subgraphs(node):
                inputs = list(body.inputs)
                at = index if node.op_type == "Loop" else index - (len(node.inputs) - len(inputs))
                if 0 <= at < len(inputs) and not (node.op_type == "Loop" and index < 2):
                    yield inputs[at], 0


def _switches(node: ir.Node, index: int) -> bool:
    """Return whether ``node`` takes an input as on or off: cast to bool, ``x == 0``, ``x > 0``, ``1 - x``."""
    if node.op_type == "Cast":
        return _int(node, "to", 0) == ir.DataType.BOOL
    if node.op_type in ("Equal", "Greater", "GreaterOrEqual", "Less"):
        return scalar(node.inputs[1 - index]) in (0, 1)
    return node.op_type == "Sub" and index == 1 and scalar(node.inputs[0]) == 1


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return attribute.value if attribute is not None and isinstance(attribute.value, int) else default


def _behind(value: ir.Value | None, frame: Frame) -> ir.Value | None:
    return frame.get(value, value) if value is not None else None


def _dims(value: ir.Value | None, start: int, stop: int | None) -> Iterator[Dim]:
    tensor = constant_tensor(value)
    shape = tensor.shape if tensor is not None else value.shape if value is not None else None
    yield from (cast("Dim", dim) for dim in list(shape if shape is not None else ())[start:stop])
