"""Put the nodes of one branch of an If in its place."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import Tape
from graphopt.query import attribute


def inline_branch(node: ir.Node, name: str, tape: Tape) -> list[ir.Value | None]:
    """Record copies of the nodes and initializers of branch ``name``; return its outputs."""
    branch: ir.Graph = attribute(node, name).clone(allow_outer_scope_values=True)
    outputs = list(branch.outputs)
    held = [(value, value.const_value) for value in branch.initializers.values()]
    moved = {value: tape.initializer(tensor, name=value.name) for value, tensor in held if tensor is not None}
    for value, constant in moved.items():
        value.replace_all_uses_with(constant, replace_graph_outputs=True)
    outputs = [moved.get(value, value) for value in outputs]
    branch.outputs.clear()
    nodes = list(branch)
    branch.remove(nodes)
    for inner in nodes:
        tape.adopt(inner)
    return list(outputs)
