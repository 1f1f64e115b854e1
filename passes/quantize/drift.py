"""How far a quantized model is from the float one, output by output and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, Drift
from graphopt.calibration import observe
from graphopt.closeness import Difference

Array = np.ndarray[Any, Any]
SAMPLES = 2
"""So many are looked at; the values of one are held at a time."""
SUGGESTED = 3
"""So many layers to exclude are named."""


class _Kept:
    """An observer that keeps what it sees."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []

    def update(self, array: Array) -> None:
        self.arrays.append(array)


class _Compared:
    """An observer that compares what it sees with what was kept, which is not needed any more then."""

    def __init__(self, kept: _Kept, difference: Difference) -> None:
        self.kept, self.difference = kept, difference

    def update(self, array: Array) -> None:
        self.difference.add(self.kept.arrays.pop(0), array)


def drift(before: ir.Model, after: ir.Model, stands: Mapping[str, str], context: Context) -> dict[str, float]:
    """Return the SQNR in decibels of each value, by its name in ``before``; ``stands`` says what it is in ``after``."""
    data = list(islice(context.calibration if context.calibration is not None else context.samples, SAMPLES))
    kept = {name: _Kept() for name in stands}
    found = {name: Difference(name) for name in stands}
    compared: dict[str, list[_Compared]] = {}
    for name, other in stands.items():
        compared.setdefault(other, []).append(_Compared(kept[name], found[name]))
    for feed in data:
        for model, observers in ((before, kept), (after, compared)):
            one = Context(model, calibration=[feed], progress=context.progress)
            observe(model, observers, one, what="drift")
    return {name: difference.sqnr_db for name, difference in found.items()}


def drifts(model: ir.Model, nodes: Mapping[str, str], found: Mapping[str, float]) -> list[Drift]:
    """Return the graph outputs, then the layers, those that add most noise first.

    ``nodes`` says what patterns call the node that each value is made by.
    """
    outputs = [Drift(v.name or "", "", found[v.name or ""]) for v in model.graph.outputs if v.name in found]
    lost = _lost(model, found)
    names = sorted(lost.keys() & nodes.keys(), key=lambda name: (-lost[name], name))
    return outputs + [Drift(name, nodes[name], found[name], max(lost[name], 0.0)) for name in names]


def told(found: Sequence[Drift]) -> list[str]:
    """Return sentences: how far the outputs are, and what to exclude."""
    notes = [f"output {d.value} is {d.sqnr_db:.1f} dB from float" for d in found if not d.node]
    worst = [d.node for d in found if d.node and d.added > 0][:SUGGESTED]
    return [*notes, *([f"to lose less, try exclude=[{','.join(worst)}]"] if worst else [])]


def _lost(model: ir.Model, found: Mapping[str, float]) -> dict[str, float]:
    """Return the share of noise that each value has beyond those of the values that it is made of."""
    noise: dict[ir.Value, float] = {}
    lost: dict[str, float] = {}
    for node in model.graph:
        came = max((noise.get(value, 0.0) for value in node.inputs if value is not None), default=0.0)
        for value in node.outputs:
            name = value.name or ""
            if name in found:
                noise[value] = 10 ** (-found[name] / 10)
                lost[name] = noise[value] - came
            else:
                noise[value] = came
    return lost
