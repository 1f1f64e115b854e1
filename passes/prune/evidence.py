"""What importance criteria look at: the weights of each group, and statistics of what multiplies them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context
from graphopt.analysis.channels import ChannelGroups, Group
from graphopt.calibration import observe
from graphopt.criteria import Criterion, Evidence, Reading, Slices
from graphopt.query import attribute, constant, constant_tensor, is_constant, optional

from ..channels import FLOATS
from .readers import Reader, readers

Array = np.ndarray[Any, Any]


def scores(
    model: ir.Model, groups: ChannelGroups, criterion: Criterion, context: Context
) -> dict[str, Array]:
    """Return what each channel of each group is worth, by the group's name."""
    values: dict[str, ir.Value] = {v.name or "": v for node in model.graph for v in node.outputs}
    values |= dict(model.graph.initializers.items())
    readings = _readings(model, groups, context) if criterion.needs_data else {}
    found: dict[str, Array] = {}
    known: dict[tuple[str, int], dict[str, Array]] = defaultdict(dict)
    for number, group in enumerate(groups.groups):
        context.progress("scoring channels", number, len(groups.groups))
        rng = np.random.default_rng([context.seed, number])
        found[group.name] = criterion.scores(
            Evidence(group, _slices(group, values, known), readings.get(group.name, ()), rng)
        )
    return found


def _slices(
    group: Group, values: dict[str, ir.Value], known: dict[tuple[str, int], dict[str, Array]]
) -> list[Slices]:
    made = set(group.sources)
    slices = []
    for member in group.members:
        value = values[member.constant]
        weights = _floats(value)
        if weights is None:
            continue
        nodes = tuple(use.node for use in value.uses())
        array = np.moveaxis(weights, member.axis, 0)
        names = {node.name for node in nodes} | {v.name for node in nodes for v in node.outputs}
        makes = bool(names & made) and member.axis == _makes(nodes[0])
        slices.append(Slices(member, array, makes, nodes, known[member.constant, member.axis]))
    return slices


def _floats(value: ir.Value) -> Array | None:
    """Return weights, those in integers as their DequantizeLinear makes them; ``None`` where these are none."""
    tensor = constant_tensor(value)
    if tensor is not None and tensor.dtype in FLOATS:
        return constant(value)
    node = next(
        (use.node for use in value.uses() if use.node.op_type == "DequantizeLinear" and use.idx == 0), None
    )
    scale, point = (optional(node, i) if node is not None else None for i in (1, 2))
    if node is None or scale is None or not is_constant(scale):
        return None
    array = constant(value).astype(np.float32)
    shape = [-1 if i == attribute(node, "axis", 1) % array.ndim else 1 for i in range(array.ndim)]
    if point is not None:
        array = array - constant(point).astype(np.float32).reshape(shape if constant(point).ndim else [])
    scaled: Array = array * constant(scale).reshape(shape if constant(scale).ndim else [])
    return scaled


def _makes(node: ir.Node) -> int:
    """Return the axis of a product's weights along which it makes channels."""
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    return 0 if node.op_type == "Conv" or transposed else 1


class _Moments:
    """Second moments and mean magnitudes of the channels along an axis."""

    def __init__(self, axis: int) -> None:
        self.axis, self.count = axis, 0
        self.moment: Array = np.zeros(())
        self.magnitude: Array = np.zeros(())

    def update(self, array: Array) -> None:
        """Take in the array of one sample."""
        rows = np.moveaxis(array, self.axis, -1).reshape(-1, array.shape[self.axis]).astype(np.float32)
        self.moment = self.moment + (rows.T @ rows).astype(np.float64)
        self.magnitude = self.magnitude + np.abs(rows).sum(0, dtype=np.float64)
        self.count += len(rows)


def _readings(model: ir.Model, groups: ChannelGroups, context: Context) -> dict[str, list[Reading]]:
    all_readers = [r for r in readers(model, groups) if r.value.producer() is not None]
    seen: dict[str, tuple[Reader, _Moments]] = {}
    for reader in all_readers:
        seen.setdefault(reader.value.name or "", (reader, _Moments(reader.axis)))
    observe(model, {name: moments for name, (_, moments) in seen.items()}, context, what="channels on data")
    found: dict[str, list[Reading]] = defaultdict(list)
    for reader in all_readers:
        moments = seen[reader.value.name or ""][1]
        moment, magnitude = moments.moment / moments.count, moments.magnitude / moments.count
        for name, channels in groups.along(reader.labels).items():
            found[name].append(Reading(reader.weights(), channels, moment, magnitude))
    return found
