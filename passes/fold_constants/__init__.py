"""Compute at compile time whatever no run can change."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt import Decline, Rewrite, Tape, is_random
from graphopt.query import attribute, constant_tensor, has_subgraphs, opset, same_dim, scalar

from .branches import inline_branch
from .cone import Waiting
from .kernels import compute

if TYPE_CHECKING:
    from graphopt.context import Context

INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
QUANTIZATION = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
STATEFUL = ("Loop", "Scan", "SequenceMap", "Optional", "SequenceConstruct", "SequenceEmpty")
VIEWS = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
"""Operators whose result on a constant is numpy's view of it: nothing is copied before it is saved."""

SIZED = (
    "Expand",
    "ConstantOfShape",
    "Tile",
    "Range",
    "Pad",
    "OneHot",
    "Resize",
    "Upsample",
    "Col2Im",
    "CenterCropPad",
    *(
        "HannWindow",
        "HammingWindow",
        "BlackmanWindow",
        "MelWeightMatrix",
        "AffineGrid",
        "DFT",
        "STFT",
        "MaxUnpool",
    ),
    *(
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "QLinearConv",
        "DeformConv",
        "AveragePool",
        "MaxPool",
        "LpPool",
    ),
)
"""Operators whose result is as large as an input or attribute says; others make at most the outer product."""


class Growth:
    """Bytes that constant folding added to one model, less those that it freed."""

    survives_edits = True

    def __init__(self, model: ir.Model, context: Context) -> None:
        self.bytes = 0
        self._charged: dict[ir.Node, int] = {}

    def charge(self, node: ir.Node, added: int) -> None:
        """Count what folding ``node`` adds, once however often a fold is tried that a bisection leaves out."""
        self.bytes += added - self._charged.get(node, 0)
        self._charged[node] = added


