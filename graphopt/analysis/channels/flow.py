"""Where each channel goes: the axes of every value, what must change with their sizes, and what counts them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ...interfaces import place
from ...ops import op_info
from ...query import Decline, constant_tensor, is_constant, subgraphs
from .atoms import Atoms, Labels, never
from .edits import Edit

if TYPE_CHECKING:
    from collections.abc import Iterator

Axes = list[Labels]
INDEX = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING)
"""Constants of these types are no weights: shapes, indices, masks."""


class Refuse(Exception):
    """A rule cannot follow the channels through a node; what touches it is never cut."""


@dataclass(frozen=True)
class Refusal:
    """A node that lets no channels through."""

    place: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Product:
    """A node that multiplies: its MACs are ``factor`` times how many are left of each axis."""

    node: ir.Node
    factor: float
    axes: tuple[Labels, ...]


@dataclass
class Flow:
    """What rules read and write: the axes of values, by atoms."""

    atoms: Atoms = field(default_factory=Atoms)
    axes: dict[ir.Value, Axes] = field(default_factory=dict)
    sources: list[tuple[ir.Node, Labels]] = field(default_factory=list)
    """Axes of channels that nodes make, each from weights of its own."""
    products: list[Product] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    counting: dict[ir.Node, None] = field(default_factory=dict)
    """Nodes whose result depends on how many channels there are: a mean over them."""
    contracted: list[tuple[ir.Node, int, int]] = field(default_factory=list)
    """(node, input, axis) of activations that are multiplied by activations and summed along channels."""
    nonzero: list[tuple[ir.Node, int]] = field(default_factory=list)
    """(node, input) of what makes something that is not finite where it is 0: divisors, logarithms."""
    refusals: list[Refusal] = field(default_factory=list)

    # --- what rules ask -----------------------------------------------------------------------------------------------

    def of(self, value: ir.Value | None, *, weights: bool = False) -> Axes:
        """Return the axes of ``value``; those of a constant of weights are atoms of their own until it is tied.

        Constants of types in :data:`INDEX` are none, unless the rule knows that they are ``weights``.
        """
        if value is None:
            raise Refuse("an input is missing")
        found = self.axes.get(value)
        if found is None:
            shape = self.shape(value)
            tensor = constant_tensor(value)
            weights = tensor is not None and (weights or tensor.dtype not in INDEX)
            found = [self.atoms.fresh(n) if weights and n > 1 else never(n) for n in shape]
            self.axes[value] = found
        return found

    @staticmethod
    def shape(value: ir.Value | None) -> tuple[int, ...]:
        """Return the shape of ``value``.

        Raises:
            Refuse: it is not known.
        """
        tensor = constant_tensor(value)
        if tensor is not None:
            return tuple(int(n) for n in tensor.shape.numpy())
        if value is None or value.shape is None or not value.shape.is_static():
            raise Refuse(f"the shape of {value.name if value is not None else 'an input'} is not known")
        return tuple(int(n) for n in value.shape.numpy())

    def may_go(self, labels: Labels) -> bool:
        """Return whether any of these may be cut away, as far as is known by now."""
        return bool((self.atoms.cause(labels) == 0).any())

    # --- what rules tell ----------------------------------------------------------------------------------------------

    def give(self, value: ir.Value, axes: Sequence[Labels]) -> None:
        """Say which axes ``value``, an output, has."""
        if value.shape is not None and len(value.shape) != len(axes):
            raise Refuse(f"{value.name} has {len(value.shape)} dimensions, not {len(axes)}")
        self.axes[value] = list(axes)

    def tie(self, a: Labels, b: Labels) -> None:
        """Let two axes be cut together; one of size 1 is broadcast along the other."""
        if len(a) == len(b):
            self.atoms.unify(a, b)
        elif 1 not in (len(a), len(b)):
            raise Refuse(f"{len(a)} channels meet {len(b)}")

    def vector(self, value: ir.Value | None, labels: Labels) -> None:
        """Let the one axis of a vector be cut together with another axis."""
        tensor = constant_tensor(value)
        fresh = (
            value is not None and value not in self.axes and tensor is not None and tensor.dtype not in INDEX
        )
        if fresh and value is not None and self.shape(value) == (len(labels),):
            self.axes[value] = [labels]  # nothing to tie yet
        else:
            (axis,) = self.of(value)
            self.tie(labels, axis)

    def freeze(self, labels: Labels, cause: str) -> None:
        """Let an axis stay as it is."""
        if self.may_go(labels):
            self.atoms.freeze(labels, cause)

    def source(self, node: ir.Node, labels: Labels) -> None:
        """Say that ``node`` makes these channels from weights of its own."""
        self.sources.append((node, labels))

    def multiplies(self, node: ir.Node, factor: float, *axes: Labels) -> None:
        """Count the MACs of ``node``."""
        self.products.append(Product(node, factor, axes))

    def counts(self, node: ir.Node, *axes: Labels) -> None:
        """Say that the result of ``node`` depends on how many there are along these axes."""
        if any(self.may_go(labels) for labels in axes):
            self.counting[node] = None

    def edit(self, edit: Edit) -> None:
        """Say what of a node must change with the size of an axis."""
        self.edits.append(edit)


Rule = Callable[[ir.Node, Flow], None]


def follow(graph: ir.Graph, rules: Mapping[tuple[str, str], Rule], outputs: Collection[str] = ()) -> Flow:
    """Follow the channels of a graph whose shapes are numbers through all its nodes; ``outputs`` may shrink."""
    flow = Flow()
    for value in graph.inputs:
        with suppress(Refuse):
            flow.axes[value] = [never(n) for n in flow.shape(value)]
    captured = {value for node in graph for inner in subgraphs(node) for value in _captured(inner)}
    for value in graph.initializers.values():
        if value.is_graph_input() or value.is_graph_output() or value in captured:
            flow.axes[value] = [never(n) for n in flow.shape(value)]
    for node in graph:
        if all(is_constant(v) for v in node.inputs if v is not None) and not node.inputs:
            continue
        _step(node, flow, rules)
        for value in node.outputs:
            if value in captured:
                _freeze(flow, [value], f"the graph in a node reads {value.name}")
    for value in graph.outputs:
        if value.name not in outputs:
            _freeze(flow, [value], f"{value.name} is an output of the model")
    return flow


def _step(node: ir.Node, flow: Flow, rules: Mapping[tuple[str, str], Rule]) -> None:
    rule = op_info(node).channels or rules.get((node.domain, node.op_type))
    read = [value for value in node.inputs if value is not None]
    try:
        if rule is None:
            raise Refuse(f"no rule says what {node.op_type} does to channels")
        rule(node, flow)
        if missing := [value.name for value in node.outputs if value.name and value not in flow.axes]:
            raise Refuse(f"nothing is known of {missing[0]}")
    except (Refuse, Decline, ValueError, IndexError, TypeError) as reason:
        if any(flow.may_go(axis) for value in read for axis in _axes(flow, value)):
            flow.refusals.append(Refusal(place(node), node.op_type, str(reason)))
        for value in node.outputs:
            with suppress(Refuse):
                flow.axes[value] = [flow.atoms.fresh(n) for n in flow.shape(value)]
        _freeze(flow, [*read, *node.outputs], f"{node.op_type} {place(node)}: {reason}")


def _freeze(flow: Flow, values: Iterable[ir.Value], cause: str) -> None:
    for value in values:
        for labels in _axes(flow, value):
            flow.freeze(labels, cause)


def _axes(flow: Flow, value: ir.Value) -> Axes:
    """Return the axes of ``value``; none where they are not known."""
    try:
        return flow.of(value)
    except Refuse:
        return []


def _captured(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield what a subgraph reads of the graphs around it."""
    for node in graph:
        yield from (v for v in node.inputs if v is not None and v.graph is not graph)
        for inner in subgraphs(node):
            yield from _captured(inner)
    yield from (v for v in graph.outputs if v.graph is not graph)


def prod(shape: Iterable[int]) -> int:
    """Return how many elements there are."""
    return math.prod(shape)


def broadcast(flow: Flow, axes: Sequence[Axes]) -> Axes:
    """Tie the axes of operands that are broadcast against each other, and return those of the result."""
    rank = max(map(len, axes))
    made: Axes = []
    for position in range(-rank, 0):
        along = [each[position] for each in axes if len(each) >= -position]
        size = max(map(len, along))
        full = [labels for labels in along if len(labels) == size]
        if size > 1:
            for other in full[1:]:
                flow.tie(full[0], other)
        made.append(full[0])
    return made


def array(labels: Iterable[int]) -> np.ndarray[Any, Any]:
    """Return an index array."""
    return np.asarray(list(labels), np.int64)
