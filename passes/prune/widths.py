"""How many channels each group keeps: by a ratio, or within a budget that all groups share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.analysis.channels import ChannelGroups, Group

Array = np.ndarray[Any, Any]
STEPS = 24
"""A budget is met by so many bisections of the threshold."""
LEAST = 0.1
"""No group keeps less than this share, whatever the ranking says: the model would be cut in two."""


@dataclass(frozen=True)
class Width:
    """What is decided of one group."""

    group: Group
    step: int
    """Widths are multiples of it where they change."""
    scores: Array
    """What each channel is worth: (C,)."""
    most: float
    """Largest share that may be cut away."""

    def kept(self, wanted: float) -> int:
        """Return the width that is nearest to ``wanted`` and allowed; of two as near the smaller one."""
        count, step = self.group.channels, self.step
        least = max(1, int(np.ceil(count * (1 - self.most) / step - 1e-9))) * step
        width = int(np.ceil(wanted / step - 0.5 - 1e-9)) * step
        return min(count, max(least, width))

    def gone(self, kept: int) -> Array:
        """Return the atoms of the channels of least worth, all but ``kept``."""
        order = np.argsort(self.scores, kind="stable")
        atoms: Array = self.group.atoms[order[: self.group.channels - kept]]
        return atoms


Plan = dict[str, int]
"""By the name of a group, how many channels it keeps."""


def marked(groups: ChannelGroups, widths: Sequence[Width], plan: Mapping[str, int]) -> Array:
    """Return a mark for each atom that ``plan`` cuts away."""
    gone, worth = groups.nothing(), np.zeros(len(groups.nothing()))
    for width in widths:
        gone[width.gone(plan.get(width.group.name, width.group.channels))] = True
        worth[width.group.atoms] = width.scores
    return groups.spared(gone, worth)


def local(widths: Sequence[Width], ratio: Callable[[Width], float]) -> Plan:
    """Let each group lose its own ratio."""
    return {w.group.name: w.kept(w.group.channels * (1 - ratio(w))) for w in widths}


def ranked(widths: Sequence[Width], threshold: float) -> Plan:
    """Let each group lose the channels that are worth less than ``threshold`` of the mean of their group."""
    return {
        w.group.name: w.kept(float((w.scores >= threshold * max(w.scores.mean(), 1e-30)).sum()))
        for w in widths
    }


def isomorphic(widths: Sequence[Width], ratio: float, kinds: Mapping[str, str]) -> Plan:
    """Let groups of one kind lose a ratio of all their channels, ranked together.

    Source: Fang et al. 2024, isomorphic pruning (arXiv:2407.04616).
    """
    plan: Plan = {}
    for kind in dict.fromkeys(kinds.values()):
        own = [w for w in widths if kinds[w.group.name] == kind]
        together = np.sort(np.concatenate([w.scores / max(w.scores.mean(), 1e-30) for w in own]))
        plan |= ranked(own, float(together[min(len(together) - 1, int(ratio * len(together)))]))
    return plan


def within(wanted: float, cost: Callable[[Plan], float], choose: Callable[[float], Plan]) -> Plan:
    """Return the widest plan whose cost is at most ``wanted``; ``choose`` makes plans of 0 (all) to 1 (least)."""
    low, high = 0.0, 1.0
    best = choose(high)
    for _ in range(STEPS):
        middle = (low + high) / 2
        plan = choose(middle)
        if cost(plan) <= wanted:
            high, best = middle, plan
        else:
            low = middle
    return best
