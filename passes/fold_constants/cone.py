"""Cones of constant nodes: what one foldable node alone reads is not folded by itself, but computed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import Tape
from graphopt.query import constant_tensor

from .kernels import KERNELS

if TYPE_CHECKING:
    from graphopt.context import Context

DEEPEST = 64
"""So many nodes wait in a row at most; the next is folded, and a new cone begins there."""


class Waiting:
    """The values of one model whose node waits to be folded together with its only reader, with their depth."""

    survives_edits = True

    def __init__(self, model: ir.Model, context: Context) -> None:
        self._depth: dict[ir.Value, int] = {}
        self._refused: set[ir.Value] = set()

    def __contains__(self, value: ir.Value) -> bool:
        return value in self._depth

    def waits(self, node: ir.Node, tape: Tape) -> bool:
        """Let ``node``, which is constant, wait where its only reader can be folded too as far as can be seen."""
        if tape.in_function or len(node.outputs) != 1:
            return False
        (value,) = node.outputs
        self._depth.pop(value, None)
        depth = 1 + max((self._depth.get(v, 0) for v in node.inputs if v is not None), default=0)
        uses = value.uses()
        if len(uses) != 1 or depth > DEEPEST or value.is_graph_output() or value in self._refused:
            return False
        (use,) = uses
        reader = use.node
        if reader.graph is not node.graph or reader.op_type == "Identity":
            return False
        if not self._is_foldable(reader, besides=value):
            return False
        self._depth[value] = depth
        tape.wait()
        return True

    def _is_foldable(self, node: ir.Node, besides: ir.Value) -> bool:
        """Return whether a kernel computes ``node``, and each input is constant, waits, or is a step away from it."""
        if node.domain != "" or node.op_type not in KERNELS:
            return False
        return all(
            value is None or value is besides or self._is_fixed(value) or self._is_near(value.producer())
            for value in node.inputs
        )

    def _is_near(self, node: ir.Node | None) -> bool:
        if node is None or node.domain != "" or node.op_type not in KERNELS or not node.inputs:
            return False
        return all(value is None or self._is_fixed(value) for value in node.inputs)

    def _is_fixed(self, value: ir.Value) -> bool:
        return value in self._depth or constant_tensor(value) is not None

    def release(self, node: ir.Node, tape: Tape) -> None:
        """Let nothing wait for ``node`` any longer: it is not folded."""
        for value in node.inputs:
            if value is not None and value in self._depth:
                del self._depth[value]
                self._refused.add(value)
                tape.revisit(value.producer())

    def infer(self, node: ir.Node, tape: Tape) -> None:
        """Infer the shapes of the cone up to ``node``, which nobody asked for while it waited."""
        for value in node.inputs:
            producer = value.producer() if value is not None and value in self._depth else None
            if producer is not None:
                self.infer(producer, tape)
        tape.shapes().infer(node)

    def leaves(self, node: ir.Node) -> Iterator[ir.Value]:
        """Yield the constants at the foot of the cone over which ``node`` stands, each as often as it is read."""
        for value in node.inputs:
            if value is None:
                continue
            producer = value.producer()
            if value in self._depth and producer is not None and producer.op_type != "Constant":
                yield from self.leaves(producer)
            else:
                yield value
