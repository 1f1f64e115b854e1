"""Regions of operators that could all work in another order of axes, and which part of one had better do so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.query import is_constant, is_op

from .cut import NEVER, NO, YES, Cut
from .frames import Frame, frame_of
from .orders import Order, in_order, inverse, moved, origin_of, part, readers, then, whole

Orders = Mapping[ir.Node, Order]
"""The nodes that are to work in another order, and in which; all others stay as they are."""
SYMBOL = 8
"""What a size that is known at a run only is taken for."""
LAUNCH_BYTES = 4096
"""What a Transpose costs besides the bytes that it moves; all that one of the last two axes costs before a MatMul."""
RESHAPE_BYTES = 64
"""What it costs to move axes of size 1."""
LARGEST = 2000
"""Nodes of a region at most."""
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What takes in the operators behind it, unless a Transpose stands between: that one costs a little more."""


@dataclass
class Regions:
    """The regions of one graph."""

    graph: ir.Graph
    frozen: set[ir.Node] = field(default_factory=set)
    """Nodes that must stay as they are."""
    _frames: dict[ir.Node, Frame | None] = field(default_factory=dict)

    def frame(self, node: ir.Node | None) -> Frame | None:
        """Return the frame of a node of this graph that may change its order."""
        if node is None or node.graph is not self.graph or node in self.frozen:
            return None
        if node not in self._frames:
            self._frames[node] = frame_of(node)
        return self._frames[node]

    # --- what could change -----------------------------------------------------------------------------------------

    def seeds(self, transpose: ir.Node) -> Iterator[tuple[ir.Node, Order]]:
        """Yield the nodes next to a Transpose, each with the order in which it would do without."""
        x = transpose.inputs[0]
        rank = len(transpose.outputs[0].shape or ())
        if x is None or rank == 0:
            return
        root, order = origin_of(transpose.outputs[0], rank)
        for node, index, _ in readers(transpose.outputs[0], rank):
            yield from self._seed(node, index, inverse(order), reads=True)
        if (maker := root.producer()) is not None:
            yield from self._seed(maker, maker.outputs.index(root), order, reads=False)

    def _seed(
        self, node: ir.Node | None, index: int, order: Order, *, reads: bool
    ) -> Iterator[tuple[ir.Node, Order]]:
        """Yield ``node`` with the order in which its input or output ``index`` is in ``order``."""
        frame = self.frame(node)
        if node is None or frame is None or in_order(order):
            return
        axes = frame.reads.get(index) if reads else frame.makes[index]
        if axes is None or len(axes) != len(order):
            return
        chosen = whole(axes, order, frame.rank)
        if frame.allows(chosen):
            yield node, chosen

    def around(self, node: ir.Node, order: Order) -> dict[ir.Node, Order]:
        """Return all nodes that could change their order with ``node``, so that nothing between them is transposed."""
        found = {node: order}
        pending = [node]
        while pending and len(found) < LARGEST:
            node = pending.pop()
            for other, chosen in self._next(node, found[node]):
                if other not in found:
                    found[other] = chosen
                    pending.append(other)
        return found

    def _next(self, node: ir.Node, order: Order) -> Iterator[tuple[ir.Node, Order]]:
        frame = self.frame(node)
        assert frame is not None
        for value, axes in _ports(node, frame):
            root, behind = origin_of(value, len(axes))
            wanted = then(behind, part(axes, order))
            maker = root.producer()
            if maker is not None and maker is not node:
                yield from self._seed(maker, maker.outputs.index(root), wanted, reads=False)
            for other, index, ahead in readers(root, len(axes)):
                if other is not node:
                    yield from self._seed(other, index, then(inverse(ahead), wanted), reads=True)

    # --- what it costs ---------------------------------------------------------------------------------------------

    def cost(self, orders: Orders, nodes: Iterable[ir.Node]) -> int:
        """Return what is transposed around ``nodes``, in bytes, where the nodes of ``orders`` work in those."""
        total = 0
        for node in nodes:
            total += self._inner(node, orders.get(node))
        for value, rank in self._values(nodes).items():
            maker = value.producer()
            given = self._given(value, rank, orders.get(maker) if maker is not None else None)
            wanted: dict[Order, list[ir.Node | None]] = {}
            for reader, index, ahead in readers(value, rank):
                order = self._wanted(reader, index, ahead, orders.get(reader) if reader is not None else None)
                wanted.setdefault(order, []).append(reader)
            total += sum(
                self._price(value, given, order, by) for order, by in wanted.items() if order != given
            )
        return total

    def _inner(self, node: ir.Node, order: Order | None) -> int:
        """Return what a kernel transposes by itself."""
        frame = self.frame(node)
        if frame is None or frame.last is None:
            return 0
        last = order[-1] if order is not None else frame.rank - 1
        return 0 if last == frame.last else 2 * (LAUNCH_BYTES + _bytes(node.outputs[0]))

    def _price(self, value: ir.Value, given: Order, wanted: Order, by: Iterable[ir.Node | None]) -> int:
        """Return what it costs to have ``value``, made in one order, in the other one that ``by`` read it in."""
        if moved(value, given) == moved(value, wanted):
            return RESHAPE_BYTES
        swapped = (*given[:-2], *reversed(given[-2:]))
        if wanted == swapped and all(is_op(node, "MatMul", "Gemm") for node in by):
            return LAUNCH_BYTES
        price = LAUNCH_BYTES + _bytes(value)
        return price + price // 64 if in_order(given) and is_op(value.producer(), *LINEAR) else price

    def _values(self, nodes: Iterable[ir.Node]) -> dict[ir.Value, int]:
        """Return all values, behind any Transposes, that ``nodes`` read and make, with their ranks."""
        found: dict[ir.Value, int] = {}
        for node in nodes:
            frame = self.frame(node)
            assert frame is not None
            for value, axes in _ports(node, frame):
                found[origin_of(value, len(axes))[0]] = len(axes)
        return found

    def _given(self, value: ir.Value, rank: int, order: Order | None) -> Order:
        """Return the order in which ``value`` is made, where its maker works in ``order``."""
        maker = value.producer()
        frame = self.frame(maker) if order is not None else None
        if maker is None or frame is None or order is None:
            return tuple(range(rank))
        axes = frame.makes[maker.outputs.index(value)]
        return part(axes, order) if axes is not None else tuple(range(rank))

    def _wanted(self, node: ir.Node | None, index: int, ahead: Order, order: Order | None) -> Order:
        """Return the order in which a reader, behind Transposes of order ``ahead``, takes a value."""
        frame = self.frame(node) if order is not None else None
        if frame is None or order is None or index not in frame.reads:
            return ahead
        return then(ahead, part(frame.reads[index], order))

    # --- what had better change ------------------------------------------------------------------------------------

    def best(self, region: Orders) -> Orders:
        """Return the part of ``region`` whose change leaves least to transpose; empty where none leaves less.

        A minimum cut between the nodes that change and those that stay. A price that depends on two answers in a way
        that no cut knows is counted too high, so the result is weighed again, exactly.
        """
        before = self.cost({}, region)
        cut = Cut()
        for node, order in region.items():
            cut.cost(NO, node, 1 + self._inner(node, order))
            cut.cost(node, YES, self._inner(node, None))
        for value, rank in self._values(region).items():
            self._charge(cut, value, rank, region)
        yes = cut.answers()
        chosen = {node: order for node, order in region.items() if node in yes}
        whole_gain, gain = (before - self.cost(some, region) - len(some) for some in (region, chosen))
        if whole_gain > max(gain, 0):
            return region
        return chosen if gain > 0 else {}

    def _charge(self, cut: Cut, value: ir.Value, rank: int, region: Orders) -> None:
        """Tell the cut what copies of ``value`` in other orders cost."""
        maker = value.producer()
        source = maker if maker is not None and maker in region else NO
        made = [
            self._given(value, rank, order)
            for order in (None, region.get(maker) if maker is not None else None)
        ]
        always: dict[Order, list[ir.Node | None]] = {}
        wanting: dict[tuple[Order, bool], list[ir.Node]] = {}
        for node, index, ahead in readers(value, rank):
            order = region.get(node) if node is not None else None
            stays = self._wanted(node, index, ahead, None)
            changes = self._wanted(node, index, ahead, order)
            if node is None or moved(value, changes) == moved(value, stays):
                always.setdefault(stays, []).append(node)
            else:
                wanting.setdefault((moved(value, stays), False), []).append(node)
                wanting.setdefault((moved(value, changes), True), []).append(node)
        for order, by in always.items():
            if source != NO:
                cut.cost(source, YES, self._price(value, made[0], order, by) if made[0] != order else 0)
                cut.cost(NO, source, self._price(value, made[1], order, by) if made[1] != order else 0)
        there = {moved(value, order) for order in always}
        made_moved = [moved(value, order) for order in made]
        price = LAUNCH_BYTES + _bytes(value)
        price += price // 64 if in_order(made[0]) and is_op(maker, *LINEAR) else 0
        for (order, answer), nodes in wanting.items():
            if order not in there:
                one = (value, order, answer)
                for node in nodes:  # the copy is wanted where any of them answers so
                    if answer:
                        cut.cost(one, node, NEVER)
                    else:
                        cut.cost(node, one, NEVER)
                self._copy(cut, source, one, answer, [made_moved[0] == order, made_moved[1] == order], price)

    def _copy(
        self, cut: Cut, source: ir.Node | str, one: object, answer: bool, made: list[bool], price: int
    ) -> None:
        """Charge for a copy that is wanted where ``one`` is answered ``answer``, and not made by its source anyway."""
        if source == NO:
            made = [made[0]] * 2
        if all(made):
            return
        if not any(made):
            self._side(cut, one, answer, price)
        elif (
            made[0] == answer
        ):  # made where the source answers the other way than the readers: the cut knows no such
            self._side(cut, one, answer, price // 2)
            self._side(cut, source, made[0] is True, price // 2)
        elif answer:
            cut.cost(source, one, price)
        else:
            cut.cost(one, source, price)

    @staticmethod
    def _side(cut: Cut, one: object, answer: bool, price: int) -> None:
        """Charge for one answer."""
        if answer:
            cut.cost(NO, one, price)
        else:
            cut.cost(one, YES, price)


def _ports(node: ir.Node, frame: Frame) -> Iterator[tuple[ir.Value, Order]]:
    """Yield the values that are laid out like ``node``, and the axes of it that each has; constants cost nothing."""
    for index, axes in frame.reads.items():
        value = node.inputs[index]
        if value is not None and axes and not is_constant(value):
            yield value, axes
    for value, made in zip(node.outputs, frame.makes, strict=True):
        if made:
            yield value, made


def _bytes(value: ir.Value) -> int:
    dims = value.shape or ()
    size = value.dtype.itemsize if value.dtype is not None else 4
    for dim in dims:
        size *= dim if isinstance(dim, int) else SYMBOL
    return int(size)
