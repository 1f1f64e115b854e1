"""The factors of one layer: what ranks lose, and the weights at given ranks."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from .moments import Moment
from .sites import Site
from .stages import Factors, Method, Ranks, full, macs, stages, suitable
from .subspace import Principal, parallel, principal
from .tensors import refitted, swept, unwhitened, upright, whitened

Array = np.ndarray[Any, Any]
CP_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""CP has no spectrum: it is fitted at ranks that leave these shares of the layer's MACs."""


@dataclass(frozen=True)
class Step:
    """What the layer is at some ranks."""

    ranks: Ranks
    macs: int
    """For one position of the output."""
    lost: float
    """Energy of the error as a share of that of the output; for Tucker's a bound."""


@dataclass(frozen=True)
class Fitted:
    """Factors, and what they are worth."""

    factors: Factors
    lost: float
    """Energy of the error as a share of that of the output."""
    shift: Array
    """(O,): by how much the outputs are smaller on average."""


class Fit:
    """The factors of one layer by one method, of least error on inputs of some moment."""

    def __init__(self, site: Site, method: Method, moment: Moment, most: int | None = None) -> None:
        self.site, self.method = site, suitable(site, method)
        self.moment: Moment | None = moment
        self.mean = moment.mean
        w = site.read()
        self.full = full(site, self.method)
        self.sides = self._sides(w, moment, most)
        outputs = self.method in ("svd", "tucker")  # the last side is theirs
        self.energy = max(self.sides[-1].total if outputs else moment.energy(w), 1e-300)
        self._known: dict[Ranks, Fitted] = {}
        if self.method == "svd":
            self.moment = None  # it is as large as the layer, and not needed any more

    def moved(self, node: ir.Node) -> Fit:
        """Return the same for the layer in a copy of the model."""
        other = copy.copy(self)
        other.site = replace(self.site, node=node)
        return other

    def _sides(self, w: Array, moment: Moment, most: int | None) -> list[Principal]:
        """Return the directions that ranks count: one side, both for Tucker, none for CP."""
        if self.method == "spatial-svd":
            c = moment.columns()
            return [principal(upright(w), lambda m: m @ c, most)]
        whole = w.shape[1:]

        def times(m: Array) -> Array:
            return moment.times(m.reshape(-1, *whole)).reshape(len(m), -1)

        if self.method == "svd":
            return [principal(w.reshape(len(w), -1), times, most)]
        if self.method == "tucker":
            inner = np.moveaxis(whitened(w, moment), 1, 0).reshape(w.shape[1], -1)
            return [principal(inner, lambda m: m), principal(w.reshape(len(w), -1), times)]
        return []

    # --- what ranks lose ----------------------------------------------------------------------------------------------

    def step(self, ranks: Ranks) -> Step:
        """Return what the layer is at ``ranks``."""
        made = macs(self.site, stages(self.site, self.method, ranks))
        if self.method == "cp":
            return Step(ranks, made, self.at(ranks).lost)
        lost = sum(
            float(side.lost()[min(r, len(side.energy))]) for side, r in zip(self.sides, ranks, strict=True)
        )
        return Step(ranks, made, lost / self.energy)

    def ladder(self, multiple: int) -> list[Step]:
        """Return what the layer can be with fewer MACs, the cheapest first; ranks are multiples of ``multiple``."""
        if self.method == "tucker":
            found = self._tucker(multiple)
        elif self.method == "cp":
            unit = macs(self.site, stages(self.site, "cp", (1,)))
            ranks = {max(1, round(share * self.site.macs / unit)) for share in CP_SHARES}
            found = [self.step((r,)) for r in sorted(ranks) if r < self.full[0]]
        else:
            (most,) = self.full
            unit = macs(self.site, stages(self.site, self.method, (1,)))
            most = min(most, (self.site.macs - 1) // unit)
            lost = self.sides[0].lost() / self.energy
            found = [Step((r,), r * unit, float(lost[r])) for r in range(multiple, most + 1, multiple)]
        return [step for step in found if step.macs < self.site.macs]

    def _tucker(self, multiple: int) -> list[Step]:
        """Return steps from all ranks down: each takes from the side that loses less for the MACs that it saves."""
        least = tuple(min(multiple, r) for r in self.full)
        now, found = self.step(self.full), []
        while now.ranks != least:
            options = [
                self.step(tuple(max(r - multiple, low) if i == side else r for i, r in enumerate(now.ranks)))
                for side, low in enumerate(least)
                if now.ranks[side] > low
            ]
            now = min(options, key=lambda s: (s.lost - now.lost) / max(now.macs - s.macs, 1))
            found.append(now)
        return found[::-1]

    # --- the weights --------------------------------------------------------------------------------------------------

    def at(self, ranks: Ranks) -> Fitted:
        """Return the factors at ``ranks``, in the type of the layer."""
        if ranks not in self._known:
            self._known[ranks] = self._at(ranks)
        return self._known[ranks]

    def _at(self, ranks: Ranks) -> Fitted:
        w = self.site.read()
        made = stages(self.site, self.method, ranks)
        weights = [part.reshape(stage.shape) for part, stage in zip(self._parts(w, ranks), made, strict=True)]
        if self.moment is not None and self.method != "svd":
            weights[-1] = refitted(w, weights, made, self.moment)
        factors = Factors(made, tuple(weights)).cast(self.site.dtype.numpy())
        error = w - factors.product()
        if self.method == "svd":
            lost = float(self.sides[0].lost()[min(ranks[0], len(self.sides[0].energy))])
        else:
            assert self.moment is not None
            lost = self.moment.energy(error)
        return Fitted(factors, lost / self.energy, np.tensordot(error, self.mean, axes=self.mean.ndim))

    def _parts(self, w: Array, ranks: Ranks) -> list[Array]:
        if self.method == "cp":
            return self._cp(w, ranks[0])
        u = self.sides[-1].basis[:, : ranks[-1]]
        if self.method == "svd":
            return [u.T @ w.reshape(len(w), -1), u]
        if self.method == "spatial-svd":
            down = (u.T @ upright(w)).reshape(-1, w.shape[1], w.shape[2])
            return [down, u.reshape(w.shape[0], w.shape[3], -1).transpose(0, 2, 1)]
        assert self.moment is not None
        v, u = swept(whitened(w, self.moment), self.sides[0].basis[:, : ranks[0]], u)
        inner, turn = unwhitened(v, self.moment)
        core = np.einsum("oi...,or,is->rs...", whitened(w, self.moment), u, v, optimize=True)
        return [inner, np.moveaxis(np.tensordot(core, turn, axes=([1], [0])), -1, 1), u]

    def _cp(self, w: Array, r: int) -> list[Array]:
        assert self.moment is not None
        if r >= self.full[0]:
            a, b, c = parallel(w.reshape(*w.shape[:2], -1), self.full[0])
            return [b.T, c.T, a]
        a, b, c = parallel(whitened(w, self.moment).reshape(*w.shape[:2], -1), r)
        first = np.linalg.solve(np.linalg.cholesky(self.moment.channels()).T, b).T
        scale = np.maximum(np.linalg.norm(first, axis=1), 1e-300)
        return [first / scale[:, None], c.T, a * scale]
