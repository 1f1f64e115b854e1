"""Say what a lossy pass does to the speed, as measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import GraphoptError, measure

if TYPE_CHECKING:
    from graphopt.context import Context

SECONDS = 4.0
LARGEST_BYTES = 1 << 29
"""Weights of more than this are not loaded twice to be measured."""
SMALLEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Speed:
    """How long one model takes beside another."""

    text: str
    """A sentence."""
    verdict: str = ""
    """``faster``, ``slower`` or ``no significant difference``; empty where it was not measured."""

    @property
    def faster(self) -> bool:
        """Whether it measures faster."""
        return self.verdict == "faster"


def compared(before: ir.Model, after: ir.Model, nbytes: int, context: Context) -> str | None:
    """Return a sentence on how long ``after`` takes beside ``before``, ``None`` where there is nothing to run on."""
    found = measured(before, after, nbytes, context)
    return found.text if found is not None else None


def measured(before: ir.Model, after: ir.Model, nbytes: int, context: Context) -> Speed | None:
    """Return how long ``after`` takes beside ``before``, ``None`` where there is nothing to run on."""
    target = context.target
    if target is None or target.unavailable() or nbytes < SMALLEST_BYTES:
        return None
    if nbytes > LARGEST_BYTES:
        return Speed(
            "the speed was not measured, for the size of the model; `graphopt bench` compares the two files"
        )
    feeds = next(iter(context.samples if context.calibration is None else context.calibration), None)
    if feeds is None:
        return None
    context.progress("measuring the speed", 0, 0)
    try:
        found = measure(
            [before, after],
            feeds,
            target,
            names=["before", "after"],
            seconds=SECONDS,
            seed=context.seed,
        )
    except GraphoptError as error:
        return Speed(f"the speed was not measured: {error}")
    timing = found[1]
    shapes = ", ".join(f"{name} {kind}" for name, kind in found.inputs.items())
    interval = f"{timing.low:.2f} … {timing.high:.2f}"
    judged = {"faster": "it is faster", "slower": "it is slower"}.get(timing.verdict, "no speed-up")
    text = f"a run takes {timing.ratio:.2f} times as long as in float (95 % {interval}; {shapes}): {judged}"
    return Speed(text, timing.verdict)
