"""The textual form of a model: ONNX's own syntax, printed one way only."""

from __future__ import annotations

import onnx_ir as ir

from .errors import ModelError
from .query import all_graphs, all_nodes

LEFT_OUT = "(left out)"
"""Where the text of a large tensor says its data lies."""


def to_text(model: ir.Model, largest: int | None = None) -> str:
    """Print ``model``; equal models print equally.

    Node names and notes for debugging (origins) are left out. With ``largest``, tensors of more elements are
    printed as external data in ``(left out)``: the text then is for reading, and weights are not touched.
    """
    import onnx

    if largest is not None:
        model = _without_data(model, largest)
    proto = ir.to_proto(model)
    for graph in _graphs(proto.graph):
        constants = {tensor.name for tensor in graph.initializer}
        typed = [info for info in graph.value_info if info.name not in constants]
        del graph.value_info[:]
        graph.value_info.extend(typed)
        for info in (*graph.value_info, *graph.input, *graph.output):
            del info.metadata_props[:]
    for nodes in (*(g.node for g in _graphs(proto.graph)), *(f.node for f in proto.functions)):
        for node in nodes:
            node.ClearField("name")
            node.ClearField("doc_string")
            for attr in node.attribute:
                if attr.HasField("t"):
                    attr.t.ClearField("name")
            del node.metadata_props[:]
    return "\n".join(line.rstrip() for line in onnx.printer.to_text(proto).splitlines()) + "\n"


def from_text(text: str) -> ir.Model:
    """Parse what :func:`to_text` prints.

    Raises:
        ModelError: it is not ONNX's textual syntax.
    """
    import onnx

    try:
        return ir.from_onnx_text(text)
    except onnx.parser.ParseError as error:
        raise ModelError(f"text of a model: {' '.join(str(error).split())}") from error


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:  # type: ignore[name-defined]  # noqa: F821
    found = [graph]
    for node in graph.node:
        for attr in node.attribute:
            if attr.HasField("g"):
                found += _graphs(attr.g)
            for inner in attr.graphs:
                found += _graphs(inner)
    return found


def _without_data(model: ir.Model, largest: int) -> ir.Model:
    from .model import clone

    model = clone(model)
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.size > largest:
                value.const_value = _placeholder(value.const_value)
    for node in all_nodes(model):
        held = node.attributes.get("value") if node.op_type == "Constant" else None
        if held is not None and not held.is_ref() and held.value.size > largest:
            node.attributes["value"] = ir.AttrTensor("value", _placeholder(held.value))
    return model


def _placeholder(tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(LEFT_OUT, None, None, tensor.dtype, shape=shape, name=tensor.name or "constant")
