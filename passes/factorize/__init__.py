"""Write layers as products of thinner ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field, model_validator

from graphopt import (
    Context,
    Decline,
    Effect,
    OptionError,
    Pass,
    PassReport,
    all_nodes,
    clone,
    selected,
)
from graphopt.query import is_op, place

from .applying import applied, reference
from .deciding import Decision, Plan
from .fitting import Fit
from .moments import gathered
from .sites import PRODUCTS, Site, site
from .stages import Method
from .telling import tell
from .timing import Timer, timer, whole


class Factorize(Pass):
    """Replace layers ``y = W x + b`` by thinner ones, ``y = A (B x) + b'``, of least error on real inputs.

    With the covariance ``C`` of the layer's inputs over the calibration data, the error ``tr((W - A B) C (W - A B)ᵀ)``
    is least where U has the r leading eigenvectors of the outputs' covariance, ``W C Wᵀ``, as columns::

        A = U              (O, r)
        B = Uᵀ W           (r, I)
        b' = b + (W - A B) E[x]        (O,): each output keeps its mean

    which is the singular value decomposition of ``W S`` for ``S Sᵀ = C``, without an inverse of ``S``. Without
    calibration data, or with ``activation_aware=false``, ``C`` is the identity, and b stays. Where no constant is added
    to a MatMul, ``C = E[x xᵀ]``. For a convolution x are patches where they have 2304 numbers at most, else channels.

    ``method`` says how a kernel is split; matrices and 1x1 kernels have but ``svd``::

        svd           W (O, I, kh, kw) -> (r, I, kh, kw), (O, r, 1, 1)
        spatial-svd                    -> (r, I, kh, 1), (O, r, 1, kw)
        tucker                         -> (ri, I, 1, 1), (ro, ri, kh, kw), (O, ro, 1, 1)
        cp                             -> (r, I, 1, 1), depthwise (r, 1, kh, kw), (O, r, 1, 1)

    The last factor of each is refitted to ``C`` by least squares. Ranks are given by one of ``rank``, ``energy`` and
    ``macs``, a budget for the whole model that goes to the directions which carry most energy for a MAC, as shares of
    the energy of their layer's output; default ``macs=0.7``. Layers stay as they are where they would have no fewer
    MACs, or measure no faster, alone, at the shapes of the sample inputs; and so does the whole model where it measures
    slower. With ``only_if_faster=false`` nothing is measured, and ``rank`` is obeyed whatever it costs: ``rank=1.0``
    writes each product as factors of full rank, which reproduce it. It looks at the main graph, not at subgraphs.

    Lossy: the result equals the original with each W replaced by the product of its factors, and with b'. Source:
    Jaderberg et al. 2014 (arXiv:1405.3866), Kim et al. 2015 (arXiv:1511.06530), Lebedev et al. 2014
    (arXiv:1412.6553; one kernel for both axes here); for inputs that are whitened Wang et al. 2024, SVD-LLM
    (arXiv:2403.07378).
    """

    effect: ClassVar[Effect] = Effect.LOSSY

    rank: int | float | None = Field(
        None,
        description="rank of every layer: a number of directions, or with a point a share of the full rank",
    )
    energy: float | None = Field(None, gt=0, le=1, description="share of the energy of each layer to keep")
    macs: float | None = Field(None, gt=0, lt=1, description="share of the model's MACs to keep")
    method: Method = Field("svd", description="how kernels larger than 1x1 are split")
    activation_aware: bool | None = Field(
        None, description="least error on calibration data, not of the weights; where there are such data"
    )
    only_if_faster: bool = Field(True, description="leave as it is what measures no faster")
    include: tuple[str, ...] = Field((), description="patterns of layers, weights or modules to factorize")
    exclude: tuple[str, ...] = Field(
        (), description="patterns of layers, weights or modules to leave as they are"
    )

    @model_validator(mode="after")
    def _one_goal(self) -> Factorize:
        given = [name for name in ("rank", "energy", "macs") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
        if isinstance(self.rank, float) and not 0 < self.rank <= 1:
            raise ValueError(f"rank: a share must be above 0 and at most 1, got {self.rank!r}")
        if isinstance(self.rank, int) and self.rank < 1:
            raise ValueError(f"rank: it must be 1 or more, or a share such as 0.5, got {self.rank!r}")
        return self

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Find the layers, look at their inputs, decide their ranks, and replace them."""
        report = PassReport()
        sites = self._sites(model, report)
        if not sites:
            return report
        fits = self._fits(model, sites, context, report)
        clock: Timer | str = timer(model, sites, context) if self.only_if_faster else ""
        if isinstance(clock, str) and clock:
            report.notes.append(f"the speed was not measured: {clock}")
        names = tuple((place(fit.site.node), fit.site.shape) for fit in fits)
        plan = context.once((self, names), lambda: self._plan(model, fits, context, clock))
        report.notes += plan.notes
        by_place = {place(fit.site.node): fit for fit in fits}
        for name, reason in plan.declined.items():
            report.decline(by_place[name].site.node, reason)
        before = clone(model)
        done = applied(model, by_place, plan, context, report)
        if done:
            report.reference = reference(clone(before), done)
            tell(before, model, done, len(sites), context, report)
        return report

    # --- looking ------------------------------------------------------------------------------------------------------

    def _sites(self, model: ir.Model, report: PassReport) -> list[Site]:
        found = []
        for node in model.graph:
            if not is_op(node, *PRODUCTS):
                continue
            try:
                if not selected(node, self.include, self.exclude):
                    raise Decline("it is not selected")
                found.append(site(node))
            except Decline as reason:
                report.decline(node, str(reason))
        return found

    def _fits(
        self, model: ir.Model, sites: Sequence[Site], context: Context, report: PassReport
    ) -> list[Fit]:
        aware = (
            self.activation_aware if self.activation_aware is not None else context.calibration is not None
        )
        if aware and context.calibration is None and not context.has_given_samples:
            raise OptionError(
                f"{self.name}: activation_aware=true needs calibration data and got none; give --calibration"
            )
        most = self.rank if isinstance(self.rank, int) else None
        fits = []
        for number, (one, moment) in enumerate(gathered(model, sites, context, aware)):
            context.progress(f"decomposing {one.weight.name}", number, len(sites))
            if np.isfinite(one.read()).all():
                fits.append(Fit(one, self.method, moment, most))
            else:
                report.decline(one.node, "its weights are not finite")
        return fits

    # --- deciding -----------------------------------------------------------------------------------------------------

    def _plan(self, model: ir.Model, fits: Sequence[Fit], context: Context, clock: Timer | str) -> Plan:
        plan = Decision(self, model, fits, context, clock if isinstance(clock, Timer) else None).made()
        if not isinstance(clock, Timer) or not plan.ranks:
            return plan
        variant = clone(model)
        copies = dict(zip(all_nodes(model), all_nodes(variant), strict=True))
        by_place = {place(fit.site.node): fit.moved(copies[fit.site.node]) for fit in fits}
        applied(variant, by_place, plan, Context(variant), PassReport())
        speed = whole(model, variant, context)
        if isinstance(speed, str):
            plan.notes.append(f"the speed was not measured: {speed}")
            return plan
        plan.notes.append(f"a run takes {speed}: {speed.verdict}")
        if speed.verdict == "slower":
            plan.notes[-1] += (
                ", and all layers stay as they are (only_if_faster=false factorizes them all the same)"
            )
            plan.declined |= dict.fromkeys(plan.ranks, f"the model measures slower: it takes {speed}")
            plan.ranks = {}
        return plan
