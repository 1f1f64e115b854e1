"""Run a model over calibration data layer by layer: each layer begins with what those before it made."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, clone
from graphopt.calibration import ChannelStatistics, observe

Array = np.ndarray[Any, Any]

SAMPLES = 32
"""So many are looked at; of each, what layers make is kept as long as other layers need it."""


def few(model: ir.Model, context: Context) -> Context:
    """Return a context with the first :data:`SAMPLES` of the calibration data; the same one where there are none."""
    if context.calibration is None:
        return context
    data = list(islice(context.calibration, SAMPLES))
    return Context(model, calibration=data, progress=context.progress)


class LayerByLayer:
    """Looks at the values of a model in the order of its layers, while the layers change."""

    def __init__(self, model: ir.Model, context: Context) -> None:
        self.model, self.context = model, context
        data = context.calibration if context.calibration is not None else context.samples
        self.kept: list[dict[str, Array]] = [dict(feed) for feed in data]
        """By sample, what is known, by name: the inputs, and what layers made."""

    def means(self, axes: Mapping[str, int], what: str) -> dict[str, Array]:
        """Return the means of each channel of the values named, a row a sample; from now on they are known."""
        part = self._part(axes)
        names = [value.name or "" for value in part.graph.inputs]
        data = [{name: known[name] for name in names if name in known} for known in self.kept]
        seen = {name: (Means(axis), _Kept()) for name, axis in axes.items()}
        observe(part, seen, Context(part, calibration=data, progress=self.context.progress), what=what)
        for name, (_, one) in seen.items():
            for known, array in zip(self.kept, one.arrays, strict=True):
                known[name] = array
        return {name: one.means for name, (one, _) in seen.items()}

    def add(self, name: str, shift: Array, axis: int) -> None:
        """Let a known value be more by ``shift``, a number for each channel along ``axis``."""
        for known in self.kept:
            shape = [1] * known[name].ndim
            shape[axis] = -1
            known[name] = (known[name] + shift.reshape(shape)).astype(known[name].dtype)

    def forget(self, wanted: Collection[str]) -> None:
        """Keep nothing but what the values in ``wanted`` are made from."""
        inputs = {value.name or "" for value in self.model.graph.inputs}
        _, used = self._behind(wanted)
        for known in self.kept:
            for name in known.keys() - used - inputs:
                del known[name]

    def _part(self, wanted: Collection[str]) -> ir.Model:
        """Return the part of the model that makes ``wanted`` from what is known."""
        behind, used = self._behind(wanted)
        part = clone(self.model)
        graph = part.graph
        graph.outputs.clear()
        made = {value.name: value for node in graph for value in node.outputs}
        for name in sorted(used & made.keys()):
            array = self.kept[0][name]
            shape = ir.Shape([None] * array.ndim)
            known = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=shape)
            made[name].replace_all_uses_with(known)
            graph.inputs.append(known)
        idle = [node for node in graph if node.outputs[0].name not in behind]
        for node in (each for one in idle for each in _with_nested(one)):
            for i in range(len(node.inputs)):
                node.replace_input_with(i, None)
        graph.remove(idle)
        for name, value in list(graph.initializers.items()):
            if not value.uses():
                del graph.initializers[name]
        return part

    def _behind(self, wanted: Collection[str]) -> tuple[set[str], set[str]]:
        """Return the first value of each node that ``wanted`` are made by, and the known values that those read."""
        known = self.kept[0].keys() - set(wanted)
        waiting = [v for node in self.model.graph for v in node.outputs if v.name in wanted]
        behind: set[str] = set()
        used: set[str] = set()
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if value.name in known:
                used.add(value.name or "")
            elif node is not None and node.graph is self.model.graph:
                first = node.outputs[0].name or ""
                if first not in behind:
                    behind.add(first)
                    waiting += _read(node)
        return behind, used


class Means:
    """An observer of the mean of each channel along ``axis``, sample by sample."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._rows: list[Array] = []

    def update(self, array: Array) -> None:
        """Take in the array of one sample."""
        one = ChannelStatistics(self.axis)
        one.update(array)
        self._rows.append(one.mean)

    @property
    def means(self) -> Array:
        """The means: (samples, channels)."""
        return np.stack(self._rows)


class _Kept:
    """An observer that keeps what it sees."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []

    def update(self, array: Array) -> None:
        self.arrays.append(array)


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, in its subgraphs too."""
    for each in _with_nested(node):
        yield from (value for value in each.inputs if value is not None)
    for graph in _subgraphs(node):
        yield from graph.outputs


def _with_nested(node: ir.Node) -> Iterator[ir.Node]:
    yield node
    for graph in _subgraphs(node):
        for inner in graph:
            yield from _with_nested(inner)


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
