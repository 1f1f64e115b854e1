"""Local rewrites: the worklist that finds where they apply, and the only code that edits a graph for them."""

from __future__ import annotations

import abc
import itertools
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from . import origin
from .analysis.shapes import Shapes, known
from .errors import PassError
from .interfaces import Declined, Pass, PassReport, place
from .query import Decline, all_graphs, all_nodes, has_subgraphs, nodes_in, subgraphs

if TYPE_CHECKING:
    from .context import Context

ANY = "*"
"""The anchor of a rewrite that looks at every node."""

Replacement = ir.Value | Sequence["ir.Value | None"] | None


class Tape(ir.tape.Tape):
    """Records the nodes and constants that a rewrite wants; the driver splices them in after success."""

    def __init__(self, anchor: ir.Node, context: Context) -> None:
        super().__init__()
        self.anchor = anchor
        self.context = context

    @property
    def opset(self) -> int:
        """The ONNX opset that the graph around the anchor imports."""
        graph = self.anchor.graph
        return (graph.opset_imports.get("") if graph is not None else None) or 1

    @property
    def in_function(self) -> bool:
        """Whether the anchor lies in the body of a function, where ONNX allows no initializers."""
        graph = self.anchor.graph
        return graph is not None and bool(graph.meta.get(IN_FUNCTION, False))

    def constant(self, array: np.ndarray[Any, Any], stem: str, dtype: ir.DataType | None = None) -> ir.Value:
        """Record a constant named ``stem`` (made unique) and return its value.

        ``dtype`` is needed only for types that numpy does not tell apart (strings, sub-byte integers).
        """
        return self.initializer(
            ir.tensor(np.ascontiguousarray(array).reshape(np.shape(array)), dtype=dtype), name=stem
        )

    def initializer(self, tensor: ir.TensorProtocol, name: str | None = None) -> ir.Value:
        """Record a constant that holds ``tensor``: an initializer, or in a function's body a Constant node."""
        if not self.in_function:
            return super().initializer(tensor, name)
        value = self.op("Constant", [], {"value": tensor})
        value.name, value.const_value = name or tensor.name, tensor
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        return value

    def shapes(self) -> Shapes:
        """Return the shape analysis of the model, which knows the contents of shape tensors too."""
        return self.context.analysis(Shapes)

    def adopt(self, node: ir.Node) -> None:
        """Record a node that was made elsewhere and stands in no graph."""
        self._nodes.append(node)

    def discard(self) -> None:
        """Take back what was recorded, so that no value counts it as a use."""
        for node in self._nodes:
            for i in range(len(node.inputs)):
                node.replace_input_with(i, None)
        self._nodes.clear()
        self._initializers.clear()


