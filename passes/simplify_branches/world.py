"""What follows from the assumption that an If takes one of its branches, up to a node that then could not run."""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import onnx_ir as ir

from graphopt import Decline, op_info
from graphopt.query import attribute, constant_tensor, opset

LIMIT = 128
"""How many nodes are looked at before an assumption is held to be possible."""
SMALL = 64
"""How many elements a constant of sizes or conditions has at most."""

Sizes = tuple[int | None, ...]


class Fact(NamedTuple):
    """What is known of a value: its sizes, and the elements of an integer or boolean tensor of rank 0 or 1."""

    sizes: Sizes | None = None
    elements: Sizes | None = None


NOTHING = Fact()


class Impossible(Exception):
    """Raised for a node that no run gets past and that an output of its graph depends on."""

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node


class World:
    """The values as they are if ``node``, an If, takes branch ``name``."""

    def __init__(self, node: ir.Node, name: str) -> None:
        self.node = node
        self.name = name
        self.facts: dict[ir.Value, Fact] = {}
        self.owners: dict[ir.Graph | None, ir.Node] = {}
        """The node of the If's own graph that carries a branch which is looked into."""
        self.steps = 0

    def contradiction(self) -> Impossible | None:
        """Return a node of the If's graph that could not run, or ``None``."""
        try:
            self._spread()
        except Impossible as found:
            return found
        except Decline:
            pass
        return None

    def _spread(self) -> None:
        """Evaluate what reads the outputs and the condition of the If, and what reads that, as far as facts go."""
        node, graph = self.node, self.node.graph
        queue: deque[ir.Node] = deque()

        def learn(value: ir.Value, fact: Fact) -> None:
            if self.facts.get(value) != fact:
                self.facts[value] = fact
                for reader in value.consumers():
                    owner = reader if reader.graph is graph else self.owners.get(reader.graph)
                    if owner is not None and owner is not node:
                        queue.append(owner)

        condition = node.inputs[0]
        if condition is not None:
            learn(condition, Fact(self(condition).sizes, (int(self.name == "then_branch"),)))
        for value, fact in zip(node.outputs, self._branch(node, self.name), strict=True):
            learn(value, fact)
        while queue and self.steps < LIMIT:
            reader = queue.popleft()
            for value, fact in zip(reader.outputs, self._evaluate(reader), strict=False):
                learn(value, fact)

    def __call__(self, value: ir.Value | None) -> Fact:
        """Return what is known of ``value``."""
        if value is None:
            return NOTHING
        found = self.facts.get(value)
        return found if found is not None else _declared(value)

    def _branch(self, node: ir.Node, name: str) -> list[Fact]:
        branch: ir.Graph = attribute(node, name)
        self.owners[branch] = self.owners.get(node.graph, node)
        try:
            for inner in branch:
                for value, fact in zip(inner.outputs, self._evaluate(inner), strict=False):
                    self.facts[value] = fact
        except Impossible as found:
            _require(node, str(found))
        return [self(value) for value in branch.outputs]

    def _evaluate(self, node: ir.Node) -> list[Fact]:
        """Return what is known of the outputs of ``node``; nothing where it is of a kind that nobody described.

        Raises:
            Impossible: it cannot run.
        """
        self.steps += 1
        if self.steps > LIMIT:
            raise Decline("too far to see")
        if node.domain != "":
            return [NOTHING] * len(node.outputs)
        if node.op_type == "If":
            taken = self(node.inputs[0]).elements
            if taken is None or len(taken) != 1 or taken[0] is None:
                return [NOTHING] * len(node.outputs)
            return self._branch(node, "then_branch" if taken[0] else "else_branch")
        if node.op_type == "Constant":
            return [_declared(node.outputs[0])]
        inputs = [self(value) for value in node.inputs]
        self._demand(node, inputs)
        rule = RULES.get(node.op_type)
        if rule is None:
            info = op_info(node)
            rule = _elementwise if info.elementwise and opset(node) >= 7 else None
        made = rule(node, inputs) if rule is not None else NOTHING
        return [made, *[NOTHING] * (len(node.outputs) - 1)]

    def _demand(self, node: ir.Node, inputs: list[Fact]) -> None:
        """Compare the ranks that an operator demands of its inputs with those that they have."""
        for i, rank in _ranks(node, inputs).items():
            if i < len(inputs) and (sizes := inputs[i].sizes) is not None and len(sizes) != rank:
                name = node.inputs[i].name  # type: ignore[union-attr]
                _require(node, f"{name} would have rank {len(sizes)}, and {node.op_type} takes {rank}")


def _declared(value: ir.Value) -> Fact:
    """Return what is known of a value whatever the assumption."""
    tensor = constant_tensor(value)
    shape = tensor.shape if tensor is not None else value.shape
    if shape is None:
        return NOTHING
    sizes = tuple(dim if isinstance(dim, int) else None for dim in shape)
    if tensor is None or len(sizes) > 1 or tensor.size > SMALL:
        return Fact(sizes)
    if not tensor.dtype.is_integer() and tensor.dtype != ir.DataType.BOOL:
        return Fact(sizes)
    return Fact(sizes, tuple(int(element) for element in tensor.numpy().reshape(-1)))


def _require(node: ir.Node, reason: str) -> None:
    """Say that ``node`` cannot run.

    Raises:
        Impossible: an output depends on it, so no run gets past it.
        Decline: it is dead, and need not run.
    """
    if _is_needed(node):
        raise Impossible(node, reason)
    raise Decline("what cannot run is not needed")


