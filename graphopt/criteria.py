"""Importance criteria: how much a channel is worth, told from the weights that go with it and from data."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from .analysis.channels import Group, Member
from .plugins import get_criterion as get_criterion

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Slices:
    """The weights of one member of a group, and the channel that each slice of them goes with."""

    member: Member
    weights: Array
    """(n, …): the member's axis comes first."""
    makes: bool
    """Whether they make the channels; else they multiply them."""
    readers: tuple[ir.Node, ...]
    """The nodes that read the constant."""
    known: dict[str, Array] = field(default_factory=dict, repr=False, compare=False)
    """What was found of these weights along this axis; the members of all groups that share them share it."""

    def sums(self, values: Array, channels: int) -> Array:
        """Add a number for each slice, (n,), up over the slices of each channel: (C,)."""
        own = self.member.channels >= 0
        summed: Array = np.bincount(self.member.channels[own], values[own], minlength=channels)
        return summed

    def squares(self) -> Array:
        """Return the sum of squares of each slice: (n,)."""
        if "squares" not in self.known:
            w = self.weights.astype(np.float32, copy=False)
            axes = "abcdefgh"[: w.ndim]
            self.known["squares"] = np.einsum(f"{axes},{axes}->a", w, w).astype(np.float64)
        return self.known["squares"]

    def each(self, values: Array) -> Array:
        """Return a number for each slice, summed over all other axes: (n,)."""
        summed: Array = values.sum(tuple(range(1, values.ndim)), dtype=np.float64)
        return summed


