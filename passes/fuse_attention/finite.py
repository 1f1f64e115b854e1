"""How large the numbers of a mask can be, as far as the graph says."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.query import constant_tensor

MOVES = "Expand Reshape Squeeze Unsqueeze Transpose Slice Gather GatherND Tile Identity Flatten".split()
FINITE = {ir.DataType.FLOAT: float(np.finfo(np.float32).max), ir.DataType.FLOAT16: 65504.0}
DEEP = 12

Bounds = dict["ir.Value", "float | None"]


def bound(value: ir.Value | None) -> float | None:
    """Return what no element of ``value`` exceeds in magnitude (``inf`` where one may), ``None`` where unknown."""
    return _bound(value, DEEP, {})


def _bound(value: ir.Value | None, depth: int, known: Bounds) -> float | None:
    if value is None:
        return None
    if value not in known:
        tensor, node = constant_tensor(value), value.producer()
        if tensor is not None:
            known[value] = _largest(tensor)
        elif node is not None and node.domain == "" and depth:
            known[value] = _made(node, depth - 1, known)
    return known.get(value)


def _made(node: ir.Node, depth: int, known: Bounds) -> float | None:
    """Return the bound of what ``node`` makes, by those of its inputs."""
    if node.op_type in MOVES:
        return _bound(node.inputs[0], depth, known)
    if node.op_type == "Cast":
        source = node.inputs[0]
        return (
            1.0 if source is not None and source.dtype == ir.DataType.BOOL else _bound(source, depth, known)
        )
    if node.op_type not in ("Where", "Concat", "Add", "Sub", "Mul"):
        return None
    parts = [_bound(v, depth, known) for v in (node.inputs[1:] if node.op_type == "Where" else node.inputs)]
    found = [part for part in parts if part is not None]
    if len(found) != len(parts):
        return None
    if node.op_type in ("Where", "Concat"):
        return max(found)
    return sum(found) if node.op_type in ("Add", "Sub") else math.prod(found)


def _largest(tensor: ir.TensorProtocol) -> float | None:
    if tensor.dtype not in (*FINITE, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
        return None
    array = tensor.numpy()
    if not array.size:
        return 0.0
    largest = float(np.max(np.abs(array.astype(np.float64))))
    return largest if largest == largest else float("inf")
