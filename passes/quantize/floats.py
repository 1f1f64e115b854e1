"""What the integers of a model stood for: the same model in floats, as long as it is in memory."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import clone

FLOAT = "graphopt.float"
"""Key of ``value.meta`` of what a DequantizeLinear makes of weights: the float tensor that they were rounded from.

It lives in memory alone: a model that comes from a file does not have it.
"""


def in_floats(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """Return a copy of ``model`` without Q/DQ pairs, and with the float weights in place of the integers.

    Weights that are not known in floats any more stay integers; their names come second.
    """
    unknown: list[str] = []
    model = clone(model)
    graph = model.graph
    for node in [node for node in graph if node.op_type == "DequantizeLinear"]:
        (output,), x = node.outputs, node.inputs[0]
        maker = x.producer() if x is not None else None
        if (tensor := output.meta.get(FLOAT)) is not None:
            value = ir.Value(
                name=f"{output.name}_float",
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
            graph.register_initializer(value)
        elif maker is not None and maker.op_type == "QuantizeLinear" and maker.inputs[0] is not None:
            value = maker.inputs[0]
        else:
            unknown.append(x.name or "?" if x is not None else "?")
            continue
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        if maker is not None and not maker.outputs[0].uses():
            graph.remove(maker, safe=True)
    return model, unknown