class FoldConstants(Rewrite):
    """Replace what can be computed from constants and known shapes by its value.

    A node whose inputs are all constant becomes a constant (of ``CastLike``'s second input only the type counts).
    So does a node that computes on shapes, where shape inference knows every element of its result (``Shape``,
    ``Size``, and what Gather, Concat, Mul … make of them, symbolic dimensions included). The target of a
    ``Reshape`` becomes a constant where each element is known, or is the input's dimension at its place (0), or is
    the only other one (``-1``; no run with zero elements is meant). An ``If`` with a constant condition becomes the
    nodes of the branch that runs. A ``Constant`` becomes an initializer.

    Never folded: random operators, quantization, and what depends on a parameter of the function around it. A
    result larger than ``limit_bytes`` is not materialized, unless it is a view of a weight that it replaces; all
    results together add no more than ``limit_bytes`` to the model.

    Exact: integers and shapes to the bit, floats up to the rounding of another kernel.
    Source: ONNX operators, as of the opset that the model imports; Shape-15 (``start``, ``end``), If-1, Reshape-14.
    """

    anchor = "*"

    limit_bytes: int = Field(4 << 20, ge=0, description="bytes of a result, and of the model's growth")

    def replace(self, node: ir.Node, tape: Tape) -> list[ir.Value | None] | None:
        """Return the constants that stand for the outputs of ``node``."""
        if node.domain != "" or node.op_type in STATEFUL:
            return None
        if node.op_type == "Identity" and node.outputs[0].is_graph_output():
            return None
        if node.op_type == "If":
            return _known_branch(node, tape)
        waiting = tape.context.analysis(Waiting)
        if node.op_type == "Constant":
            return None if waiting.waits(node, tape) else _lift(node, tape)
        try:
            if not _is_constant(node, waiting):
                waiting.release(node, tape)
                return self._from_shapes(node, tape)
            return self._fold(node, waiting, tape)
        except Decline:
            waiting.release(node, tape)
            raise

    def _fold(self, node: ir.Node, waiting: Waiting, tape: Tape) -> list[ir.Value | None] | None:
        """Fold a node whose inputs are constant, or leave it to its only reader."""
        if is_random(node):
            raise Decline("it is random")
        if node.op_type in QUANTIZATION:
            raise Decline("it carries the quantization of a constant")
        if has_subgraphs(node) or any(attr.is_ref() for attr in node.attributes.values()):
            raise Decline("it has a graph, or an attribute that a function's caller gives")
        if opset(node) < 7 and (attribute(node, "broadcast", 0) or "consumed_inputs" in node.attributes):
            raise Decline(f"its opset {opset(node)} broadcasts by an attribute")
        if waiting.waits(node, tape):
            return None
        outputs = self._compute(node, waiting, tape)
        self._account(node, waiting, tape, sum(array.nbytes for array in outputs))
        return [
            _initializer(tape, array, value) if value.uses() or value.is_graph_output() else None
            for array, value in zip(outputs, node.outputs, strict=True)
        ]

    def _compute(self, node: ir.Node, waiting: Waiting, tape: Tape) -> list[Any]:
        """Return the outputs of ``node`` as arrays, computing first what waits for it."""
        inputs = [self._array(i, value, node, waiting, tape) for i, value in enumerate(node.inputs)]
        self._affordable(node, inputs, waiting, tape)
        return compute(node, inputs)

    def _array(self, i: int, value: ir.Value | None, node: ir.Node, waiting: Waiting, tape: Tape) -> Any:
        """Return input ``i`` of ``node``; of the second input of ``CastLike`` only the type is read."""
        if value is None:
            return None
        tensor = constant_tensor(value)
        if tensor is not None:
            return tensor.numpy()
        producer = value.producer()
        if value in waiting and producer is not None:
            (array,) = self._compute(producer, waiting, tape)
            if array.nbytes > self.limit_bytes and producer.op_type not in VIEWS:
                raise Decline(_too_large(array.nbytes, self.limit_bytes))
            return array
        assert value.dtype is not None
        return np.empty(0, value.dtype.numpy())

    def _affordable(self, node: ir.Node, inputs: list[Any], waiting: Waiting, tape: Tape) -> None:
        """Decline before anything is computed where the inputs, or the declared shapes, tell that it is too large."""
        if node.op_type in VIEWS or _at_most_bytes(node, inputs) <= self.limit_bytes:
            return
        waiting.infer(node, tape)
        expected = sum(_expected_bytes(value, node) for value in node.outputs)
        if expected > self.limit_bytes:
            raise Decline(_too_large(expected, self.limit_bytes))

    def _account(self, node: ir.Node, waiting: Waiting, tape: Tape, made: int) -> None:
        """Add ``made`` bytes to the model's growth, less those of constants that nothing else reads.

        Raises:
            Decline: the model would grow too much.
        """
        inputs = set(waiting.leaves(node))
        freed = sum(t.nbytes for v in inputs if len(v.uses()) == 1 and (t := constant_tensor(v)) is not None)
        growth = tape.context.analysis(Growth)
        if made > self.limit_bytes and not (node.op_type in VIEWS and made <= freed):
            raise Decline(_too_large(made, self.limit_bytes))
        if max(growth.bytes, 0) + made - freed > self.limit_bytes:
            raise Decline(f"the model would grow by more than limit_bytes, {self.limit_bytes}")
        growth.charge(node, made - freed)

    def _from_shapes(self, node: ir.Node, tape: Tape) -> list[ir.Value | None] | None:
        """Fold a node on shapes, whose result inference knows although its inputs are no constants."""
        if node.op_type == "Reshape":
            return _constant_target(node, tape)
        (value, *others) = node.outputs
        if others or (value.dtype is not None and value.dtype not in INTEGERS):
            return None
        if value.shape is not None and len(value.shape) > 1:
            return None
        contents = tape.shapes().contents(value)
        if contents is None or value.dtype not in INTEGERS or value.shape is None or len(value.shape) > 1:
            return None
        if not all(isinstance(element, int) for element in contents):
            if node.op_type in ("Shape", "Size"):
                raise Decline(
                    f"{_unknown(contents)} of {node.inputs[0].name if node.inputs[0] else '?'} is not known"
                )
            return None
        try:
            array = np.array(contents, value.dtype.numpy())
        except OverflowError as error:
            raise Decline(f"{value.dtype} does not hold its elements") from error
        return [_initializer(tape, array.reshape(()) if len(value.shape) == 0 else array, value)]


def _lift(node: ir.Node, tape: Tape) -> list[ir.Value | None] | None:
    """Make an initializer of a Constant node, outside functions, where ONNX allows initializers."""
    (value,) = node.outputs
    if tape.in_function or value.is_graph_output():
        return None
    tensor = constant_tensor(value)
    if tensor is None:
        raise Decline("it is a sparse tensor, or a parameter of a function")
    return [tape.initializer(tensor, name=value.name)]


