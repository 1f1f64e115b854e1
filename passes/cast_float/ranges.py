"""What would overflow, or vanish, in a shorter type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphopt import Decline
from graphopt.calibration import observe
from graphopt.query import constant_tensor

from .operators import FLOAT, Ports

if TYPE_CHECKING:
    from graphopt.context import Context

Array = np.ndarray[Any, Any]

ROOM = 2.0
"""Other data may reach so many times as far as the calibration data do."""
FEW = 64
"""Numbers in a constant that may be an epsilon."""
CHUNK = 1 << 20


class Peak:
    """Observes the largest magnitude of a value."""

    def __init__(self) -> None:
        self.largest = 0.0

    def update(self, array: Array) -> None:
        """Take in one sample."""
        if array.size:
            self.largest = max(self.largest, float(array.max()), -float(array.min()))


def largest(to: ir.DataType) -> float:
    """Return the largest number of a type."""
    return float(ml_dtypes.finfo(to.numpy()).max)  # type: ignore[no-untyped-call]


def peaks(model: ir.Model, context: Context) -> dict[str, float]:
    """Return the largest magnitude of each float value of the main graph over the calibration data."""
    made = [v for node in model.graph for v in node.outputs if (v.name and v.uses()) or v.is_graph_output()]
    names = [
        v.name or "" for v in (*model.graph.inputs, *made) if v.dtype == FLOAT and constant_tensor(v) is None
    ]
    seen = {name: Peak() for name in names}
    observe(model, seen, context, what="finding ranges")
    return {name: peak.largest for name, peak in seen.items()}


def check(node: ir.Node, ports: Ports, to: ir.DataType, seen: dict[str, float]) -> None:
    """Decline where a constant, or a value as far as it was seen, does not fit.

    Raises:
        Decline: with the first value that does not fit.
    """
    most = largest(to)
    for value in [node.inputs[i] for i in ports.inputs]:
        tensor = constant_tensor(value)
        if tensor is not None and value is not None:
            _check_constant(value.name or "?", tensor, to, most)
    for value in (*(node.inputs[i] for i in ports.inputs), *(node.outputs[i] for i in ports.outputs)):
        reached = seen.get(value.name or "", 0.0) if value is not None else 0.0
        if value is not None and reached * ROOM > most:
            raise Decline(f"{value.name} reaches {reached:.3g}, and {to.name.lower()} ends at {most:.6g}")


def _check_constant(name: str, tensor: ir.TensorProtocol, to: ir.DataType, most: float) -> None:
    flat = tensor.numpy().reshape(-1)
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        finite = part[np.isfinite(part)]
        if finite.size and float(np.abs(finite).max()) > most:
            raise Decline(f"{name} holds {float(finite[np.abs(finite).argmax()]):.3g}, beyond {most:.6g}")
    if flat.size <= FEW:
        with np.errstate(all="ignore"):
            left = flat.astype(to.numpy()) != 0
        if (flat != 0).any() and not left.any():
            raise Decline(f"{name} holds {float(flat[(flat != 0).argmax()]):.3g}, which becomes 0")
