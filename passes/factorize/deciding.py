"""Decide the ranks of all layers: as they were asked for, or within a budget; and never where that is not faster."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import cost
from graphopt.query import place

from .allocation import Layer, allocate
from .fitting import Fit, Step
from .sites import Site
from .stages import Ranks
from .timing import SMALLEST_MACS, Timer, feed_of

if TYPE_CHECKING:
    from graphopt.context import Context

    from . import Factorize

MULTIPLE = 8
"""Of which ranks are that a budget chooses: kernels are slow at others."""
SMALL = 64
"""Up to this full rank all are considered."""
MEASURED = 15
"""So many ranks may be measured, by bisection, before a budget is divided."""


@dataclass
class Plan:
    """What becomes of each layer, by its place."""

    ranks: dict[str, Ranks] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def sizes(model: ir.Model, context: Context) -> dict[str, int]:
    """Return the sizes of the model's open dimensions in the inputs that are measured with."""
    feed = feed_of(context) or {}
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        shape = getattr(feed.get(value.name or ""), "shape", ())
        for axis, (dim, size) in enumerate(zip(value.shape or (), shape, strict=False)):
            if not isinstance(dim, int) and size > 0:
                found[dim.value if dim.value is not None else f"{value.name}[{axis}]"] = size
    return found


