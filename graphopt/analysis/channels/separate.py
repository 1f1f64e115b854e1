"""Vectors that several nodes share: each gets its own, so that what is cut for one does not bind the others."""

from __future__ import annotations

import onnx_ir as ir

from ...query import constant_tensor
from ...surgery import Names
from .flow import INDEX

QUANTIZE = ("QuantizeLinear", "DequantizeLinear")


def separate(model: ir.Model) -> None:
    """Give each reader of a shared vector of weights one of its own; the model is changed in place.

    Matrices that are shared stay so: their readers' channels go together. Constant nodes become initializers. No
    array is copied.
    """
    graph, names = model.graph, Names(model)
    for node in [node for node in graph if node.op_type == "Constant" and node.domain == ""]:
        (value,) = node.outputs
        tensor = constant_tensor(value)
        if tensor is not None and not value.is_graph_output():
            value.replace_all_uses_with(made := _initializer(tensor))
            made.name = value.name
            graph.remove(node, safe=True)
            graph.register_initializer(made)
    for value in list(graph.initializers.values()):
        tensor = constant_tensor(value)
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        if tensor.dtype in INDEX and not all(use.node.op_type in QUANTIZE for use in value.uses()):
            continue
        if sum(int(n) > 1 for n in tensor.shape.numpy()) != 1:
            continue
        for use in list(value.uses())[1:]:
            if use.node.graph is not graph:
                continue
            own = _initializer(tensor)
            own.name = names.fresh(f"{value.name}_of_{use.node.outputs[0].name}")
            graph.register_initializer(own)
            use.node.replace_input_with(use.idx, own)


def _initializer(tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.Value(type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