class Rewrite(Pass):
    """A pass that replaces one node at a time, with whatever fed it.

    ``anchor`` names the operators it looks at (``"Conv"``, ``("Add", "Sub")``, ``"com.microsoft::Gelu"``).
    ``replace`` reads the graph and records new nodes on the tape; it never edits the graph.
    """

    anchor: ClassVar[str | tuple[str, ...]]

    @abc.abstractmethod
    def replace(self, node: ir.Node, tape: Tape) -> Replacement:
        """Return the value to use instead of ``node``'s output, or raise :class:`~graphopt.Decline`.

        A node with several outputs needs one value for each; ``None`` for those that nothing reads. Returning
        ``None`` alone says that ``node`` is not of the kind that the pass is about, which is not worth a report.
        """

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Apply the rewrite wherever it fits, until it fits nowhere."""
        return run_together([self], model, context)[0]


def run_together(rewrites: Sequence[Rewrite], model: ir.Model, context: Context) -> list[PassReport]:
    """Apply several rewrites from one worklist until none of them fits; return their reports, in their order.

    Each node is looked at by the rewrites that are anchored on its operator, in the order of ``rewrites``, and
    again when something next to it changed: the cost grows with the graph and with the number of rewrites done.

    Raises:
        PassError: the rewrites undo each other for ever, or one of them breaks the contract of ``replace``.
    """
    return _Worklist(rewrites, model, context).run()


class _Worklist:
    def __init__(self, rewrites: Sequence[Rewrite], model: ir.Model, context: Context) -> None:
        self.rewrites = rewrites
        self.model = model
        self.context = context
        self.shapes = context.analysis(Shapes)
        self.reports = [PassReport() for _ in rewrites]
        self.declined: dict[tuple[int, ir.Node], Declined] = {}
        self.index: dict[tuple[str, str], list[int]] = {}
        self.everywhere: list[int] = []
        for i, rewrite in enumerate(rewrites):
            anchors = (rewrite.anchor,) if isinstance(rewrite.anchor, str) else rewrite.anchor
            for anchor in anchors:
                if anchor == ANY:
                    self.everywhere.append(i)
                else:
                    domain, _, op_type = anchor.rpartition("::")
                    self.index.setdefault((domain, op_type), []).append(i)
        self.shapes.touched()
        self.names = Names(model)
        nodes = list(all_nodes(model))
        self.queue: deque[ir.Node] = deque(nodes)
        self.queued: set[ir.Node] = set(nodes)
        self.budget = 10_000 + 50 * len(nodes)

    def run(self) -> list[PassReport]:
        while self.queue:
            node = self.queue.popleft()
            self.queued.discard(node)
            if node.graph is not None:
                self._visit(node)
        for (i, node), declined in self.declined.items():
            if node.graph is not None:
                self.reports[i].declined.append(declined)
        return self.reports

    def _visit(self, node: ir.Node) -> None:
        for i in self.everywhere:
            if self._timed(i, node):
                return
        if not known(node):
            self.shapes.infer(node)
        for i in self.index.get((node.domain, node.op_type), ()):
            if self._timed(i, node):
                return

    def _timed(self, i: int, node: ir.Node) -> bool:
        start = time.perf_counter()
        done = self._try(i, node)
        self.reports[i].milliseconds += (time.perf_counter() - start) * 1e3
        return done

    def _try(self, i: int, node: ir.Node) -> bool:
        rewrite, report = self.rewrites[i], self.reports[i]
        tape = Tape(node, self.context)
        self.context.step = rewrite.name
        try:
            new = rewrite.replace(node, tape)
            if new is None:
                return False
            outputs = _outputs(rewrite, node, new)
            outputs = _respect_interface(node, outputs, tape)
        except Decline as reason:
            tape.discard()
            self.declined[i, node] = Declined(place(node), node.op_type, str(reason))
            return False
        if not self.context.admit(report, node):
            tape.discard()
            return False
        self.declined.pop((i, node), None)
        self.budget -= 1
        if self.budget < 0:
            raise PassError(
                f"{rewrite.name}: it does not come to an end, last at {node.op_type} {place(node)}; "
                f"it and {', '.join(r.name for r in self.rewrites if r is not rewrite) or 'itself'} undo each other"
            )
        self._enqueue(splice(node, outputs, tape, self.names, rewrite.name))
        return True

    def _enqueue(self, touched: list[ir.Node]) -> None:
        self.shapes.touched(touched)
        for node in reversed(list(dict.fromkeys(touched))):
            if node.graph is not None and node not in self.queued:
                self.queued.add(node)
                self.queue.appendleft(node)


def _outputs(
    rewrite: Rewrite, node: ir.Node, new: ir.Value | Sequence[ir.Value | None]
) -> list[ir.Value | None]:
    outputs = [new] if isinstance(new, ir.Value) else list(new)
    outputs += [None] * (len(node.outputs) - len(outputs))
    for old, value in zip(node.outputs, outputs, strict=True):
        if value is None and (old.uses() or old.is_graph_output()):
            raise PassError(
                f"{rewrite.name}: it gives nothing for {old.name}, an output of {node.op_type} {place(node)}; "
                f"return one value for each output"
            )
    return outputs


def _respect_interface(node: ir.Node, outputs: list[ir.Value | None], tape: Tape) -> list[ir.Value | None]:
    """Keep the names and the number of graph outputs: a value that has a name of its own goes through Identity."""
    kept = list(outputs)
    for i, (old, new) in enumerate(zip(node.outputs, outputs, strict=True)):
        if new is None or not old.is_graph_output() or _can_take_name(old, new, tape, outputs[:i]):
            continue
        if node.op_type == "Identity" and node.domain == "":
            raise Decline(f"{old.name} is a graph output, and {new.name} cannot take its name")
        kept[i] = tape.op("Identity", [new])
    return kept


def _can_take_name(old: ir.Value, new: ir.Value, tape: Tape, before: Sequence[ir.Value | None]) -> bool:
    if new in before:
        return False
    producer = new.producer()
    if producer is None:
        return False
    return producer in tape.nodes or (producer.graph is old.graph and not new.is_graph_output())


def splice(
    node: ir.Node, outputs: Sequence[ir.Value | None], tape: Tape, names: Names, pass_name: str
) -> list[ir.Node]:
    """Put what ``tape`` recorded before ``node``, move its uses to ``outputs``, sweep what died.

    Returns:
        The nodes worth another look: the new ones, the readers of the new values, and what fed the old ones.
    """
    graph = node.graph
    assert graph is not None
    fresh = set(tape.nodes)
    inputs = [value for value in node.inputs if value is not None]
    stems = {v: v.name for node in tape.nodes for v in node.outputs if v.name and v not in outputs}
    for value in tape.initializers:
        stems[value] = value.name or "constant"
        value.name = names.fresh(stems[value])
        graph.register_initializer(value)
    _name(node, outputs, tape, names)
    graph.insert_before(node, tape.nodes)
    touched: list[ir.Node] = list(tape.nodes)
    for old, new in zip(node.outputs, outputs, strict=True):
        if new is None:
            continue
        _inherit_type(old, new)
        readers = old.consumers()
        is_output = old.is_graph_output()
        old_name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if is_output or new.producer() in fresh:
            old.name = None
            new.name = old_name
        touched += readers
        producer = new.producer()
        if producer is not None and producer not in fresh:
            touched.append(producer)
    swept = sweep(node, names)
    for value, stem in stems.items():
        value.name = names.rename(value.name or stem, stem)
    origin.merge(tape.nodes, [*swept[1:], node], pass_name)
    touched += [p for value in inputs if (p := value.producer()) is not None]
    return touched


def substitute(
    node: ir.Node,
    values: Sequence[ir.Value | None],
    tape: Tape,
    names: Names,
    report: PassReport,
    detail: str = "",
) -> bool:
    """Use ``values`` instead of the outputs of ``node``: one numbered rewrite of a pass that sweeps a whole graph.

    Graph outputs keep their names. Answers ``False`` where that is impossible, which is reported, or where a
    bisection leaves the rewrite out.
    """
    try:
        outputs = _respect_interface(node, list(values), tape)
    except Decline as reason:
        report.decline(node, str(reason))
        tape.discard()
        return False
    if not tape.context.admit(report, node, detail):
        tape.discard()
        return False
    splice(node, outputs, tape, names, tape.context.step)
    return True


IN_FUNCTION = "graphopt.in_function"
"""Key of ``graph.meta``: the graph is, or lies in, the body of a function, where ONNX allows no initializers."""


def _name(node: ir.Node, outputs: Sequence[ir.Value | None], tape: Tape, names: Names) -> None:
    """Name new nodes and values after the node they replace; the value that takes its place takes its name."""
    finals = {value for value in outputs if value is not None}
    stem = next((v.name for v in node.outputs if v.name), None) or node.op_type
    for new in tape.nodes:
        is_final = any(value in finals for value in new.outputs)
        new.name = (
            node.name if is_final and node.name else names.fresh_node(f"{node.name or stem}_{new.op_type}")
        )
        for value in new.outputs:
            if value not in finals and value.name != "":
                value.name = names.fresh(value.name or f"{stem}_{new.op_type}")


def _inherit_type(old: ir.Value, new: ir.Value) -> None:
    if new.type is None:
        new.type = old.type
    if new.shape is None and old.shape is not None:
        new.shape = old.shape.copy()


def sweep(node: ir.Node, names: Names | None = None) -> list[ir.Node]:
    """Remove ``node``, which nothing reads, and upwards each producer and constant that only it kept alive.

    Their names are given back to ``names``.

    Returns:
        The nodes that were removed, ``node`` first.
    """
    removed: list[ir.Node] = []
    stack = [node]
    while stack:
        dead = stack.pop()
        graph = dead.graph
        if graph is None:
            continue
        inputs = [value for value in dict.fromkeys(_reads(dead)) if value is not None]
        for inner in subgraphs(dead):
            _release(inner, names)
        graph.remove(dead, safe=True)
        removed.append(dead)
        if names is not None:
            names.release(v.name for v in dead.outputs)
        for value in inputs:
            if value.uses() or value.is_graph_output():
                continue
            producer = value.producer()
            if producer is not None:
                if not any(v.uses() or v.is_graph_output() for v in producer.outputs):
                    stack.append(producer)
            elif value.is_initializer() and not value.is_graph_input() and value.graph is not None:
                value.graph.initializers.pop(value.name or "")
                if names is not None:
                    names.release([value.name])
    return removed


def _reads(node: ir.Node) -> Iterable[ir.Value | None]:
    """Yield what ``node`` reads, itself and through its subgraphs."""
    yield from node.inputs
    for inner in subgraphs(node):
        for nested in nodes_in(inner):
            yield from nested.inputs


def _release(graph: ir.Graph, names: Names | None) -> None:
    """Make the nodes of a dead subgraph read nothing any more, and belong nowhere."""
    for node in list(nodes_in(graph)):
        if names is not None:
            names.release(v.name for v in node.outputs)
        for i in range(len(node.inputs)):
            node.replace_input_with(i, None)
        if node.graph is not None:
            node.graph.remove(node)


class Names:
    """The names that are taken anywhere in a model; a subgraph must not hide a value of the graph around it."""

    def __init__(self, model: ir.Model) -> None:
        self._values: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        for graph in all_graphs(model):
            self._values.update(v.name for v in graph.inputs if v.name)
            self._values.update(list(graph.initializers))
            for node in graph:
                if node.name:
                    self._nodes[node.name] += 1
                self._values.update(v.name for v in node.outputs if v.name)

    def fresh(self, stem: str) -> str:
        """Return ``stem``, or ``stem_1``, ``stem_2``, … where that is taken, and take it."""
        return _fresh(self._values, stem)

    def fresh_node(self, stem: str) -> str:
        """Return a name that no node has, and take it."""
        return _fresh(self._nodes, stem)

    def release(self, names: Iterable[str | None]) -> None:
        """Give back the names of values that are gone; a name is free when the last of its values is."""
        for name in names:
            if name and self._values[name] > 0:
                self._values[name] -= 1

    def rename(self, name: str, wanted: str) -> str:
        """Return ``wanted`` where it is free by now, in exchange for ``name``; else ``name``."""
        if name == wanted or self._values[wanted] > 0:
            return name
        self.release([name])
        return self.fresh(wanted)


def _fresh(taken: Counter[str], stem: str) -> str:
    name = stem
    if taken[name]:
        name = next(n for i in itertools.count(1) if not taken[n := f"{stem}_{i}"])
    taken[name] += 1
    return name


def prepare(model: ir.Model) -> None:
    """Tell each graph what the rewrites ask of it: the opsets around it, and whether it lies in a function."""

    def descend(graph: ir.Graph, opsets: Mapping[str, int], in_function: bool) -> None:
        graph.opset_imports.update(opsets)
        if in_function:
            graph.meta[IN_FUNCTION] = True
        for node in graph:
            if has_subgraphs(node):
                for inner in subgraphs(node):
                    descend(inner, graph.opset_imports, in_function)

    descend(model.graph, {}, in_function=False)
    for function in model.functions.values():
        descend(function.graph, {}, in_function=True)
