"""Small networks with random weights, and what holds of whatever is cut out of one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from graphopt_passes.prune.cut import cut
from graphopt_passes.prune.masked import masked

from graphopt import channel_groups, clone, compare
from graphopt.analysis.channels import ChannelGroups, separate
from graphopt.testing import valid
from graphopt.text import from_text

Array = np.ndarray[Any, Any]


def network(text: str, opset: int = 21) -> ir.Model:
    """Return the model of ``text``; what that declares without saying what it is becomes random weights."""
    model = from_text(
        f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "mine" : 1]>\nnet {text}'
    )
    rng = np.random.default_rng(0)
    known = {*model.graph.inputs, *model.graph.initializers.values()}
    for value in dict.fromkeys(v for node in model.graph for v in node.inputs if v is not None):
        if value.producer() is None and value not in known and value.shape is not None:
            shape = value.shape.numpy()
            assert value.dtype is not None
            floats = value.dtype.is_floating_point()
            drawn = rng.normal(size=shape) if floats else rng.integers(-99, 100, shape)
            array = np.asarray(drawn).astype(value.dtype.numpy())
            value.const_value = ir.tensor(array, name=value.name)
            model.graph.register_initializer(value)
    return model


def shown(groups: ChannelGroups) -> list[str]:
    """Return a line for each group, ``name: channels: members``, and one for each node that lets none through."""
    lines = []
    for group in groups:
        size = f" of {group.block}" if group.block > 1 else ""
        lines.append(f"{group.name}: {group.channels}{size}: {', '.join(map(str, group.members))}")
    return lines + [f"{r.op_type} {r.place} stays: {r.reason}" for r in groups.refusals]


def half(groups: ChannelGroups, rng: np.random.Generator) -> Array:
    """Mark half of the channels of each group, drawn by lot."""
    gone = groups.nothing()
    for group in groups:
        gone[rng.permutation(group.atoms)[: group.channels // 2]] = True
    return groups.spared(gone)


def same_as_masked(
    model: ir.Model, groups: ChannelGroups, gone: Array, outputs: Collection[str] = ()
) -> ir.Model:
    """Cut what ``gone`` marks out of ``model``, and return what is left.

    That is valid, has the shapes that ONNX infers, computes what the original with zeros computes, and its own
    analysis counts the MACs and parameters that were foretold.
    """
    model = clone(model)
    separate(model)
    reference, pruned = masked(model, groups, gone), clone(model)
    cut(pruned, groups, gone)
    valid(pruned)
    onnx.shape_inference.infer_shapes(ir.to_proto(pruned), check_type=True, strict_mode=True, data_prop=True)
    found = compare(reference, pruned)
    assert found.ok, found.text()
    again = channel_groups(pruned, outputs=outputs)
    assert again.macs() == groups.macs(gone)
    assert again.parameters() == groups.parameters(gone)
    return pruned
