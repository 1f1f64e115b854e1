"""The model that one with fewer layers must equal: nothing is taken away, and nothing is folded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Names, all_nodes, clone

from .layer_compensation import Fit, Makers
from .weights import initializer

Array = np.ndarray[Any, Any]


class LayerReference:
    """A copy of a model in which a layer's result counts nothing, and what it got stands in, fitted by nodes."""

    def __init__(self, model: ir.Model) -> None:
        self.model = clone(model)
        self._names = Names(self.model)
        self._now = dict(zip(model.graph.inputs, self.model.graph.inputs, strict=True))
        """What stands for each value of the model."""
        for node, other in zip(all_nodes(model), all_nodes(self.model), strict=True):
            self._now.update(zip(node.outputs, other.outputs, strict=True))

    def drop(self, x: ir.Value, y: ir.Value, axis: int, found: Makers | None, fit: Fit) -> None:
        """Let ``y`` be ``0 y + x``, with the fit."""
        if found is not None and found.m is not None and (fit.d is not None or fit.t is not None):
            self._map(found.m, fit, axis)
        if fit.s is not None and fit.c is not None:
            self._then(x, ("Mul", fit.s), ("Add", fit.c))
        self._then(y, ("Mul", np.zeros(())), ("Add", self._now[x]))

    def _map(self, m: ir.Value, fit: Fit, axis: int) -> None:
        """Let ``m`` be ``m + m d + t``."""
        size = len(m.shape or ())
        steps: list[tuple[str, Array | ir.Value]] = []
        along = [-1 if i == axis else 1 for i in range(size)]
        if fit.d is not None:
            full = np.eye(len(fit.d)) + fit.d
            last = axis == size - 1
            steps.append(("MatMul", full) if last else ("Conv", full.T.reshape(*full.shape, *along[2:])))
        if fit.t is not None:
            steps.append(("Add", fit.t.reshape(along)))
        self._then(m, *steps)

    def _then(self, value: ir.Value, *steps: tuple[str, Array | ir.Value]) -> None:
        """Put operators with a second operand behind what stands for ``value``: they stand for it from now on."""
        old = self._now[value]
        graph, before = self.model.graph, old.producer()
        uses, made = list(old.uses()), old
        for op_type, operand in steps:
            other = operand if isinstance(operand, ir.Value) else self._constant(operand, old)
            node = ir.node(op_type, [made, other], name=self._names.fresh_node(f"{op_type}_reference"))
            (made,) = node.outputs
            made.name, made.type, made.shape = self._names.fresh("reference"), old.type, old.shape
            if before is None:
                graph.insert_before(graph[0], node)
            else:
                graph.insert_after(before, node)
            before = node
        for use in uses:
            use.node.replace_input_with(use.idx, made)
        for i, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[i] = made
                old.name, made.name = made.name, old.name
        self._now[value] = made

    def _constant(self, array: Array, like: ir.Value) -> ir.Value:
        assert like.dtype is not None
        tensor = ir.Tensor(np.asarray(array).astype(like.dtype.numpy()))
        value = initializer(tensor, self._names.fresh("fitted"))
        self.model.graph.register_initializer(value)
        return value
