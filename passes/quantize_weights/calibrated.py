"""Rounding that knows the data: products in the order in which they run, each behind those that are rounded already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.calibration import observe

from .blocks import Blocks, Format
from .gptq import Curvature, Pair, fed_back
from .places import Place
from .twin import pair_name, twin

if TYPE_CHECKING:
    from graphopt.context import Context

Array = np.ndarray[Any, Any]
Quantize = Callable[[Array], Blocks]

MOST_RUNS = 24
"""Over the calibration data; products that follow each other share one where there are more to be rounded."""


def stages(places: Sequence[Place]) -> list[list[Place]]:
    """Return the products that read the same value together, in the order of the graph."""
    found: dict[ir.Value, list[Place]] = {}
    for place in places:
        found.setdefault(place.x, []).append(place)
    return list(found.values())


def rounding(
    places: Sequence[Place], formats: Sequence[Format], before: ir.Model, after: ir.Model, context: Context
) -> Iterator[tuple[Place, Quantize]]:
    """Yield each product with the function that rounds its rows.

    ``after`` is ``before`` with the weights replaced that were rounded so far; the caller replaces those of a product
    before it asks for the next one. Where the input of a product differs by now from what it is in float, its weights
    are first corrected for that, then rounded by GPTQ.
    """
    form = dict(zip(map(id, places), formats, strict=True))
    groups = stages(places)
    size = -(-len(groups) // MOST_RUNS)
    for start in range(0, len(groups), size):
        group = groups[start : start + size]
        pairs = {stage[0].x.name or "": Pair() for stage in group}
        watched = {pair_name(name): pair for name, pair in pairs.items()}
        run = f"calibrating weights, run {start // size + 1} of {-(-len(groups) // size)}"
        observe(twin(before, after, pairs), watched, context, what=run)
        for stage in group:
            pair = pairs[stage[0].x.name or ""]
            correction = pair.correction(_outer(stage))
            curvature = Curvature(pair.gram)
            for place in stage:
                yield place, _quantize(correction, curvature, form[id(place)])


def _outer(stage: Sequence[Place]) -> Array:
    total = np.zeros((stage[0].columns,) * 2, np.float32)
    for place in stage:
        w = place.read()
        total += w.T @ w
    return total


def _quantize(correction: Array | None, curvature: Curvature, form: Format) -> Quantize:
    def quantize(w: Array) -> Blocks:
        return fed_back(w if correction is None else w + w @ correction, curvature, form)

    return quantize
