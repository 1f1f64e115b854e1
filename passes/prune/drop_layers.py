"""Leave out the layers that change least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import onnx_ir as ir
from pydantic import Field, model_validator

from graphopt import (
    Context,
    Decline,
    Effect,
    InputError,
    Names,
    Pass,
    PassReport,
    Shapes,
    Tape,
    clone,
    selected,
    substitute,
)

from .joint import Influence, Rows, data, observe_together
from .layer_compensation import Fit, Makers, fit, fold, makers
from .layer_reference import LayerReference
from .residual import Unit, blocks, chains, layers
from .told import tell


class DropLayers(Pass):
    """Replace ``y = x + f(x)`` by ``x``, for the layers that change the direction of x least.

    The influence of a layer, over all positions p of the calibration data, each with C channels::

        influence = 1 - mean_p cos(x[p], y[p])      (0 … 2)

    A block is a sum of x and what products with weights make of x, with a normalization (post-norm transformers) or
    a Relu behind it where x comes from the same; a layer is what repeats in a chain of blocks, as attention and
    feed-forward of a transformer do. With calibration data, what stands before a dropped layer makes up for it, by
    least squares, and no node is added: the last product ``m = h W + b`` before it becomes ``m T + t``, and the
    normalization behind that takes a scale and an offset for each channel::

        x = g(h (W T) + (b T + t) + r) s + c ≈ y      T (C, C)      t, s, c (C,)

    T is drawn to the identity, as strongly as suits positions that it was not fitted to best; where nothing brings
    x nearer to y there, nothing is fitted. Run `speed` before, so that normalizations are single nodes, and those that
    are none when the model runs are folded into the weights.

    Lossy: the result must equal the original in which each such y is ``0 y + x``, with the same T, t, s, c as nodes.
    Source: Men et al. 2024 (arXiv:2403.03853), block influence; Gromov et al. 2024 (arXiv:2403.17887); the map
    that is merged into the weights before: Shopkhoev et al. 2025 (arXiv:2505.02819).
    """

    effect: ClassVar[Effect] = Effect.LOSSY

    count: int | None = Field(
        None, ge=1, description="how many to drop; 1 where neither this nor ratio is given"
    )
    ratio: float | None = Field(
        None, gt=0, lt=1, description="share of all of them to drop, instead of count"
    )
    unit: Literal["layer", "block"] | None = Field(
        None, description="what to drop; by default layers where blocks repeat, else blocks"
    )
    compensate: Literal["least-squares", "none"] | None = Field(
        None, description="how to make up for it; by default least-squares where calibration data are given"
    )
    include: tuple[str, ...] = Field(
        (), description="patterns of nodes, weights or modules in what may be dropped"
    )
    exclude: tuple[str, ...] = Field(
        (), description="patterns of nodes, weights or modules in what must stay"
    )

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.count is not None and self.ratio is not None:
            raise ValueError("give either count or ratio, not both")
        return self

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Find the layers, score them all, and drop the least influential ones from front to back."""
        report = PassReport()
        units = self._units(model, context, report)
        if not units:
            return report
        if self.compensate == "least-squares" and context.calibration is None:
            raise InputError(
                f"{self.name}: compensate=least-squares needs calibration data and got none; give --calibration"
            )
        seen = Context(model, calibration=data(context), seed=context.seed, progress=context.progress)
        if context.calibration is None:
            which = "the given sample inputs" if context.has_given_samples else "inputs drawn at random"
            report.notes.append(f"the influence was measured on {which}; give --calibration to choose better")
        scores = _influences(model, units, seen)
        listed = " ".join(f"{scores[unit]:.3f}" for unit in units)
        report.notes.append(f"influence of each {_kind(units)}, from front to back: {listed}")
        fitted = self.compensate != "none" and context.calibration is not None
        work = _Work(model, context, seen, report, fitted)
        for unit in self._chosen(units, scores):
            work.drop(unit, f"influence {scores[unit]:.3g}")
        work.finish()
        return report

    def _units(self, model: ir.Model, context: Context, report: PassReport) -> list[Unit]:
        """Return what may be dropped, from front to back."""
        lines = chains(blocks(model, context.analysis(Shapes), report))
        repeated = [layers(line) for line in lines]
        whole = any(len(unit.blocks) > 1 for units in repeated for unit in units)
        if self.unit == "layer" or (self.unit is None and whole):
            units = [unit for each in repeated for unit in each]
            parts = {block for unit in units for block in unit.blocks}
            for block in (block for line in lines for block in line if block not in parts):
                report.decline(block.add, "it is part of no layer that repeats")
        else:
            units = [Unit((block,)) for line in lines for block in line]
        chosen = []
        for unit in units:
            if _selected(unit, self.include, self.exclude):
                chosen.append(unit)
            else:
                report.decline(unit.node, "it is not selected")
        return chosen

    def _chosen(self, units: Sequence[Unit], scores: dict[Unit, float]) -> list[Unit]:
        """Return those with the least influence; of two, one inside the other, the lesser one."""
        count = self.count or (round(self.ratio * len(units)) if self.ratio is not None else 1)
        chosen: list[Unit] = []
        for unit in sorted(units, key=scores.__getitem__):
            if len(chosen) < count and all(unit.nodes.isdisjoint(other.nodes) for other in chosen):
                chosen.append(unit)
        return [unit for unit in units if unit in chosen]


