"""Groups of channels: what must be cut together of all weights, and what it is worth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ... import samples
from ...errors import ModelError, UsageError
from ...interfaces import place
from ...query import constant_tensor
from ..cost import parameters
from ..sizes import Sizes, shaped
from .atoms import NEVER, Labels
from .flow import Flow, Product, Refusal, follow
from .separate import separate

if TYPE_CHECKING:
    from ...context import Context

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Member:
    """The slices of one axis of one constant that go with the channels of a group."""

    constant: str
    axis: int
    _group: int
    _groups: Array
    _channels: Array

    @cached_property
    def channels(self) -> Array:
        """The channel of the group that each place goes with, −1 where with none: (n,)."""
        found: Array = np.where(self._groups == self._group, self._channels, -1).max(axis=0)
        return found

    def __str__(self) -> str:
        return f"{self.constant}[{self.axis}]"


@dataclass(frozen=True)
class Group:
    """Channels that can be cut away one by one, each from all members at once."""

    name: str
    """The node that makes them, the first where several do.

    ``.size`` behind it says that these are the places within its heads, ``.2`` that they lie along another axis.
    """
    atoms: Array
    """The atom of each channel: (C,)."""
    members: tuple[Member, ...]
    sources: tuple[str, ...]
    macs: float
    """Share of the model's MACs in products along these channels."""
    parameters: float
    """Share of the model's parameters that goes with all of them."""
    block: int = 1
    """How many places side by side go with each channel: the size of heads; 1 where they lie apart."""
    inner: bool = False
    """Whether these are places within blocks that may go themselves: the sizes of heads."""

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self.atoms)


@dataclass
class ChannelGroups:
    """The groups of a model, and why what else has channels is never cut."""

    flow: Flow
    groups: list[Group] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    assumed: Mapping[str, int] = field(default_factory=dict)

    def __iter__(self) -> Any:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def kept(self, labels: Labels, gone: Array) -> Array:
        """Return which places of an axis are left when the atoms that ``gone`` marks are cut away."""
        return np.logical_not(gone[self.flow.atoms.leaves(labels)].any(axis=0))

    def spared(self, gone: Array, worth: Array | None = None) -> Array:
        """Return ``gone`` without what would leave an axis, or a part of one that counts, empty: one place stays.

        ``worth`` says which: that whose atoms are worth most, by atom.
        """
        gone = gone.copy()
        worth = np.zeros(len(gone)) if worth is None else worth
        axes = [labels for value in self.flow.axes.values() for labels in value]
        axes += [labels for edit in self.flow.edits for labels in edit.all_axes]  # parts of an axis, too
        for labels in {id(labels): labels for labels in axes if len(labels)}.values():
            leaves = self.flow.atoms.leaves(labels)
            if gone[leaves].any(axis=0).all():
                best = int(worth[leaves].min(axis=0).argmax())
                gone[leaves[:, best]] = False
        return gone

    def nothing(self) -> Array:
        """Return a mark for each atom: none is cut away."""
        return np.zeros(len(self.flow.atoms), bool)

    @cached_property
    def _owners(self) -> tuple[Array, Array]:
        """By atom, the number of the group that it is a channel of, −1 where of none, and which channel."""
        owner, channel = np.full((2, len(self.flow.atoms)), -1)
        for number, group in enumerate(self.groups):
            owner[group.atoms], channel[group.atoms] = number, np.arange(group.channels)
        return owner, channel

    def along(self, labels: Labels) -> dict[str, Array]:
        """Return the channels of each group that lie along an axis, −1 where none does, by the group's name: (n,)."""
        owner, channel = self._owners
        leaves = self.flow.atoms.leaves(labels)
        owners = owner[leaves]
        return {
            self.groups[number].name: np.where(owners == number, channel[leaves], -1).max(axis=0)
            for number in sorted(set(owners.reshape(-1).tolist()) - {-1})
        }

    @cached_property
    def _products(self) -> list[tuple[float, list[int]]]:
        return [(p.factor, [self._axis(labels) for labels in p.axes]) for p in self.flow.products]

    @cached_property
    def _axes(self) -> tuple[dict[bytes, int], list[Array]]:
        return {}, []

    def _axis(self, labels: Labels) -> int:
        known, axes = self._axes
        leaves = self.flow.atoms.leaves(labels)
        key = leaves.tobytes() + bytes(str(leaves.shape), "ascii")
        if key not in known:
            known[key] = len(axes)
            axes.append(leaves)
        return known[key]

    def macs(self, gone: Array | None = None) -> float:
        """Return the MACs of one run, of the operators that rules count, without what ``gone`` marks."""
        products = self._products
        gone = self.nothing() if gone is None else gone
        counts = [int((~gone[leaves].any(axis=0)).sum()) for leaves in self._axes[1]]
        return sum(factor * float(np.prod([counts[i] for i in axes])) for factor, axes in products)

    @cached_property
    def _held(self) -> list[list[int]]:
        return [
            [self._axis(labels) for labels in self.flow.axes[value]]
            for value in _weights(self.flow)
            if parameters(_known(constant_tensor(value)))
        ]

    def parameters(self, gone: Array | None = None) -> float:
        """Return the parameters without what ``gone`` marks."""
        held = self._held
        gone = self.nothing() if gone is None else gone
        counts = [int((~gone[leaves].any(axis=0)).sum()) for leaves in self._axes[1]]
        return sum(float(np.prod([counts[i] for i in axes])) for axes in held)

    def text(self) -> str:
        """Return the groups and the refusals, a line each."""
        lines = [
            f"{group.name}: {group.channels} channels, {group.macs:.1%} of the MACs, {group.parameters:.1%} of the "
            f"parameters: {', '.join(map(str, group.members))}"
            for group in self.groups
        ]
        return "\n".join([*lines, *(f"{r.op_type} {r.place} stays: {r.reason}" for r in self.refusals)])