def _known_branch(node: ir.Node, tape: Tape) -> list[ir.Value | None]:
    condition = scalar(node.inputs[0])
    if condition is None:
        raise Decline(f"its condition {node.inputs[0].name if node.inputs[0] else '?'} is not a constant")
    return inline_branch(node, "then_branch" if condition else "else_branch", tape)


def _is_constant(node: ir.Node, waiting: Waiting) -> bool:
    """Return whether every run gives ``node`` the same inputs; of ``CastLike``'s second one the type is enough."""
    found = False
    for i, value in enumerate(node.inputs):
        if value is None or (i == 1 and node.op_type == "CastLike" and value.dtype):
            continue
        if value not in waiting and constant_tensor(value) is None:
            return False
        found = True
    return found


def _constant_target(node: ir.Node, tape: Tape) -> list[ir.Value | None] | None:
    """Give a Reshape a constant target: 0 for elements that its input has there too, ``-1`` for one other."""
    if opset(node) < 5 or len(node.inputs) < 2 or constant_tensor(node.inputs[1]) is not None:
        return None
    tape.shapes().infer(node)
    target = tape.shapes().contents(node.inputs[1])
    if target is None and node.outputs[0].shape is not None:
        target = list(node.outputs[0].shape)
    if target is None:
        raise Decline(f"the elements of {node.inputs[1].name if node.inputs[1] else '?'} are not known")
    if 0 in target:
        raise Decline(f"its target shape has the zero {target.index(0)}, and other elements are not known")
    x = node.inputs[0]
    copied = list(x.shape) if x is not None and x.shape is not None else []
    copied += [-1] * len(target)
    dims = [
        element if isinstance(element, int) else 0 if same_dim(element, copied[i]) else -1
        for i, element in enumerate(target)
    ]
    if dims.count(-1) > 1:
        raise Decline(f"{_unknown(target)} of its target shape are not known")
    shape = tape.constant(np.array(dims, np.int64), f"{node.outputs[0].name}_shape")
    attributes = {name: attr for name, attr in node.attributes.items() if name != "allowzero"}
    return [tape.op("Reshape", [node.inputs[0], shape], attributes)]


def _unknown(elements: list[Any]) -> str:
    return " and ".join(dict.fromkeys(str(e) for e in elements if not isinstance(e, int)))


def _initializer(tape: Tape, array: np.ndarray[Any, Any], value: ir.Value) -> ir.Value:
    dtype = value.dtype if value.dtype is not None and array.dtype.kind == "O" else None
    tensor: ir.TensorProtocol
    if array.dtype.kind in "OUS":
        flat = [e.encode() if isinstance(e, str) else bytes(e) for e in array.reshape(-1).tolist()]
        tensor = ir.StringTensor(flat, shape=ir.Shape(array.shape))
    else:
        tensor = ir.Tensor(array, dtype=dtype)
    return tape.initializer(tensor, name=value.name)


def _expected_bytes(value: ir.Value, node: ir.Node) -> int:
    if value.shape is None or not value.shape.is_static() or value.dtype in (None, ir.DataType.STRING):
        return _guess(node)
    assert value.dtype is not None
    return int(np.prod(value.shape.numpy(), dtype=np.float64) * value.dtype.bitwidth / 8)


def _guess(node: ir.Node) -> int:
    """Return the bytes of the largest input, where the shape of a result is not known beforehand."""
    return max((t.nbytes for v in node.inputs if (t := constant_tensor(v)) is not None), default=0)


def _at_most_bytes(node: ir.Node, inputs: list[Any]) -> float:
    """Return how many bytes ``node`` makes of ``inputs`` at most: of most operators, their outer product."""
    if node.op_type in SIZED and node.op_type != "Expand":
        return math.inf
    sizes: list[int] = [x.size for x in inputs if x is not None]
    width: int = 8
    if node.op_type == "Expand":
        sizes, width = [inputs[0].size, *inputs[1].tolist()], inputs[0].itemsize
    return width * math.prod(max(size, 1) for size in sizes)


def _too_large(nbytes: int, limit: int) -> str:
    return f"its result has {nbytes} bytes, more than limit_bytes, {limit}"
