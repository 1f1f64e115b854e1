"""The products that multiply channels by constant weights, and how their weights make up for channels that go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import ChannelGroups
from graphopt.query import attribute, constant, is_constant, is_op

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Reader:
    """A Conv without groups, a Gemm or a MatMul."""

    node: ir.Node
    labels: Array
    """The atoms of the channels that it reads: (n,)."""
    axis: int
    """Where they lie in what it reads."""
    inputs_axis: int
    """Where they lie in its weights."""

    @property
    def value(self) -> ir.Value:
        """What it reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    def weights(self) -> Array:
        """Return its weights, the axis of what it reads first: (n, …)."""
        moved: Array = np.moveaxis(constant(self.node.inputs[1]), self.inputs_axis, 0)
        return moved


def readers(model: ir.Model, groups: ChannelGroups) -> list[Reader]:
    """Return the products by constants, in the order of the graph."""
    axes = {value.name: labels for value, labels in groups.flow.axes.items()}
    found = []
    for node in model.graph:
        if not is_op(node, "Conv", "Gemm", "MatMul") or not is_constant(node.inputs[1]):
            continue
        x, value = node.inputs[0], node.inputs[1]
        if x is None or value is None or x.name not in axes or is_constant(x):
            continue
        if node.op_type == "Conv" and attribute(node, "group", 1) == 1:
            found.append(Reader(node, axes[x.name][1], 1, 1))
        elif node.op_type == "Gemm" and not attribute(node, "transA", 0):
            found.append(Reader(node, axes[x.name][1], 1, 1 if attribute(node, "transB", 0) else 0))
        elif node.op_type == "MatMul" and len(axes[x.name]) >= 2 and len(constant(value).shape) == 2:
            found.append(Reader(node, axes[x.name][-1], len(axes[x.name]) - 1, 0))
    return found
