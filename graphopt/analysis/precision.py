"""How precisely a model computes each output: the coarsest type on its way, and whether it is random."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from ..ops import is_random
from ..query import subgraphs

QUANTIZING = ("QuantizeLinear", "DynamicQuantizeLinear")
GRADES = ("float64", "float32", "float16", "int8", "bfloat16", "float8")
"""From the finest to the coarsest; ``int8`` is everything behind a quantization to integers."""


@dataclass(frozen=True)
class Precision:
    """What is known of a value."""

    dtype: ir.DataType | None = None
    grade: str | None = None
    """The coarsest floating type that it was computed in; ``None`` where nothing was computed."""
    random: bool = False
    """Whether two runs on the same inputs may differ."""


NOTHING = Precision()


def precision(model: ir.Model) -> dict[str, Precision]:
    """Return the precision of each graph output."""
    walk = _Walk(model)
    walk.graph(model.graph)
    return {value.name or "": walk.known.get(value, NOTHING) for value in model.graph.outputs}


def coarser(*grades: str | None) -> str | None:
    """Return the coarsest of some grades."""
    return max((g for g in grades if g is not None), key=GRADES.index, default=None)


def grade(dtype: ir.DataType | None) -> str | None:
    """Return the grade of computing in ``dtype``; ``None`` for integers, bools and strings."""
    if dtype is None or dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return "float32" if dtype == ir.DataType.COMPLEX64 else "float64"
    if not dtype.is_floating_point():
        return None
    return str(dtype.numpy().name) if dtype.bitwidth > 8 else "float8"


class _Walk:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.known: dict[ir.Value, Precision] = {}

    def graph(self, graph: Iterable[ir.Node]) -> None:
        """Follow the nodes in their order."""
        for node in graph:
            self._node(node)

    def _node(self, node: ir.Node) -> None:
        sources = [self._of(value) for value in node.inputs if value is not None]
        function = self.model.functions.get(node.op_identifier())
        if function is not None:
            for formal, actual in zip(function.inputs, node.inputs, strict=False):
                self.known[formal] = self._of(actual) if actual is not None else NOTHING
            self.graph(function)
            for inner, outer in zip(function.outputs, node.outputs, strict=False):
                self.known[outer] = self._of(inner)
            return
        for graph in subgraphs(node):
            self.graph(graph)
            sources += [self._of(value) for value in graph.outputs]
        coarsest = coarser(*(source.grade for source in sources))
        random = any(s.random for s in sources) or (is_random(node) and "seed" not in node.attributes)
        for value in node.outputs:
            dtype = value.dtype or _made(node) or next((s.dtype for s in sources if grade(s.dtype)), None)
            own = (
                "int8" if node.op_type in QUANTIZING else None if node.op_type == "Constant" else grade(dtype)
            )
            self.known[value] = Precision(dtype, coarser(coarsest, own), random)

    def _of(self, value: ir.Value) -> Precision:
        """Return what is known; inputs and weights are exact."""
        return self.known.get(value) or Precision(value.dtype)


def _made(node: ir.Node) -> ir.DataType | None:
    """Return the type that a Cast says it makes."""
    to = node.attributes.get("to")
    return ir.DataType(to.as_int()) if node.op_type == "Cast" and to is not None and not to.is_ref() else None