def channel_groups(
    model: ir.Model, dims: Mapping[str, int] | None = None, outputs: Collection[str] = ()
) -> ChannelGroups:
    """Return the groups of channels of ``model``; it is not changed, and weights are not read.

    Args:
        model: without functions (``inline-functions`` goes before).
        dims: sizes of symbolic dimensions of the inputs, as ``{"batch": 8}``; such as inputs that are drawn have
            where not given.
        outputs: of the model, that may have fewer channels; others, and inputs, stay as they are.

    Raises:
        ModelError: the model has functions.
        UsageError: ``dims`` names a dimension that the model does not have, or ``outputs`` an output.
    """
    from .rules import RULES

    if model.functions:
        name = next(iter(model.functions))[1]
        raise ModelError(
            f"function {name}: channels are not followed through functions; inline-functions goes before"
        )
    sizes = Sizes(model, {**bound(model, next(samples.candidates(model), {})), **(dims or {})})
    numbered = shaped(model, sizes)
    separate(numbered)
    known = [value.name or "" for value in model.graph.outputs]
    if unknown := sorted(set(outputs).difference(known)):
        raise UsageError(f"outputs: the model has none called {unknown[0]!r}; it has {', '.join(known)}")
    flow = follow(numbered.graph, RULES, outputs)
    flow.atoms.settle()
    found = ChannelGroups(flow, assumed=sizes.assumed)
    found.groups = _groups(flow, found)
    found.refusals = [*flow.refusals, *_frozen(flow)]
    return found


class ChannelAnalysis:
    """The channel groups of a model at the sizes of the sample inputs: ``context.analysis(ChannelAnalysis)``."""

    survives_edits = False

    def __init__(
        self, model: ir.Model, context: Context | None = None, outputs: Collection[str] = ()
    ) -> None:
        symbols = any(not isinstance(dim, int) for v in model.graph.inputs for dim in v.shape or ())
        feeds = context.samples if context is not None and symbols else ()
        self.groups = channel_groups(model, bound(model, feeds[0]) if feeds else {}, outputs)


