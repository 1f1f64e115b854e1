"""The graph that onnxruntime made of a model, read back: its nodes under the names that the model's nodes have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from ..interfaces import place
from ..model import clone
from ..query import all_nodes

APPENDED = re.compile(r"(_nchwc|_token_\d+|_transposed)+$")
"""What onnxruntime puts behind the name of a node that it moves to another layout."""

QGEMM_INPUTS = 9
"""With so many inputs, a QGemm gives integers: the last two are the scale and the zero point of its result."""


def named(model: ir.Model) -> ir.Model:
    """Return a copy of ``model`` each node of which has a name."""
    copy = clone(model)
    for node in all_nodes(copy):
        node.name = node.name or place(node)
    return copy


def known_names(model: ir.Model) -> dict[str, str]:
    """Return the node for each name that onnxruntime may call it by: its own, or that of a value it makes."""
    nodes = list(all_nodes(model))
    made = {value.name: node.name or "" for node in nodes for value in node.outputs if value.name}
    return made | {node.name: node.name for node in nodes if node.name}


def graph_name(name: str, known: Mapping[str, str]) -> str:
    """Return the node that ``name`` stands for: onnxruntime appends what it did, as ``conv_nchwc``, ``add/Fusion/``."""
    if name in known:
        return known[name]
    plain = APPENDED.sub("", name)
    while plain and plain not in known:
        plain = plain.rpartition("/")[0]
    return known.get(plain, name)


def read(path: Path, model: ir.Model) -> ir.Model:
    """Return the graph that a session of ``model`` wrote to ``path``; its external weights are never read."""
    found = ir.from_proto(onnx.load(path, load_external_data=False))
    names = _names(found, known_names(model))
    for node in all_nodes(found):
        node.name = names.get(node.name or "", node.name)
        for value in node.outputs:
            if value.dtype is None and (dtype := _type_of(node)) is not None:
                value.type = ir.TensorType(dtype)
    return found


def written_names(path: Path, model: ir.Model) -> dict[str, str]:
    """Return the node of ``model`` that each node comes from in the graph that its session wrote to ``path``."""
    return _names(ir.from_proto(onnx.load(path, load_external_data=False)), known_names(model))


def _names(lowered: ir.Model, known: Mapping[str, str]) -> dict[str, str]:
    """Return new names by old ones; a node whose name tells nothing goes by the value that it makes."""
    names: dict[str, str] = {}
    for node in all_nodes(lowered):
        name = graph_name(node.name or "", known)
        made = [known[value.name] for value in node.outputs if value.name and value.name in known]
        names[node.name or ""] = name if name in known or not made else made[0]
    return names


def _type_of(node: ir.Node) -> ir.DataType | None:
    """Return the type of what a node makes, which onnxruntime does not write of values that it invented."""
    if node.op_type == "DequantizeLinear":
        scale = node.inputs[1]
        return scale.dtype if scale is not None else None
    if node.op_type == "QuantizeLinear":
        zero_point = node.inputs[2] if len(node.inputs) > 2 else None
        return zero_point.dtype if zero_point is not None else ir.DataType.UINT8
    if node.op_type == "QGemm" and len(node.inputs) < QGEMM_INPUTS:
        return ir.DataType.FLOAT
    first = next((value for value in node.inputs if value is not None), None)
    return first.dtype if first is not None else None