class _Work:
    """One run of the pass."""

    def __init__(
        self, model: ir.Model, context: Context, seen: Context, report: PassReport, compensate: bool
    ) -> None:
        self.model, self.context, self.seen, self.report = model, context, seen, report
        self.compensate = compensate
        self.names = Names(model)
        self.before = clone(model)
        self.reference = LayerReference(model)
        self._stands: dict[ir.Value, ir.Value] = {}
        """What is read in place of what a dropped layer made."""

    def drop(self, unit: Unit, detail: str) -> None:
        """Drop one unit, and let what is before it make up for it."""
        x, y = self._stands.get(unit.x, unit.x), unit.y
        found, fitted = self._fit(x, unit)
        if not substitute(unit.node, [x], Tape(unit.node, self.context), self.names, self.report, detail):
            return
        if found is not None:
            fold(found, fitted, self.names)
        self.reference.drop(x, y, unit.axis, found, fitted)
        self._stands[y] = x

    def _fit(self, x: ir.Value, unit: Unit) -> tuple[Makers | None, Fit]:
        if not self.compensate:
            return None, Fit()
        name = unit.node.name or unit.y.name
        try:
            found = makers(x, unit)
        except Decline as reason:
            self.report.notes.append(f"nothing makes up for {name}: {reason}")
            return None, Fit()
        fitted = fit(self.model, unit, found, self.seen)
        gain = (
            f"cosine {fitted.before:.4f} → {fitted.after:.4f}"
            if not fitted.idle
            else "nothing would be gained"
        )
        self.report.notes.append(f"what makes up for {name}, at positions that it was not fitted to: {gain}")
        return found, fitted

    def finish(self) -> None:
        """Give the report its reference, and say how far the outputs moved."""
        if not self.report.applied:
            return
        self.report.reference = self.reference.model
        tell(self.report, self.before, self.model, {}, self.seen)


def _influences(model: ir.Model, units: Sequence[Unit], context: Context) -> dict[Unit, float]:
    """Return the influence of each unit."""
    found = {unit: Influence() for unit in units}
    wanted: dict[tuple[ir.Value, ...], tuple[int, Rows]] = {
        (unit.x, unit.y): (unit.blocks[-1].axis, found[unit]) for unit in units
    }
    observe_together(model, wanted, context, "looking at layers")
    return {unit: each.value for unit, each in found.items()}


def _selected(unit: Unit, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Return whether a node of ``unit`` is included and none is excluded."""
    return any(selected(n, include, ()) for n in unit.nodes) and all(
        selected(n, (), exclude) for n in unit.nodes
    )


def _kind(units: Sequence[Unit]) -> str:
    return "layer" if any(len(unit.blocks) > 1 for unit in units) else "block"