class Decision:
    """One decision over the layers of a model."""

    def __init__(
        self, options: Factorize, model: ir.Model, fits: Sequence[Fit], context: Context, timer: Timer | None
    ) -> None:
        self.options, self.fits, self.timer, self.context = options, fits, timer, context
        found = cost(model, sizes(model, context))
        self.total = found.macs
        self.macs = {node.place: node.macs or 0 for node in found.nodes}
        self.plan = Plan()
        self.ladders: dict[Fit, list[Step]] = {}
        """Where there is a budget."""

    def made(self) -> Plan:
        """Return the plan."""
        candidates = []
        for fit in self.fits:
            if (reason := self._hopeless(fit)) is not None:
                self.plan.declined[place(fit.site.node)] = reason
            else:
                candidates.append(fit)
        asked = self.options.rank is not None or self.options.energy is not None
        chosen = self._asked(candidates) if asked else self._budget(candidates)
        for fit, step in chosen.items():
            self._take(fit, step)
        return self.plan

    def _hopeless(self, fit: Fit) -> str | None:
        macs = self.macs.get(place(fit.site.node), 0)
        if self.options.only_if_faster and macs < SMALLEST_MACS:
            return f"it has {macs} MACs, too few for two layers to be faster"
        if self.options.rank is None and self.options.energy is None and not macs:
            return "its MACs are not known"
        return None

    def _take(self, fit: Fit, step: Step) -> None:
        site, name = fit.site, place(fit.site.node)
        left = step.macs / site.macs
        if step.ranks == ():
            self.plan.declined[name] = self._kept(fit)
        elif left >= 1 and (self.options.rank is None or self.options.only_if_faster):
            self.plan.declined[name] = (
                f"{ranks_text(fit, step.ranks)} leaves {left:.2f} of its MACs, no fewer"
            )
        elif self.timer is not None and not self._may(fit, step):
            speed = self.timer.speed(site, fit.method, step.macs)
            self.plan.declined[name] = (
                f"{ranks_text(fit, step.ranks)} leaves {left:.2f} of its MACs, but a layer like it takes {speed}"
            )
        else:
            self.plan.ranks[name] = step.ranks

    def _kept(self, fit: Fit) -> str:
        """Return why a budget leaves a layer as it is."""
        ladder, macs = self.ladders[fit], self.macs[place(fit.site.node)]
        if not ladder:
            return f"no rank that is considered leaves fewer than its {macs} MACs"
        if self.timer is not None and not self._may(fit, ladder[0]):
            speed = self.timer.speed(fit.site, fit.method, ladder[0].macs)
            return f"a layer like it takes {speed} even at {ranks_text(fit, ladder[0].ranks)}"
        return f"all its {macs} MACs are worth it within the budget"

    # --- as asked for -------------------------------------------------------------------------------------------------

    def _asked(self, fits: Sequence[Fit]) -> dict[Fit, Step]:
        chosen = {
            fit: self._of_rank(fit) if self.options.rank is not None else self._of_energy(fit) for fit in fits
        }
        self._measure({fit: [step] for fit, step in chosen.items() if step.macs < fit.site.macs})
        return chosen

    def _of_rank(self, fit: Fit) -> Step:
        rank = self.options.rank
        assert rank is not None
        if isinstance(rank, int):
            return fit.step(tuple(min(rank, most) for most in fit.full))
        return fit.step(tuple(max(1, round(rank * most)) for most in fit.full))

    def _of_energy(self, fit: Fit) -> Step:
        assert self.options.energy is not None
        most = 1 - self.options.energy + 1e-12
        return next((step for step in fit.ladder(1) if step.lost <= most), fit.step(fit.full))

    # --- within a budget ----------------------------------------------------------------------------------------------

    def _budget(self, fits: Sequence[Fit]) -> dict[Fit, Step]:
        share = self.options.macs if self.options.macs is not None else 0.7
        rest = self.total - sum(self.macs[place(fit.site.node)] for fit in fits)
        for number, fit in enumerate(fits):
            self.context.progress("ranks and what they lose", number, len(fits))
            self.ladders[fit] = fit.ladder(MULTIPLE if max(fit.full) > SMALL else 1)
        self._measure({fit: _spread(ladder) for fit, ladder in self.ladders.items()})
        chosen = self._divided(share * self.total - rest)
        spent = rest + sum(self._spent(fit, step) for fit, step in chosen.items())
        if spent > share * self.total * (1 + 1e-9):
            self.plan.notes.append(
                f"no ranks leave {share:.2f} of the MACs: {spent / max(self.total, 1):.2f} of them are left at best"
            )
        return chosen

    def _divided(self, budget: float) -> dict[Fit, Step]:
        layers = []
        for fit, ladder in self.ladders.items():
            steps = [step for step in ladder if self._may(fit, step)]
            layers.append(Layer(Step((), fit.site.macs, 0.0), steps, self._positions(fit.site)))
        return dict(zip(self.ladders, allocate(layers, budget), strict=True))

    def _positions(self, site: Site) -> float:
        return self.macs[place(site.node)] / site.macs

    def _spent(self, fit: Fit, step: Step) -> float:
        return self._positions(fit.site) * step.macs

    # --- measuring ----------------------------------------------------------------------------------------------------

    def _measure(self, steps: Mapping[Fit, Sequence[Step]]) -> None:
        """Measure layers alone, one for all that are alike."""
        if self.timer is None:
            return
        alike: dict[Hashable, list[Fit]] = {}
        for fit in steps:
            alike.setdefault(self.timer.kind(fit.site, fit.method), []).append(fit)
        for group in alike.values():
            ranks = {step.macs: step.ranks for fit in group for step in steps[fit]}
            self.timer.search(group[0].site, group[0].method, ranks)

    def _may(self, fit: Fit, step: Step) -> bool:
        """Return whether a layer is faster at ``step``, as far as is known: with more MACs one measured so."""
        return self.timer is None or step.macs <= self.timer.fast(fit.site, fit.method)


def _spread(ladder: Sequence[Step]) -> list[Step]:
    """Return some steps, the first and the last among them."""
    if len(ladder) <= MEASURED:
        return list(ladder)
    return [ladder[round(i * (len(ladder) - 1) / (MEASURED - 1))] for i in range(MEASURED)]


def ranks_text(fit: Fit, ranks: Ranks) -> str:
    """Return the ranks as a reader calls them: ``rank 128 of 384``."""
    if len(ranks) == 1:
        return f"rank {ranks[0]} of {fit.full[0]}"
    return f"ranks {' and '.join(map(str, ranks))} of {' and '.join(map(str, fit.full))}"
