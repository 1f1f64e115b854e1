"""Let what multiplies the channels that are left make up for those that are gone, from calibration data."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, Names
from graphopt.analysis.channels import ChannelGroups
from graphopt.calibration import observe
from graphopt.query import constant, constant_tensor, is_constant, optional, used_once

from ..channels import put
from .masked import masked
from .readers import Reader, readers

Array = np.ndarray[Any, Any]
SAMPLES = 256
"""So many are looked at."""
ROWS = 32768
"""So many positions of all samples together serve a fit."""
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Shares of the mean second moment that are added to each one: where data are few, weights stay as they were."""


class Rows:
    """Keeps some positions of each sample, the same of each value of the same sizes."""

    def __init__(self, axis: int, share: int) -> None:
        self.axis, self.share = axis, share
        self._parts: list[Array] = []

    def update(self, array: Array) -> None:
        """Take in the array of one sample."""
        rows = np.moveaxis(array, self.axis, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        if len(rows) > self.share:
            rng = np.random.default_rng([len(self._parts), len(rows)])
            rows = rows[np.sort(rng.choice(len(rows), self.share, replace=False))]
        self._parts.append(rows.astype(np.float32))

    @property
    def rows(self) -> Array:
        """The positions: (rows, channels)."""
        return np.concatenate(self._parts)


def compensate(
    model: ir.Model, original: ir.Model, groups: ChannelGroups, gone: Array, context: Context, method: str
) -> int:
    """Change weights and biases of the products that lose channels, in place; all shapes stay. Return how many.

    ``original`` is the model before any of its channels went: what weights are fitted to.

    Products follow one another: each sees what those before it make when the channels are gone. With ``x`` (C,) the
    original's input of a product and ``z`` (Z,) what is left of it in the pruned model::

        B, c = argmin E‖x - B z - c‖²          (C, Z), (C,)
        W' = W B        b' = b + W c

    ``bias`` fits ``c`` alone. All taps of a convolution are multiplied by the same ``B``. How much a fit is damped is
    chosen on a fifth of the data that it does not see; where none helps there, the weights stay.
    """
    affected = [
        r
        for r in readers(model, groups)
        if not groups.kept(r.labels, gone).all() and r.value.producer() is not None and _own(r)
    ]
    data = list(islice(context.calibration if context.calibration is not None else context.samples, SAMPLES))
    seen = Context(model, calibration=data)
    pruned = masked(model, groups, gone)
    twins, first = (
        {v.name: v.producer() for node in each.graph for v in node.outputs} for each in (pruned, original)
    )
    count, share = 0, max(1, ROWS // len(data))
    for number, reader in enumerate(affected):
        context.progress("making up for channels", number, len(affected))
        twin = twins[reader.node.outputs[0].name]
        assert twin is not None and twin.inputs[0] is not None
        x = _look(original, reader.value.name or "", reader.axis, share, seen)
        z = _look(pruned, twin.inputs[0].name or "", reader.axis, share, seen)
        left = groups.kept(reader.labels, gone)
        bias = holder(reader.node)
        fit = _fit(x, z[:, left], left, least_squares=method == "least-squares", shifts=bias is not None)
        if fit is None:
            continue
        mixed, shift = fit
        source = first[reader.node.outputs[0].name]
        assert source is not None
        w = replace(reader, node=source).weights().astype(np.float64)
        new = np.where(left.reshape(-1, *[1] * (w.ndim - 1)), w, 0)
        new[left] += np.tensordot(mixed, w, (1, 0))
        edits = {(reader.node.outputs[0].name, 1): np.moveaxis(new, 0, reader.inputs_axis)}
        if bias is not None:
            node, index = bias
            per_output = np.tensordot(shift, w, (0, 0))
            per_output = per_output.reshape(len(per_output), -1).sum(1)
            before = first[node.outputs[0].name]
            assert before is not None
            edits[node.outputs[0].name, index] = constant(before.inputs[index]) + per_output
        _write(model, edits, groups, None)
        _write(pruned, edits, groups, gone)
        count += 1
    return count


def holder(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Return the node that adds a vector to what a product makes, and the index of that; ``None`` where none does."""
    if node.op_type in ("Conv", "Gemm"):
        value = optional(node, 2)
        own = (
            value is not None and is_constant(value) and len(constant(value).shape) == 1 and used_once(value)
        )
        return (node, 2) if own else None
    made = node.outputs[0]
    if not used_once(made) or made.is_graph_output():
        return None
    (use,) = made.uses()
    other = use.node.inputs[1 - use.idx] if use.node.op_type == "Add" else None
    if other is None or not is_constant(other) or len(constant(other).shape) != 1 or not used_once(other):
        return None
    return use.node, 1 - use.idx


def _own(reader: Reader) -> bool:
    value = reader.node.inputs[1]
    tensor = constant_tensor(value)
    floats = tensor is not None and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    return value is not None and floats and used_once(value)


def _look(model: ir.Model, name: str, axis: int, share: int, context: Context) -> Array:
    rows = Rows(axis, share)
    observe(model, {name: rows}, context)
    return rows.rows


def _fit(x: Array, z: Array, left: Array, *, least_squares: bool, shifts: bool) -> tuple[Array, Array] | None:
    """Return ``B - 1`` transposed (Z, C), and ``c`` (C,); ``None`` where the weights alone are as good."""
    missing = x.astype(np.float64)
    missing[:, left] -= z
    z = z.astype(np.float64)
    cut = max(1, len(x) * 4 // 5)
    mean_z, mean_m = (each[:cut].mean(0) if shifts else np.zeros(each.shape[1]) for each in (z, missing))
    centred, wanted = z[:cut] - mean_z, missing[:cut] - mean_m
    square, cross = centred.T @ centred, centred.T @ wanted
    size = max(float(np.diag(square).mean()), 1e-30)
    tried: list[Array] = [np.zeros(cross.shape)]
    if least_squares:
        tried += [
            np.linalg.solve(square + damping * size * np.eye(len(square)), cross) for damping in DAMPINGS
        ]
    held_z, held = (z[cut:], missing[cut:]) if cut < len(x) else (z, missing)
    before = float(np.square(held).sum())
    errors = [float(np.square(held - mean_m - (held_z - mean_z) @ mixed).sum()) for mixed in tried]
    best = int(np.argmin(errors))
    if not errors[best] < before:
        return None
    mixed = tried[best]
    return mixed, mean_m - mean_z @ mixed


def _write(
    model: ir.Model, edits: dict[tuple[str | None, int], Array], groups: ChannelGroups, gone: Array | None
) -> None:
    """Put constants in; with zeros where ``gone`` marks what is cut away."""
    names = Names(model)
    made = {v.name: v.producer() for node in model.graph for v in node.outputs}
    axes = {value.name: labels for value, labels in groups.flow.axes.items()}
    for (name, index), array in edits.items():
        node = made[name]
        assert node is not None
        value = node.inputs[index]
        tensor = constant_tensor(value)
        assert value is not None and tensor is not None
        array = array.copy()
        if gone is not None:
            for axis, labels in enumerate(axes[value.name]):
                array[(slice(None),) * axis + (~groups.kept(labels, gone),)] = 0
        put(node, index, array.astype(tensor.dtype.numpy()), names)
