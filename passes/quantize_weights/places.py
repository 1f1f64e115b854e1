"""Where a model multiplies by a constant matrix or looks up its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt import Decline
from graphopt.query import attribute, axis_of, constant_tensor, is_op

Array = np.ndarray[Any, Any]

ANCHORS = ("MatMul", "Gemm", "Gather")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Place:
    """One node and its constant matrix, of which a row is what one output channel, or one index, reads."""

    node: ir.Node
    index: int
    """Which input of the node the matrix is."""
    tensor: ir.TensorProtocol
    by_columns: bool
    """The rows are the columns of ``tensor``."""
    turned: bool
    """What the node reads is the transposed matrix: (columns, rows)."""

    @property
    def kind(self) -> Literal["product", "lookup"]:
        """What the node does with the matrix."""
        return "lookup" if self.node.op_type == "Gather" else "product"

    @property
    def x(self) -> ir.Value:
        """The other operand: the rows that are multiplied, or the indices."""
        value = self.node.inputs[1 - self.index]
        assert value is not None
        return value

    @property
    def rows(self) -> int:
        """How many rows the matrix has."""
        return int(self.tensor.shape.numpy()[1 if self.by_columns else 0])

    @property
    def columns(self) -> int:
        """How many numbers a row has."""
        return int(self.tensor.shape.numpy()[0 if self.by_columns else 1])

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return some rows, as float32."""
        whole = self.tensor.numpy()
        part = whole[:, start:stop].T if self.by_columns else whole[start:stop]
        return np.ascontiguousarray(part, np.float32)


def find(node: ir.Node, at_least: int = 1) -> Place | None:
    """Return the matrix of ``at_least`` so many numbers in ``node``, ``None`` where it is not of the kind.

    Raises:
        Decline: it is of the kind, and does not qualify.
    """
    if not is_op(node, *ANCHORS) or len(node.inputs) < 2:
        return None
    index = 0 if node.op_type == "Gather" else 1
    found = _matrix(node.inputs[index])
    if found is None:
        if index == 1 and _matrix(node.inputs[0]) is not None:
            raise Decline(f"its matrix {_name(node.inputs[0])} is on the left")
        return None
    tensor, transposed = found
    name = _name(node.inputs[index])
    if tensor.dtype not in FLOATS:
        raise Decline(f"{name} is {tensor.dtype.name.lower()}, and kernels take float and float16")
    if tensor.size < at_least:
        raise Decline(f"{name} has {tensor.size} numbers, which is too few")
    if node.op_type == "Gather":
        if axis_of(attribute(node, "axis", 0), 2) != 0:
            raise Decline("it does not look up rows")
        return Place(node, 0, tensor, transposed, False)
    turned = True
    if node.op_type == "Gemm":
        if (
            attribute(node, "transA", 0)
            or attribute(node, "alpha", 1.0) != 1
            or attribute(node, "beta", 1.0) != 1
        ):
            raise Decline("it transposes or scales its operands")
        turned = not attribute(node, "transB", 0)
    return Place(node, 1, tensor, transposed != turned, turned)


def _matrix(value: ir.Value | None) -> tuple[ir.TensorProtocol, bool] | None:
    """Return the constant floats of rank 2 behind ``value``, and whether they are transposed on the way."""
    transposed = False
    while value is not None and (node := value.producer()) is not None and is_op(node, "Transpose"):
        if attribute(node, "perm", [1, 0]) != [1, 0]:
            return None
        value, transposed = node.inputs[0], not transposed
    tensor = constant_tensor(value)
    if tensor is None or len(tensor.shape) != 2 or not tensor.dtype.is_floating_point():
        return None
    return tensor, transposed


def _name(value: ir.Value | None) -> str:
    return (value.name if value is not None else None) or "?"
