"""Give each layer the ranks at which the model loses least, within one budget of multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .fitting import Step

ROUNDS = 60
"""Of bisection."""


@dataclass(frozen=True)
class Layer:
    """What one layer can be."""

    whole: Step
    """As it is."""
    steps: Sequence[Step]
    """With fewer MACs, the cheapest first."""
    positions: float
    """Of its output: a step's MACs are of one."""

    def macs(self, step: Step) -> float:
        """Return the MACs of a run."""
        return self.positions * step.macs


def allocate(layers: Sequence[Layer], budget: float) -> list[Step]:
    """Return a step for each layer, of ``budget`` MACs together; the cheapest ones where there are none so cheap.

    ::

        minimize  sum lost_l(step_l)      where  sum macs_l(step_l) <= budget

    By one price of a MAC for all layers, so high that the budget is kept: directions are given where their energy for
    a MAC is greatest, and a layer stays whole where that is worth its MACs. What the price leaves of the budget is
    given direction by direction.
    """

    def at(price: float) -> list[Step]:
        return [
            min((each.whole, *each.steps), key=lambda s: s.lost + price * each.macs(s)) for each in layers
        ]

    def total(steps: Sequence[Step]) -> float:
        return sum(each.macs(step) for each, step in zip(layers, steps, strict=True))

    if total(at(0.0)) <= budget:
        return at(0.0)
    low, high = 1e-30, 1e6
    for _ in range(ROUNDS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if total(at(middle)) > budget else (low, middle)
    return _filled(layers, at(high), budget)


def _filled(layers: Sequence[Layer], steps: list[Step], budget: float) -> list[Step]:
    """Return the steps with what is left of the budget spent where it gains most."""
    left = budget - sum(each.macs(step) for each, step in zip(layers, steps, strict=True))
    while True:
        options = []
        for i, (each, step) in enumerate(zip(layers, steps, strict=True)):
            for other in (*each.steps, each.whole):
                more = each.macs(other) - each.macs(step)
                if 0 < more <= left and other.lost < step.lost:
                    options.append(((step.lost - other.lost) / more, i, other))
        if not options:
            return steps
        _, i, other = max(options, key=lambda option: option[:2])
        left -= layers[i].macs(other) - layers[i].macs(steps[i])
        steps[i] = other
