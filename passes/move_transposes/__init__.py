"""Move transposes to where fewest bytes go through them, so that most of them cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt import Names, Pass, PassReport, Shapes, Tape, all_graphs, substitute
from graphopt.query import is_constant, is_op

from .frames import Frame
from .orders import (
    Order,
    in_order,
    inverse,
    laid_constant,
    moved,
    order_of,
    origin_of,
    part,
    spread,
    then,
    transpose,
)
from .regions import Orders, Regions

if TYPE_CHECKING:
    from graphopt.context import Context


ROUNDS = 8
"""How often transposes move on from where one became a Reshape; a second round is rare."""


class MoveTransposes(Pass):
    """Replace ``f(Transpose(x, p))`` by ``Transpose(f(x), p)``, and back, where that leaves less to transpose.

    Elementwise operators, reductions, concatenations, slices, pads, softmax, normalizations and others compute the
    same in any order of axes ``p``, as long as all their operands are laid out in it and axes, pads and constants are
    put into it::

        Add(Transpose(x, p), c)                     ->  Transpose(Add(x, Transpose(c, p⁻¹)), p)
        Concat(Transpose(x, p), Transpose(y, p), a) ->  Transpose(Concat(x, y, p[a]), p)
        ReduceMean(Transpose(x, p), [1, 2], keepdims = 0)  ->  ReduceMean(x, [p[1], p[2]])

    From each Transpose on, all operators that would have to change together are found; of these, the ones that
    change are the minimum cut: what is then transposed, in bytes (a value once for each order in which something reads
    it), is as little as it can be, and less than before. So a run comes to an end, and Transposes vanish that neither
    their neighbours nor one operator alone can spare. Moving axes of size 1 costs nothing: it is a Reshape.

    A Softmax that is not over the last axis counts as two Transposes, which is what its kernel does; a Transpose right
    behind Conv, Gemm or MatMul as a little more than one behind the next operator, which the former can take in then.

    Exact up to rounding: a sum may be taken in another order. Source: ONNX Transpose-1 to 25, and the operators in
    ``rules.py``, whose axes count in the order of their input. Regions as minimum cuts: Boykov, Veksler, Zabih 2001,
    "Fast approximate energy minimization via graph cuts", with one alternative order a node.
    """

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Change the regions of each graph until no change leaves less to transpose."""
        report = PassReport()
        names: Names | None = None
        for graph in all_graphs(model):
            if any(is_op(node, "Transpose") for node in graph):
                names = names or Names(model)
                _Mover(graph, names, context, report).run()
        return report


