"""Divide the values of a model so that those of one group fit into memory together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from .model import clone

if TYPE_CHECKING:
    from .context import Feeds


def divided(model: ir.Model, names: Sequence[str], feed: Feeds, budget_bytes: int) -> list[list[str]]:
    """Return the values ``names`` in groups that fit into the budget, as large as they are in the sample ``feed``.

    A larger value comes alone. Without names there is one group, which is empty.
    """
    groups: list[list[str]] = [[]]
    room = budget_bytes
    for name, size in _sizes(model, names, feed).items():
        if size > room and groups[-1]:
            groups.append([])
            room = budget_bytes
        groups[-1].append(name)
        room -= size
    return groups


def _sizes(model: ir.Model, names: Sequence[str], feed: Feeds) -> dict[str, int]:
    """Return the bytes of each value in one sample, by a run that gives nothing but the numbers of elements."""
    from .backends import session as sessions

    if not names:
        return {}
    sized = clone(model)
    values = {value.name: value for node in sized.graph for value in node.outputs}
    counts = {name: ir.node("Size", [values[name]]) for name in names}
    for i, node in enumerate(counts.values()):
        node.outputs[0].name = f"graphopt_size_{i}"
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([])
    sized.graph.extend(counts.values())
    sized.graph.outputs.clear()
    sized.graph.outputs.extend(node.outputs[0] for node in counts.values())
    session = sessions.create(sized, optimize="basic")
    known = {value.name for value in session.get_inputs()}
    got: Any = session.run(
        [node.outputs[0].name for node in counts.values()],
        {name: array for name, array in feed.items() if name in known},
    )
    sizes = {}
    for (name, node), count in zip(counts.items(), got, strict=True):
        dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
        sizes[name] = int(count) * (max(int(dtype.bitwidth) // 8, 1) if dtype is not None else 4)
    return sizes
