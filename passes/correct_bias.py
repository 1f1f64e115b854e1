"""Take out of the biases what quantization adds to each channel on average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt import Decline, Effect, Names, Pass, PassReport, clone, selected
from graphopt.calibration import observe
from graphopt.query import attribute, constant, is_constant, is_op

from .layer_by_layer import LayerByLayer, Means, few
from .quantize.floats import in_floats

if TYPE_CHECKING:
    from graphopt import Context

Array = np.ndarray[Any, Any]


class CorrectBias(Pass):
    """Replace the bias ``b`` of a quantized layer by ``b + E[y] - E[ỹ]``, so that its channels keep their means.

    ``E[y]`` is the mean of each output channel over the calibration data in the float model, ``E[ỹ]`` that in the
    quantized one. Layers follow one another: each is compared when all those before it are corrected, so that no
    shift is corrected twice. It looks at 32 samples at most, and leaves alone what is no larger than chance between
    them, ``var / samples``, makes it. It runs behind ``insert-qdq`` or ``quantize-static`` in
    one pipeline, from which it has the float weights; of a file that was quantized before it corrects only what pairs
    on activations do. Convolutions rounded to nearest gain most; transformers may lose: compare the drift.

    Lossy: with the old biases back the result must be what it was. Source: Nagel et al. 2019 (arXiv:1906.04721),
    section 4, with the means from data as in its appendix D.
    """

    effect: ClassVar[Effect] = Effect.LOSSY

    include: tuple[str, ...] = Field((), description="patterns of layers or modules to correct")
    exclude: tuple[str, ...] = Field((), description="patterns of layers or modules to leave as they are")

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Compare the means of each generation of layers, and correct them before the next."""
        report, names = PassReport(), Names(model)
        layers = self._layers(model, report)
        if not layers:
            return report
        original, unknown = in_floats(model)
        if unknown:
            report.notes.append(
                f"weights such as {unknown[0]} ({len(unknown)} in all) are not known in floats any more: only what "
                f"pairs on activations do is corrected; run {self.name} in the pipeline that quantizes"
            )
        seen = few(model, context)
        wanted = _means(original, layers, seen)
        walk = LayerByLayer(model, seen)
        undo: list[_Change] = []
        generations = list(_generations(model, layers))
        for i, generation in enumerate(generations):
            axes = {each.name: each.axis for each in generation}
            got = walk.means(axes, f"means in integers, {i + 1} of {len(generations)}")
            for each in generation:
                shift = systematic(wanted[each.name] - got[each.name])
                if not shift.any():
                    continue
                if context.admit(report, each.node, f"by {np.abs(shift).max():.2g} at most"):
                    change = _corrected(each, shift, names)
                    undo.append(change)
                    if each.holder.op_type != "Add":  # else it is behind what the layer makes
                        walk.add(each.name, change.shift, each.axis)
            walk.forget({each.name for later in generations[i + 1 :] for each in later})
        if report.applied:
            report.restored = _restored(model, undo)
        return report

    def _layers(self, model: ir.Model, report: PassReport) -> list[_Layer]:
        found = []
        for node in model.graph:
            if not is_op(node, "Conv", "Gemm", "MatMul") or not _integers(node.inputs[1]):
                continue
            try:
                if not selected(node, self.include, self.exclude):
                    raise Decline("it is not selected")
                found.append(_Layer(node, *_bias(node)))
            except Decline as reason:
                report.decline(node, str(reason))
        return found


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer with integer weights, and where its bias is."""

    node: ir.Node
    holder: ir.Node
    """Reads the constant: a DequantizeLinear of a bias in integers, the layer itself, or the Add behind it."""
    index: int

    @property
    def name(self) -> str:
        """The name of what the layer makes."""
        return self.node.outputs[0].name or ""

    @property
    def axis(self) -> int:
        """The axis of channels in what it makes."""
        return 1 if self.node.op_type == "Conv" else -1


@dataclass(frozen=True)
class _Change:
    """A constant that took the place of another."""

    new: str
    old: ir.TensorProtocol
    shift: Array
    """What it is more than that, as a float for each channel."""


def _integers(value: ir.Value | None) -> bool:
    """Return whether ``value`` are weights behind a DequantizeLinear."""
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "DequantizeLinear" and is_constant(node.inputs[0])


def _bias(node: ir.Node) -> tuple[ir.Node, int]:
    """Return the node that reads the bias, and as which input."""
    if node.op_type == "MatMul":
        (reader,) = node.outputs[0].consumers() if len(node.outputs[0].uses()) == 1 else (None,)
        if not is_op(reader, "Add") or node.outputs[0].is_graph_output():
            raise Decline("no bias is added to it")
        assert reader is not None
        index = 1 if reader.inputs[0] is node.outputs[0] else 0
        if not is_constant(reader.inputs[index]):
            raise Decline("no constant bias is added to it")
        return reader, index
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        raise Decline("it has no bias")
    if attribute(node, "beta", 1.0) != 1:
        raise Decline(f"it multiplies its bias by {attribute(node, 'beta', 1.0):g}")
    if _integers(bias):
        maker = bias.producer()
        assert maker is not None
        return maker, 0
    if not is_constant(bias):
        raise Decline(f"its bias {bias.name} is computed")
    return node, 2


def _generations(model: ir.Model, layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    """Yield the layers in groups in which none feeds another, each group behind all that feed it."""
    by_node = {each.node: each for each in layers}
    depth: dict[ir.Value, int] = {}
    found: dict[int, list[_Layer]] = {}
    for node in model.graph:
        deepest = max((depth.get(value, 0) for value in node.inputs if value is not None), default=0)
        if node in by_node:
            deepest += 1
            found.setdefault(deepest, []).append(by_node[node])
        for value in node.outputs:
            depth[value] = deepest
    yield from (found[i] for i in sorted(found))


def _means(model: ir.Model, layers: Sequence[_Layer], context: Context) -> Mapping[str, Array]:
    """Return the means of each channel of what each layer makes, a row a sample."""
    seen = {each.name: Means(each.axis) for each in layers}
    observe(model, seen, context, what="means in floats")
    return {name: one.means for name, one in seen.items()}


def systematic(errors: Array) -> Array:
    """Return the mean of errors (samples, channels), less the more what differs from sample to sample is in it."""
    mean: Array = errors.mean(0)
    if len(errors) == 1:
        return mean
    chance = errors.var(0, ddof=1) / len(errors)
    power = np.square(mean)
    share: Array = np.divide(power - chance, power, out=np.zeros_like(power), where=power > chance)
    mean *= share
    return mean


def _corrected(each: _Layer, shift: Array, names: Names) -> _Change:
    """Add ``shift`` to the bias."""
    value = each.holder.inputs[each.index]
    assert value is not None and each.holder.graph is not None
    old = constant(value)
    if each.holder.op_type == "DequantizeLinear":
        scale = constant(each.holder.inputs[1]).astype(np.float64)
        moved = np.clip(np.rint(old + shift / scale), -(2**31), 2**31 - 1).astype(old.dtype)
        shift = (moved.astype(np.float64) - old) * scale
    else:
        moved = (old + shift).astype(old.dtype)
    tensor = ir.Tensor(moved, name=names.fresh(f"{value.name}_corrected"))
    new = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(moved.shape), const_value=tensor
    )
    each.holder.graph.register_initializer(new)
    each.holder.replace_input_with(each.index, new)
    if value.is_initializer() and not value.uses() and not value.is_graph_output():
        each.holder.graph.initializers.pop(value.name or "")
    return _Change(new.name or "", ir.Tensor(old), shift)


def _restored(model: ir.Model, undo: Sequence[_Change]) -> ir.Model:
    """Return the result with the old biases."""
    model = clone(model)
    for change in undo:
        value = model.graph.initializers[change.new]
        value.const_value, value.shape = change.old, ir.Shape(change.old.shape.numpy())
    return model
