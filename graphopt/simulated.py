"""Compare a target's integer kernels with the rounding that the pairs of a model ask for, one layer at a time.

Without optimizations, the runtime computes each layer in floats between a DequantizeLinear and a QuantizeLinear: that
is the rounding which the graph asks for. With them it runs integer kernels. Errors of one layer would spread to those
behind it; so the model is cut at each QuantizeLinear, whose integers become an output, and its readers get the
integers of the simulation as an input. Each layer is then fused as in the whole model, and answers for itself alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from .analysis.precision import coarser, grade
from .closeness import Difference, tolerance
from .context import Feeds
from .groups import divided
from .interfaces import place
from .model import clone
from .ops import is_random
from .query import all_nodes, is_constant
from .runners import OnnxRuntime
from .surgery import Names

if TYPE_CHECKING:
    from .interfaces import Backend

Array = np.ndarray[Any, Any]
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
ALLOWED = 1
"""So many quanta may a kernel be off: it multiplies and rounds in another order."""
BUDGET_BYTES = 256 << 20
"""So much may the integers take together that are compared at a time."""


@dataclass
class Layer:
    """What leads to one QuantizeLinear, and how far its integers are from those of the simulation."""

    name: str
    """The node that makes what is quantized."""
    nodes: tuple[str, ...] = ()
    """All nodes between the DequantizeLinear before and the QuantizeLinear, the last one first."""
    largest: int = 0
    """Largest difference of an element, in quanta."""
    differing: int = 0
    elements: int = 0

    @property
    def share(self) -> float:
        """The share of elements that differ."""
        return self.differing / self.elements if self.elements else 0.0

    def text(self) -> str:
        """Return how far the layer is off."""
        return (
            f"layer {self.name}: the integers of the target's kernel are up to {self.largest} quanta from the "
            f"simulated rounding, {ALLOWED} is allowed; {_percent(self.share)} of them differ"
        )

    def add(self, wanted: Array, got: Array) -> None:
        """Take in the integers of one sample."""
        apart = np.abs(wanted.astype(np.int64) - got.astype(np.int64))
        self.largest = max(self.largest, int(apart.max(initial=0)))
        self.differing += int(np.count_nonzero(apart))
        self.elements += apart.size


@dataclass
class Comparison:
    """What was found on all samples."""

    layers: list[Layer]
    outputs: list[Difference] = field(default_factory=list)
    """The graph outputs that are floats: behind the last integers, they must be equal up to rounding."""

    @property
    def wrong(self) -> list[Layer]:
        """The layers that are further off than rounding, the worst first."""
        found = [layer for layer in self.layers if layer.largest > ALLOWED]
        return sorted(found, key=lambda layer: (-layer.largest, -layer.share, layer.name))

    @property
    def ok(self) -> bool:
        """Whether every layer is within one quantum, and every float output equal up to rounding."""
        return not self.wrong and all(output.ok for output in self.outputs)

    def text(self) -> str:
        """Return the verdict, one line."""
        count = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)}"
        if self.wrong:
            others = f"; {len(self.wrong)} of {count} are off" if len(self.wrong) > 1 else ""
            return f"{self.wrong[0].text()}{others}"
        if bad := [output for output in self.outputs if not output.ok]:
            return f"{bad[0].reason}, behind integers that are those of the simulated rounding"
        differing = sum(layer.differing for layer in self.layers)
        if not differing:
            return f"{count} on integers equal the simulated rounding"
        share = differing / sum(layer.elements for layer in self.layers)
        worst = max(self.layers, key=lambda layer: layer.share)
        return (
            f"{count} on integers within one quantum of the simulated rounding, which {_percent(share)} of elements "
            f"miss, in {worst.name} {_percent(worst.share)}"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def compare_integers(
    model: ir.Model, target: Backend, feeds: Sequence[Feeds], *, budget_bytes: int = BUDGET_BYTES
) -> Comparison | None:
    """Run the layers of ``model`` on ``target`` and simulated; ``None`` where it has no pairs, or is random.

    Memory is that of the model's two sessions and of ``budget_bytes``, whatever the number of layers.

    Raises:
        ModelError: the runtime or the target refuses the model or its parts.
        InputError: the inputs do not fit.
    """
    cuts = [node for node in model.graph if _is_cut(node)]
    if not cuts or any(is_random(node) for node in all_nodes(model)):
        return None
    layers = {_made(node): Layer(*_upstream(node)) for node in cuts}
    floats = [v.name or "" for v in model.graph.outputs if v.dtype is None or v.dtype.is_floating_point()]
    found = Comparison(list(layers.values()), [Difference(name) for name in floats])
    groups = divided(giving(model, list(layers)), list(layers), feeds[0], budget_bytes)
    for i, group in enumerate(groups):
        last = i == len(groups) - 1
        _compare(model, target, feeds, {name: layers[name] for name in group}, found.outputs if last else [])
    coarsest = coarser(*(grade(value.dtype) for node in all_nodes(model) for value in node.outputs))
    for output in found.outputs:
        output.judge(tolerance(coarsest or "float32"))
    return found


def _compare(
    model: ir.Model,
    target: Backend,
    feeds: Sequence[Feeds],
    layers: Mapping[str, Layer],
    outputs: Sequence[Difference],
) -> None:
    """Compare some layers, and the graph outputs where they are wanted."""
    names = [*layers, *(output.name for output in outputs)]
    parts, given = cut(model, names)
    fed = {value.name for value in parts.graph.inputs}
    with (
        OnnxRuntime(giving(model, list(dict.fromkeys([*names, *given])))) as simulation,
        target.compile(parts) as executable,
    ):
        for i, feed in enumerate(feeds):
            wanted = simulation.run(feed)
            inputs = {name: array for name, array in feed.items() if name in fed and array is not None}
            got = executable.run({**inputs, **{new: wanted[old] for old, new in given.items()}})
            for name, layer in layers.items():
                layer.add(wanted[name], got[name])
            for output in outputs:
                output.add(wanted[output.name], got[output.name], i)


# --- the cut model ----------------------------------------------------------------------------------------------------


def _is_cut(node: ir.Node) -> bool:
    return node.op_type == QUANTIZE and not is_constant(node.inputs[0])


def _made(node: ir.Node) -> str:
    return node.outputs[0].name or ""


def cut(model: ir.Model, names: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """Return the part of ``model`` that makes the values ``names``, each layer fed by inputs in place of integers.

    With it comes the name of the input for each value of integers that is to be given.
    """
    parts = clone(model)
    fresh = Names(parts)
    given: dict[str, str] = {}
    for node in [node for node in parts.graph if _is_cut(node)]:
        (value,) = node.outputs
        source = ir.Value(name=fresh.fresh(f"{value.name}_given"), type=ir.TensorType(_dtype(node)))
        source.shape = value.shape or (node.inputs[0].shape if node.inputs[0] is not None else None)
        value.type = source.type
        value.replace_all_uses_with(source, replace_graph_outputs=False)
        parts.graph.inputs.append(source)
        given[value.name or ""] = source.name or ""
    _keep(parts, names)
    common.RemoveUnusedNodesPass()(parts)
    read = {value.name for value in parts.graph.inputs if value.uses() or value.is_graph_output()}
    inputs = [value for value in parts.graph.inputs if value.name in read]
    parts.graph.inputs.clear()
    parts.graph.inputs.extend(inputs)
    return parts, {old: new for old, new in given.items() if new in read}


def giving(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy of ``model`` with the values ``names`` as its outputs."""
    copy = clone(model)
    for node in copy.graph:
        if _is_cut(node):
            node.outputs[0].type = ir.TensorType(_dtype(node))
    _keep(copy, names)
    return copy


def _keep(model: ir.Model, names: Sequence[str]) -> None:
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in names)


def _dtype(node: ir.Node) -> ir.DataType:
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    if zero_point is not None and zero_point.dtype is not None:
        return zero_point.dtype
    asked = node.attributes.get("output_dtype")
    return ir.DataType(asked.as_int()) if asked is not None and asked.as_int() else ir.DataType.UINT8


def _upstream(node: ir.Node) -> tuple[str, tuple[str, ...]]:
    """Return what a layer is called, and its nodes from the QuantizeLinear ``node`` up to integers, nearest first."""
    found: dict[ir.Node, None] = {}
    queue = [node]
    while queue:
        for value in queue.pop(0).inputs:
            maker = value.producer() if value is not None else None
            if maker is not None and maker.op_type not in (QUANTIZE, DEQUANTIZE) and maker not in found:
                found[maker] = None
                queue.append(maker)
    names = tuple(map(place, found))
    return names[0] if names else place(node), names