@dataclass(frozen=True)
class Reading:
    """A product that multiplies channels of a group by constant weights, and what calibration data showed of them."""

    weights: Array
    """(n, …): the axis of channels comes first."""
    channels: Array
    """The channel that each place goes with, −1 where with none: (n,)."""
    moment: Array
    """``E[x xᵀ]`` of what it reads: (n, n)."""
    magnitude: Array
    """``E[|x|]`` of each place: (n,)."""


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at."""

    group: Group
    slices: Sequence[Slices]
    readings: Sequence[Reading]
    """Empty unless the criterion says that it needs data."""
    random: np.random.Generator


class Criterion(abc.ABC):
    """Scores the channels of a group; those with the least scores are cut away first."""

    needs_data: ClassVar[bool] = False

    @abc.abstractmethod
    def scores(self, evidence: Evidence) -> Array:
        """Return a number for each channel, ≥ 0: (C,)."""


class L2(Criterion):
    """Sum of squares of all slices that go with a channel, its root: ``‖w‖₂``."""

    def scores(self, evidence: Evidence) -> Array:
        """Return the norms."""
        made: Array = np.sqrt(_summed(evidence, Slices.squares))
        return made


class L1(Criterion):
    """Sum of magnitudes: ``‖w‖₁``. Source: Li et al. 2017 (arXiv:1608.08710)."""

    def scores(self, evidence: Evidence) -> Array:
        """Return the norms."""
        return _summed(evidence, lambda each: each.each(np.abs(each.weights.astype(np.float32, copy=False))))


class Random(Criterion):
    """Any order is as good as another: what the others must beat."""

    def scores(self, evidence: Evidence) -> Array:
        """Return random numbers."""
        return evidence.random.random(evidence.group.channels)


class BnScale(Criterion):
    """Magnitude of BatchNormalization's scales. Source: Liu et al. 2017 (arXiv:1708.06519).

    Of a group without BatchNormalization (folded, or never there): ``l2``.
    """

    def scores(self, evidence: Evidence) -> Array:
        """Return the sums of magnitudes."""
        found = [
            each for each in evidence.slices if any(_scale(n) == each.member.constant for n in each.readers)
        ]
        if not found:
            return L2().scores(evidence)
        parts = [each.sums(np.abs(each.each(each.weights)), evidence.group.channels) for each in found]
        total: Array = np.sum(parts, axis=0)
        return total


def _scale(node: ir.Node) -> str | None:
    value = node.inputs[1] if node.op_type == "BatchNormalization" else None
    return value.name if value is not None else None


class Fpgm(Criterion):
    """Sum of distances to all other filters: what is near the others can be replaced by them.

    Source: He et al. 2019, filter pruning via geometric median (arXiv:1811.00250).
    """

    def scores(self, evidence: Evidence) -> Array:
        """Return the sums of distances."""
        total = np.zeros(evidence.group.channels)
        for each in evidence.slices:
            if not each.makes or each.weights.ndim < 2:
                continue
            rows = each.weights.reshape(len(each.weights), -1).astype(np.float64)
            squares = np.einsum("nk,nk->n", rows, rows)
            distance = squares[:, None] + squares[None] - 2 * rows @ rows.T
            total += each.sums(np.sqrt(np.maximum(distance, 0)).sum(1), evidence.group.channels)
        return total if total.any() else L2().scores(evidence)


class Lamp(Criterion):
    """``‖w‖²`` over the sum of all that are no smaller, so that layers compare.

    Source: Lee et al. 2021 (arXiv:2010.07611), for channels in place of single weights.
    """

    def scores(self, evidence: Evidence) -> Array:
        """Return the shares."""
        squares = _summed(evidence, Slices.squares)
        order = np.argsort(squares, kind="stable")
        behind = np.cumsum(squares[order][::-1])[::-1]
        made = np.empty_like(squares)
        made[order] = squares[order] / np.maximum(behind, np.finfo(float).tiny)
        return made


class Activation(Criterion):
    """Mean magnitude of the channel, ``E[|x|]``, over calibration data."""

    needs_data: ClassVar[bool] = True

    def scores(self, evidence: Evidence) -> Array:
        """Return the means."""
        return _read(evidence, lambda each: each.magnitude)


class Wanda(Criterion):
    """``Σ |w| · ‖x‖``: weights by the size of what they multiply. Source: Sun et al. 2023 (arXiv:2306.11695)."""

    needs_data: ClassVar[bool] = True

    def scores(self, evidence: Evidence) -> Array:
        """Return the sums."""
        return _read(
            evidence,
            lambda each: (
                np.abs(each.weights).reshape(len(each.weights), -1).sum(1) * np.sqrt(np.diag(each.moment))
            ),
        )


class Reconstruction(Criterion):
    """What the readers' outputs lose at least, when the other channels make up for it as well as they can.

    Without the places P of a channel, the least squared error of ``y = Wᵀ x`` is, with ``H = E[x xᵀ]``::

        E‖y - y'‖² = tr(W_Pᵀ ((H⁻¹)_PP)⁻¹ W_P)          W (n, outputs), H (n, n)

    Source: Hassibi and Stork 1993, Optimal Brain Surgeon, whose error of one weight this is for all of a channel's.
    """

    needs_data: ClassVar[bool] = True

    def scores(self, evidence: Evidence) -> Array:
        """Return the errors."""
        if not evidence.readings:
            return L2().scores(evidence)
        parts = [_errors(each, evidence.group.channels) for each in evidence.readings]
        total: Array = np.sum(parts, axis=0)
        return total


def _errors(each: Reading, channels: int) -> Array:
    n = len(each.moment)
    size = max(float(np.diag(each.moment).mean()), np.finfo(float).tiny)
    inverse = np.linalg.inv(each.moment + 1e-3 * size * np.eye(n))
    w = each.weights.reshape(n, -1).astype(np.float64)
    own = each.channels >= 0
    if np.bincount(each.channels[own], minlength=channels).max(initial=0) <= 1:
        errors = np.square(w).sum(1) / np.diag(inverse)
        return np.bincount(each.channels[own], errors[own], minlength=channels)
    made = np.zeros(channels)
    for channel in range(channels):
        at = np.flatnonzero(each.channels == channel)
        made[channel] = np.vdot(w[at], np.linalg.solve(inverse[np.ix_(at, at)], w[at])) if len(at) else 0.0
    return made


def _summed(evidence: Evidence, of: Callable[[Slices], Array]) -> Array:
    """Add a number for each slice of each matrix up over channels: (C,)."""
    parts = [
        each.sums(of(each), evidence.group.channels) for each in evidence.slices if each.weights.ndim > 1
    ]
    total: Array = np.sum(parts, axis=0) if parts else np.zeros(evidence.group.channels)
    return total


def _read(evidence: Evidence, of: Callable[[Reading], Array]) -> Array:
    """Add a number for each place that is read up over channels: (C,)."""
    if not evidence.readings:
        return L2().scores(evidence)
    total = np.zeros(evidence.group.channels)
    for each in evidence.readings:
        own = each.channels >= 0
        total += np.bincount(each.channels[own], of(each)[own], minlength=evidence.group.channels)
    return total


CRITERIA: Mapping[str, type[Criterion]] = {
    "l1": L1,
    "l2": L2,
    "random": Random,
    "bn-scale": BnScale,
    "fpgm": Fpgm,
    "lamp": Lamp,
    "activation": Activation,
    "wanda": Wanda,
    "reconstruction": Reconstruction,
}