class _Mover:
    """Moves the transposes of one graph."""

    def __init__(self, graph: ir.Graph, names: Names, context: Context, report: PassReport) -> None:
        self.graph = graph
        self.names = names
        self.context = context
        self.report = report
        self.shapes = context.analysis(Shapes)
        self.regions = Regions(graph)
        self.copies: dict[tuple[ir.Value, Order], ir.Value] = {}
        self.places: dict[ir.Node, int] = {}

    def run(self) -> None:
        for node in self.graph:
            if any(v.type is None or v.shape is None or v.shape.has_unknown_dim() for v in node.outputs):
                self.shapes.infer(node)
        idle: dict[ir.Node, int] = {}
        for _ in range(ROUNDS):
            while self._sweep(idle):
                idle.clear()
            if not sum(self._reshape(node) for node in self._transposes()):
                break
        for node, count in idle.items():
            if node.graph is not None:
                self.report.decline(
                    node,
                    f"moving it through {_counted(count, 'operator')} next to it leaves as much to transpose",
                )

    def _transposes(self) -> list[ir.Node]:
        return [node for node in self.graph if is_op(node, "Transpose")]

    def _sweep(self, idle: dict[ir.Node, int]) -> bool:
        """Look at each Transpose once; return whether anything changed. ``idle`` tells what could move and did not."""
        tried: dict[tuple[ir.Node, Order], int] = {}
        changed = False
        for node in self._transposes():
            if node.graph is None:
                continue
            sizes = []
            for seed in list(self.regions.seeds(node)):
                if seed not in tried and seed[0].graph is not None:
                    region = self.regions.around(*seed)
                    tried |= dict.fromkeys(region.items(), len(region))
                    best = self.regions.best(region)
                    changed |= bool(best) and self._change(best)
                sizes.append(tried.get(seed, 0))
            if sizes:
                idle[node] = max(sizes)
        return changed

    # --- editing ---------------------------------------------------------------------------------------------------

    def _change(self, orders: Orders) -> bool:
        """Let the nodes of ``orders`` work in these, each between Transposes; those cancel from node to node."""
        self.copies.clear()
        self.places = {node: i for i, node in enumerate(self.graph)}
        done = False
        restored: list[ir.Node] = []
        for node in sorted(orders, key=self.places.__getitem__):
            frame = self.regions.frame(node)
            assert frame is not None
            if self._rebuild(node, frame, orders[node], restored):
                done = True
            else:
                self.regions.frozen.add(node)
        for node in restored:
            self._merge(node)
        return done

    def _rebuild(self, node: ir.Node, frame: Frame, order: Order, restored: list[ir.Node]) -> bool:
        tape = Tape(node, self.context)
        inputs = list(node.inputs)
        for index, axes in frame.reads.items():
            value = inputs[index]
            if value is not None:
                inputs[index] = self._laid(tape, value, axes, order, frame.broadcasts)
        made = frame.build(tape, inputs, order)
        values: list[ir.Value | None] = []
        for old, new, kept in zip(node.outputs, made, frame.makes, strict=True):
            new.type = old.type
            if not old.uses() and not old.is_graph_output():
                values.append(None)
                new.name = "" if old.name == "" else None
            else:
                values.append(new if kept is None else transpose(tape, new, inverse(part(kept, order))))
        if not substitute(node, values, tape, self.names, self.report, f"in order {list(order)}"):
            return False
        self._settle(tape)
        restored += [n for n in tape.nodes if is_op(n, "Transpose") and n.outputs[0] in values]
        return True

    def _laid(self, tape: Tape, value: ir.Value, axes: Order, order: Order, broadcasts: bool) -> ir.Value:
        """Return an operand with ``axes`` of a node as the node in ``order`` takes it."""
        if is_constant(value):
            return laid_constant(tape, value, axes, order, broadcasts)
        new = self._transposed(tape, *_behind(value, part(axes, order)))
        places = spread(axes, order) if broadcasts else ()
        if not places:
            return new
        if tape.opset < 13:
            return tape.op("Unsqueeze", [new], {"axes": list(places)})
        return tape.op("Unsqueeze", [new, tape.constant(np.array(places, np.int64), "axes")])

    def _transposed(self, tape: Tape, value: ir.Value, order: Order) -> ir.Value:
        """Return ``value`` in another order, by a Transpose that there is already where possible."""
        there = self.copies.get((value, order))
        node = there.producer() if there is not None else None
        if there is not None and node is not None and node.graph is self.graph:
            return there
        place = self.places.get(tape.anchor, 0)
        for node in value.consumers():
            if is_op(node, "Transpose") and self.places.get(node, place) < place and order_of(node) == order:
                return node.outputs[0]
        new = transpose(tape, value, order)
        if new is not value:
            self.copies[value, order] = new
        return new

    def _merge(self, node: ir.Node) -> None:
        """Let the Transposes behind one read what is before it."""
        for reader in node.outputs[0].consumers() if node.graph is not None else ():
            if is_op(reader, "Transpose") and reader.graph is self.graph:
                order = order_of(reader)
                assert order is not None
                tape = Tape(reader, self.context)
                value, behind = _behind(reader.outputs[0], tuple(range(len(order))))
                new = transpose(tape, value, behind)
                if substitute(reader, [new], tape, self.names, self.report):
                    self._settle(tape)

    def _reshape(self, node: ir.Node) -> bool:
        """Replace a Transpose that moves axes of size 1 alone; return whether it was one."""
        x, order = node.inputs[0], order_of(node)
        shape = _sizes(x, order) if x is not None and order is not None else None
        if shape is None:
            return False
        tape = Tape(node, self.context)
        target = tape.constant(np.array(shape, np.int64), "shape")
        done = substitute(node, [tape.op("Reshape", [x, target])], tape, self.names, self.report)
        self._settle(tape)
        return done

    def _settle(self, tape: Tape) -> None:
        for node in tape.nodes:
            if node.graph is not None:
                self.shapes.infer(node)


def _behind(value: ir.Value, order: Order) -> tuple[ir.Value, Order]:
    """Return a value and an order in which it is ``value`` in ``order``, without a Transpose between."""
    root, behind = origin_of(value, len(order))
    return root, then(behind, order)


def _sizes(x: ir.Value, order: Order) -> Sequence[int] | None:
    """Return the shape of ``x`` in an order that moves axes of size 1 alone, as a Reshape takes it."""
    if x.shape is None or in_order(order) or moved(x, order) != tuple(sorted(moved(x, order))):
        return None
    dims = [x.shape[axis] for axis in order]
    if 0 in dims:
        return None
    symbols = sum(not isinstance(dim, int) for dim in dims)
    sizes = [
        dim if isinstance(dim, int) else 0 if axis == i else -1
        for i, (axis, dim) in enumerate(zip(order, dims, strict=True))
    ]
    return sizes if -1 not in sizes or symbols == 1 else None


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
