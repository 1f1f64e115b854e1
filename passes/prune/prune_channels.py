"""Cut the least important channels away, each from all weights that it goes with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field, model_validator

from graphopt import Effect, Names, OptionError, Pass, PassReport, clone, measure, selected
from graphopt.analysis.channels import ChannelAnalysis, ChannelGroups, Group, separate
from graphopt.criteria import Criterion, get_criterion
from graphopt.query import is_op, optional, place

from .compensate import compensate
from .cut import cut
from .evidence import scores
from .masked import masked
from .told import tell
from .widths import LEAST, Plan, Width, isomorphic, local, marked, ranked, within

if TYPE_CHECKING:
    from graphopt import Context

Array = np.ndarray[Any, Any]
Kind = Literal["channels", "heads"]
CLOSE = 0.05
"""A latency is met within this share of it."""
TRIES = 7
"""So many widths are measured to meet a latency."""
SECONDS = 3.0
"""Time to measure one of them."""


class PruneChannels(Pass):
    """Remove the channels that matter least, physically: a group of slices that go together at a time.

    ::

        y = W2 f(W1 x + b1)   ->   y = W2[:, S] f(W1[S] x + b1[S])          S: the channels that are kept

    Where channels go is followed through the whole graph (``graphopt.channel_groups``), so that residual sums,
    concatenations, splits, reshapes, groups and heads are cut consistently. What to keep is said by one of ``ratio``
    (of each group's channels), ``macs``, ``params`` or ``latency`` (the share of the model's that is left); default
    ``ratio=0.5``. Each group loses the same ratio (``local``), or groups compete: by scores relative to their group's
    mean (``global``), or so only with groups that are built alike (``isomorphic``). Widths are multiples of
    ``round_to``, since kernels are slow at others. ``latency`` measures on the target, and notes what each width cost.

    ``compensate`` lets the products that read channels make up for those that go, from calibration data: ``bias``
    by their means, ``least-squares`` by refitting weights in closed form; default where there are calibration data.

    Lossy: the result equals the original with zeros in place of all that is cut away. Source: Li et al. 2017
    (arXiv:1608.08710); groups as in Fang et al. 2023, DepGraph (arXiv:2301.12900).
    """

    effect: ClassVar[Effect] = Effect.LOSSY
    cuts: ClassVar[Kind] = "channels"

    ratio: float | None = Field(None, gt=0, lt=1, description="share of the channels of each group to remove")
    macs: float | None = Field(None, gt=0, lt=1, description="share of the MACs to keep")
    params: float | None = Field(None, gt=0, lt=1, description="share of the parameters to keep")
    latency: float | None = Field(None, gt=0, lt=1, description="share of the measured latency to keep")
    criterion: str | None = Field(
        None,
        description="what a channel is worth: the name of a registered criterion; reconstruction where there are "
        "calibration data, else l2",
    )
    scope: Literal["local", "global", "isomorphic"] | None = Field(
        None, description="who competes; local for a ratio, global for a budget"
    )
    round_to: int = Field(8, ge=1, description="widths are multiples of it")
    per_layer: tuple[str, ...] = Field(
        (), description="pattern:ratio for groups by nodes, weights or modules; the first that fits holds"
    )
    keep: tuple[str, ...] = Field(
        (), description="patterns of nodes, weights or modules whose channels all stay"
    )
    outputs: tuple[str, ...] = Field((), description="outputs of the model that may have fewer channels, too")
    compensate: Literal["none", "bias", "least-squares"] | None = Field(
        None,
        description="how what is left makes up for the rest; least-squares where there are calibration data",
    )
    iterative_steps: int = Field(1, ge=1, description="cut in so many steps, and score anew in between")

    @model_validator(mode="after")
    def _one_goal(self) -> PruneChannels:
        given = [name for name in ("ratio", "macs", "params", "latency") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
        for entry in self.per_layer:
            if not re.fullmatch(r".+:0?\.[0-9]+", entry):
                raise ValueError(f"per_layer: {entry!r} is not pattern:ratio with a ratio between 0 and 1")
        if self.latency is not None and self.iterative_steps > 1:
            raise ValueError("latency is met in one step; iterative_steps goes with ratio, macs or params")
        return self

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Find the groups, decide their widths, make up for what goes, and cut."""
        report = PassReport()
        criterion = get_criterion(
            self.criterion or ("l2" if context.calibration is None else "reconstruction")
        )()
        method = self.compensate or ("least-squares" if context.calibration is not None else "none")
        if method != "none" and context.calibration is None and not context.has_given_samples:
            raise OptionError(
                f"{self.name}: compensate={method} needs calibration data and got none; give --calibration"
            )
        if model.functions:
            return _declined(model, report)
        draft = self._prepared(clone(model), method)
        groups = ChannelAnalysis(draft, context, self.outputs).groups
        nodes = {place(node): node for node in model.graph}
        for refusal in groups.refusals:
            report.decline(nodes[refusal.place], refusal.reason)
        for group in self._others(groups):
            report.decline(nodes[group.sources[0]], "its channels are no heads")
        widths = self._widths(draft, groups, criterion, context)
        admitted = self._admitted(
            context.once(
                (self, tuple(g.name for g in groups)), lambda: self._decide(draft, groups, widths, context)
            ),
            widths,
            report,
            context,
        )
        if not marked(groups, widths, admitted).any():
            return report
        told = context.calibration is not None or context.has_given_samples
        before = clone(model) if told else model
        self._prepared(model, method)
        gone = groups.nothing()
        original = clone(model) if method != "none" else model
        for step in range(1, self.iterative_steps + 1):
            if step > 1:
                widths = self._widths(model, groups, criterion, context, gone)
            share = step / self.iterative_steps
            plan = {w.group.name: _between(w, admitted[w.group.name], share) for w in widths}
            gone = marked(groups, widths, plan)
            if method != "none":
                count = compensate(model, original, groups, gone, context, method)
        report.notes.append(_share(groups, gone))
        if method != "none":
            report.notes.append(f"{method} makes up for channels at {count} products")
        report.reference = masked(model, groups, gone)
        cut(model, groups, gone)
        if told:
            tell(report, before, model, {}, context)
        return report

    @staticmethod
    def _prepared(model: ir.Model, method: str) -> ir.Model:
        """Give each node vectors of its own, and biases that can make up for channels."""
        separate(model)
        if method != "none":
            _add_biases(model)
        return model

    @staticmethod
    def _admitted(
        decided: tuple[Plan, list[str]], widths: list[Width], report: PassReport, context: Context
    ) -> Plan:
        """Number what is decided of each group; what a bisection leaves out keeps its width."""
        plan, notes = dict(decided[0]), decided[1]
        for group in (width.group for width in widths):
            kept, kind = plan[group.name], "heads" if group.block > 1 else "channels"
            what = f"{group.channels} {kind} to {kept}; {_members(group)}"
            if kept < group.channels and not context.admit(report, group.name, what):
                plan[group.name] = group.channels
        report.notes += notes
        return plan

    # --- deciding -----------------------------------------------------------------------------------------------------

    def chosen(self, groups: ChannelGroups) -> list[Group]:
        """Return the groups that this pass cuts: of heads and their sizes the heads, where they may be cut."""
        heads = {name for g in groups for name in g.sources if g.block > 1}
        if self.cuts == "heads":
            return [g for g in groups if g.block > 1]
        return [g for g in groups if g.block > 1 or not g.inner or not heads & set(g.sources)]

    def _others(self, groups: ChannelGroups) -> list[Group]:
        return [g for g in groups if g.block == 1 and not g.inner] if self.cuts == "heads" else []

    def _widths(
        self,
        model: ir.Model,
        groups: ChannelGroups,
        criterion: Criterion,
        context: Context,
        gone: Array | None = None,
    ) -> list[Width]:
        """Score the channels of the groups that may be cut; those that are gone already are worth nothing."""
        readers = {v.name: [u.node for u in v.uses()] for v in model.graph.initializers.values()}
        nodes = {place(node): node for node in model.graph}
        chosen = []
        for group in self.chosen(groups):
            touched = [nodes[name] for name in group.sources]
            touched += [node for member in group.members for node in readers.get(member.constant, ())]
            if not self.keep or not any(selected(node, self.keep, ()) for node in touched):
                chosen.append(group)
        worth = scores(model, groups, criterion, context)
        for group in groups if gone is not None else ():
            worth[group.name] = np.where(gone[group.atoms], -1.0, worth[group.name])  # type: ignore[index]
        return [
            Width(g, max(1, self.round_to // int(np.gcd(self.round_to, g.block))), worth[g.name], 1 - LEAST)
            for g in chosen
        ]

    def _decide(
        self, model: ir.Model, groups: ChannelGroups, widths: list[Width], context: Context
    ) -> tuple[Plan, list[str]]:
        if not widths:
            return {}, []
        if self.latency is not None:
            return self._to_latency(model, groups, widths, context)
        for name, what, cost in (
            ("macs", "MACs", groups.macs),
            ("params", "parameters", groups.parameters),
        ):
            if (share := getattr(self, name)) is not None:
                plan = self._within(model, groups, widths, share, cost)
                left = cost(marked(groups, widths, plan)) / max(cost(groups.nothing()), 1)
                missed = f"{share:g} of the {what} is out of reach: {left:.2f} are the least that can be left"
                return plan, [missed] if left > share else []
        return self._by_ratio(model, widths, self.ratio if self.ratio is not None else 0.5), []

    def _by_ratio(self, model: ir.Model, widths: list[Width], ratio: float) -> Plan:
        if self.scope == "isomorphic":
            return isomorphic(widths, ratio, _kinds(model, widths))
        if self.scope == "global":
            return within(
                (1 - ratio) * sum(w.group.channels for w in widths),
                lambda plan: float(sum(plan.values())),
                lambda share: ranked(widths, _threshold(widths, share)),
            )
        return local(widths, lambda width: self._ratio_of(width, ratio))

    def _ratio_of(self, width: Width, ratio: float) -> float:
        names = (*width.group.sources, *(member.constant for member in width.group.members))
        for pattern, own in self._own_ratios():
            if any(fnmatch(name, pattern) for name in names):
                return own
        return ratio

    def _own_ratios(self) -> Iterator[tuple[str, float]]:
        for entry in self.per_layer:
            pattern, _, ratio = entry.rpartition(":")
            yield pattern, float(ratio)

    def _within(
        self,
        model: ir.Model,
        groups: ChannelGroups,
        widths: list[Width],
        share: float,
        cost: Callable[[Array], float],
    ) -> Plan:
        kinds = _kinds(model, widths)

        def of(plan: Plan) -> float:
            return cost(marked(groups, widths, plan))

        def choose(part: float) -> Plan:
            if self.scope == "local":
                return local(widths, lambda width: min(part, width.most))
            if self.scope == "isomorphic":
                return isomorphic(widths, part, kinds)
            return ranked(widths, _threshold(widths, part))

        return within(share * cost(groups.nothing()), of, choose)

    def _to_latency(
        self, model: ir.Model, groups: ChannelGroups, widths: list[Width], context: Context
    ) -> tuple[Plan, list[str]]:
        """Measure widths between too slow and too fast, until the latency is met."""
        assert self.latency is not None
        low, high = 0.0, 1.0
        found: dict[float, Plan] = {}
        notes: list[str] = []
        share = self.latency
        for step in range(TRIES):
            context.progress("measuring widths", step, TRIES)
            plan = self._within(model, groups, widths, share, groups.macs)
            trial = clone(model)
            gone = marked(groups, widths, plan)
            cut(trial, groups, gone)
            race = measure(
                [model, trial], context.samples[0], context.target or "onnxruntime:cpu", seconds=SECONDS
            )
            took = race.timings[1].ratio
            found[took] = plan
            notes.append(f"{groups.macs(gone) / groups.macs():.2f} of the MACs take {took:.2f} of the time")
            if abs(took / self.latency - 1) <= CLOSE / 2:
                break
            low, high = (low, share) if took > self.latency else (share, high)
            share = min(max(share * self.latency / took, low + (high - low) * 0.1), high - (high - low) * 0.1)
        best = min(found, key=lambda took: abs(took - self.latency))  # type: ignore[operator]
        return found[best], notes


def _declined(model: ir.Model, report: PassReport) -> PassReport:
    for node in model.graph:
        if (node.domain, node.op_type, node.overload) in model.functions:
            report.decline(node, "channels are not followed through functions; inline-functions goes before")
    return report


def _threshold(widths: list[Width], share: float) -> float:
    """Return the score, relative to its group's mean, below which ``share`` of all channels are."""
    together = np.sort(np.concatenate([w.scores / max(w.scores.mean(), 1e-30) for w in widths]))
    return float(together[min(len(together) - 1, int(share * len(together)))])


def _kinds(model: ir.Model, widths: list[Width]) -> dict[str, str]:
    """Say which groups are built alike: by the operators that read their weights, and where."""
    readers = {v.name: sorted({u.node.op_type for u in v.uses()}) for v in model.graph.initializers.values()}
    return {
        w.group.name: " ".join(sorted({f"{readers.get(m.constant)}{m.axis}" for m in w.group.members}))
        for w in widths
    }


def _add_biases(model: ir.Model) -> None:
    """Give convolutions and Gemms without a bias one of zeros, which can make up for means."""
    names = Names(model)
    for node in model.graph:
        weights = optional(node, 1)
        if not is_op(node, "Conv", "Gemm") or optional(node, 2) is not None or weights is None:
            continue
        if weights.const_value is None:
            continue
        shape = weights.const_value.shape.numpy()
        transposed = node.attributes.get_int("transB", 0)
        count = shape[0] if node.op_type == "Conv" or transposed else shape[1]
        zeros = ir.Tensor(np.zeros(count, weights.const_value.dtype.numpy()))
        value = ir.Value(type=ir.TensorType(zeros.dtype), shape=ir.Shape([count]), const_value=zeros)
        value.name = zeros.name = names.fresh(f"{weights.name}_bias")
        model.graph.register_initializer(value)
        node.resize_inputs(3)
        node.replace_input_with(2, value)


def _between(width: Width, kept: int, share: float) -> int:
    """Return the width when a share of what goes is gone."""
    return round(width.group.channels - share * (width.group.channels - kept))


def _members(group: Group) -> str:
    """Say how much of the model goes with a group, and which slices."""
    members = ", ".join(map(str, group.members))
    return f"{group.macs:.1%} of the MACs, {group.parameters:.1%} of the parameters; {members}"


def _share(groups: ChannelGroups, gone: Array) -> str:
    return (
        f"{groups.macs(gone) / max(groups.macs(), 1):.1%} of the MACs and "
        f"{groups.parameters(gone) / max(groups.parameters(), 1):.1%} of the parameters are left"
    )