def bound(model: ir.Model, feed: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes that the symbols of the inputs have on ``feed``."""
    dims: dict[str, int] = {}
    for value in model.graph.inputs:
        array = feed.get(value.name or "")
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(array, np.ndarray) and not isinstance(dim, int) and array.shape[axis] > 0:
                dims[dim.value if dim.value is not None else f"{value.name}[{axis}]"] = array.shape[axis]
    return dims


def _known(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol:
    assert tensor is not None
    return tensor


def _weights(flow: Flow) -> list[ir.Value]:
    """Return the constants that have axes, an object each."""
    return [value for value in flow.axes if constant_tensor(value) is not None]


def _families(flow: Flow) -> list[tuple[list[int], list[ir.Node]]]:
    """Return the atoms of each group, in order, and the nodes that make them: connected components."""
    import networkx as nx

    graph = nx.Graph()
    rows: list[Array] = []
    first = np.full(len(flow.atoms), -1)
    """By atom, the first row that has it."""
    for _, labels in flow.sources:
        for leaves in flow.atoms.leaves(labels):
            atoms = np.unique(leaves[leaves != NEVER])
            known = first[atoms]
            first[atoms[known < 0]] = len(rows)
            graph.add_node(len(rows))
            graph.add_edges_from((len(rows), other) for other in np.unique(known[known >= 0]).tolist())
            rows.append(atoms)
    makers = [node for node, labels in flow.sources for _ in flow.atoms.leaves(labels)]
    families = []
    for part in nx.connected_components(graph):
        joined = np.unique(np.concatenate([rows[i] for i in part]))
        families.append((joined.tolist(), list(dict.fromkeys(makers[i] for i in sorted(part)))))
    return families


def _groups(flow: Flow, found: ChannelGroups) -> list[Group]:
    families = [family for family in _families(flow) if len(family[0]) > 1]
    by_node: dict[ir.Node, list[Labels]] = defaultdict(list)
    for node, labels in flow.sources:
        by_node[node].append(labels)
    order = {node: i for i, (node, _) in enumerate(flow.sources)}
    families.sort(key=lambda family: order[family[1][0]])
    owner = np.full(len(flow.atoms), -1)
    channel = np.full(len(flow.atoms), -1)
    for number, (atoms, _) in enumerate(families):
        owner[atoms], channel[atoms] = number, np.arange(len(atoms))
    members: dict[int, list[Member]] = defaultdict(list)
    sizes: dict[int, float] = defaultdict(float)
    for value in _weights(flow):
        tensor = constant_tensor(value)
        assert tensor is not None
        for axis, labels in enumerate(flow.axes[value]):
            leaves = flow.atoms.leaves(labels)
            owners, channels = owner[leaves], channel[leaves]
            numbers, counts = np.unique(owners, return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                if number >= 0:
                    members[number].append(Member(value.name or "", axis, number, owners, channels))
                    sizes[number] += parameters(tensor) * count / len(labels)
    macs: dict[int, float] = defaultdict(float)
    total = found.macs() or 1.0
    for product in flow.products:
        for number in _touched(product, flow, owner):
            macs[number] += product.factor * float(np.prod([len(a) for a in product.axes])) / total
    held = found.parameters() or 1.0
    names: dict[str, int] = defaultdict(int)
    made = []
    for number, (atoms, nodes) in enumerate(families):
        block, inner = _layout(by_node[nodes[0]], flow, set(atoms))
        made.append(
            Group(
                _unique(place(nodes[0]) + (".size" if inner else ""), names),
                np.array(atoms),
                tuple(members[number]),
                tuple(dict.fromkeys(map(place, nodes))),
                macs[number],
                min(1.0, sizes[number] / held),
                block,
                inner,
            )
        )
    return made


def _unique(name: str, names: dict[str, int]) -> str:
    """Return ``name``, or ``name.2``, … where other groups have it."""
    names[name] += 1
    return name if names[name] == 1 else f"{name}.{names[name]}"


def _layout(made: Iterable[Labels], flow: Flow, atoms: set[int]) -> tuple[int, bool]:
    """Return how many places side by side go with one channel of what is ``made``, and whether blocks may go."""
    for labels in made:
        leaves = flow.atoms.leaves(labels)
        for row in leaves:
            if int(row[0]) in atoms or atoms & set(row.tolist()):
                block = int((np.cumsum(row != row[0]) == 0).sum()) if (row == row[0]).sum() > 1 else 1
                return block, bool(block == 1 and (row == row[0]).sum() > 1 and len(leaves) > 1)
    return 1, False


def _touched(product: Product, flow: Flow, owner: Array) -> Iterable[int]:
    touched: set[int] = set()
    for labels in product.axes:
        touched |= set(owner[flow.atoms.leaves(labels)].reshape(-1).tolist())
    return touched - {-1}


def _frozen(flow: Flow) -> list[Refusal]:
    """Return the nodes that make channels of which none may be cut, and why."""
    refusals = []
    for node, labels in flow.sources:
        if len(labels) > 1 and not flow.atoms.leaves(labels).any():
            refusals.append(Refusal(place(node), node.op_type, flow.atoms.why(labels)))
    return refusals