def _is_needed(node: ir.Node) -> bool:
    """Return whether something that ``node`` makes leads to an output of its graph."""
    seen, stack = {node}, [node]
    while stack:
        for value in stack.pop().outputs:
            if value.is_graph_output():
                return True
            fresh = [reader for reader in value.consumers() if reader not in seen]
            seen.update(fresh)
            stack += fresh
    return False


# --- what operators demand --------------------------------------------------------------------------------------------

RECURRENT = {0: 3, 1: 3, 2: 3, 3: 2, 5: 3, 6: 3}


def _ranks(node: ir.Node, inputs: list[Fact]) -> Mapping[int, int]:
    """Return the ranks that ONNX and every runtime demand of inputs."""
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return RECURRENT
    if node.op_type in ("Conv", "ConvTranspose") and len(inputs) > 1 and (w := inputs[1].sizes) is not None:
        return {0: len(w)}
    if node.op_type == "Transpose" and (perm := attribute(node, "perm")) is not None:
        return {0: len(perm)}
    if node.op_type in ("MaxPool", "AveragePool") and (kernel := attribute(node, "kernel_shape")) is not None:
        return {0: len(kernel) + 2}
    return {}


# --- what operators make ----------------------------------------------------------------------------------------------


def _shape(node: ir.Node, inputs: list[Fact]) -> Fact:
    sizes = inputs[0].sizes
    if sizes is None:
        return Fact((None,))
    elements = sizes[attribute(node, "start", 0) : attribute(node, "end")]
    return Fact((len(elements),), elements)


def _size(node: ir.Node, inputs: list[Fact]) -> Fact:
    sizes = inputs[0].sizes
    if sizes is None or None in sizes:
        return Fact(())
    return Fact((), (math.prod(size for size in sizes if size is not None),))


def _gather(node: ir.Node, inputs: list[Fact]) -> Fact:
    data, indices = inputs[:2]
    axis = attribute(node, "axis", 0)
    if data.sizes is None or indices.sizes is None or not -len(data.sizes) <= axis < len(data.sizes):
        return NOTHING
    axis %= len(data.sizes)
    sizes = (*data.sizes[:axis], *indices.sizes, *data.sizes[axis + 1 :])
    held, wanted = data.elements, indices.elements
    if held is None or wanted is None:
        return Fact(sizes)
    inside = [i for i in wanted if i is not None and -len(held) <= i < len(held)]
    return Fact(sizes, tuple(held[i] for i in inside) if len(inside) == len(wanted) else None)


def _axes(node: ir.Node, inputs: list[Fact]) -> list[int] | None:
    if opset(node) < 13:
        found: list[int] | None = attribute(node, "axes")
        return found
    given = inputs[1].elements if len(inputs) > 1 else None
    return None if given is None or None in given else [i for i in given if i is not None]


def _squeeze(node: ir.Node, inputs: list[Fact]) -> Fact:
    (sizes, elements), axes = inputs[0], _axes(node, inputs)
    if sizes is None or axes is None:
        return NOTHING
    dropped = _within(node, axes, len(sizes))
    for axis in sorted(dropped):
        if sizes[axis] not in (None, 1):
            _require(node, f"axis {axis} would have size {sizes[axis]}, and Squeeze takes 1")
    return Fact(tuple(size for axis, size in enumerate(sizes) if axis not in dropped), elements)


def _unsqueeze(node: ir.Node, inputs: list[Fact]) -> Fact:
    (sizes, elements), axes = inputs[0], _axes(node, inputs)
    if sizes is None or axes is None:
        return NOTHING
    added = _within(node, axes, len(sizes) + len(axes))
    rest = iter(sizes)
    made = tuple(1 if axis in added else next(rest) for axis in range(len(sizes) + len(axes)))
    return Fact(made, elements if len(made) <= 1 else None)


def _within(node: ir.Node, axes: Iterable[int], rank: int) -> set[int]:
    for axis in axes:
        if not -rank <= axis < rank:
            _require(node, f"axis {axis} of {node.op_type} would be out of range for rank {rank}")
    return {axis % rank for axis in axes}


def _elementwise(node: ir.Node, inputs: list[Fact]) -> Fact:
    """Broadcast the shapes, and compare or combine the elements where all are known."""
    if op_info(node).arity == 1:
        sizes, elements = inputs[0]
        if node.op_type == "Not" and elements is not None:
            return Fact(sizes, tuple(None if e is None else int(not e) for e in elements))
        return Fact(sizes, elements if node.op_type == "Identity" else None)
    ranks = [len(fact.sizes) for fact in inputs if fact.sizes is not None]
    if len(ranks) < len(inputs):
        return NOTHING
    compare = COMPARISONS.get(node.op_type)
    a, b = (inputs[0].elements, inputs[1].elements) if len(inputs) == 2 else (None, None)
    if compare is None or a is None or b is None or not len(a) == len(b) == 1 or None in (*a, *b):
        return Fact((None,) * max(ranks))
    return Fact((1,) * max(ranks), (int(compare(a[0], b[0])),))


COMPARISONS: Mapping[str, Callable[..., bool | int]] = {
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "And": operator.and_,
    "Or": operator.or_,
    "Xor": operator.xor,
}
RULES: Mapping[str, Callable[[ir.Node, list[Fact]], Fact]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
"""Operators that shapes and conditions are made of; elementwise ones follow the operator table."""
