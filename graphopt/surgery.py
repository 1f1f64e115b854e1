"""Graph surgery: put the nodes of a rewrite in the place of those that they replace, and sweep what died."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from . import origin
from .query import Decline, all_graphs, has_subgraphs, nodes_in, subgraphs

if TYPE_CHECKING:
    from .interfaces import PassReport
    from .rewrite import Tape

IN_FUNCTION = "graphopt.in_function"
"""Key of ``graph.meta``: the graph is, or lies in, the body of a function, where ONNX allows no initializers."""


def respect_interface(node: ir.Node, outputs: list[ir.Value | None], tape: Tape) -> list[ir.Value | None]:
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
        The nodes worth another look: the new ones, the readers of the new values, and what feeds both.
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
    for made in tape.nodes:
        for inner in subgraphs(made):
            names.keep(v.name for nested in nodes_in(inner) for v in nested.outputs)
    survivors: list[ir.Node] = []
    swept = sweep(node, names, survivors)
    for value, stem in stems.items():
        value.name = names.rename(value.name or stem, stem)
    origin.merge(tape.nodes, [*swept[1:], node], pass_name)
    read = [*inputs, *(value for made in tape.nodes for value in made.inputs if value is not None)]
    touched += [p for value in dict.fromkeys(read) if (p := value.producer()) is not None and p not in fresh]
    touched += [survivor for survivor in survivors if survivor not in fresh]
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
        outputs = respect_interface(node, list(values), tape)
    except Decline as reason:
        report.decline(node, str(reason))
        tape.discard()
        return False
    if not tape.context.admit(report, node, detail):
        tape.discard()
        return False
    splice(node, outputs, tape, names, tape.context.step)
    return True


def _name(node: ir.Node, outputs: Sequence[ir.Value | None], tape: Tape, names: Names) -> None:
    """Name new nodes and values after the node they replace; the value that takes its place takes its name."""
    finals = {value for value in outputs if value is not None}
    stem = next((v.name for v in node.outputs if v.name), None) or node.op_type
    heir = next((new for new in tape.nodes if any(value in finals for value in new.outputs)), None)
    for new in tape.nodes:
        new.name = (
            node.name if new is heir and node.name else names.fresh_node(f"{node.name or stem}_{new.op_type}")
        )
        for value in new.outputs:
            if value not in finals and value.name != "":
                value.name = names.fresh(value.name or f"{stem}_{new.op_type}")


def _inherit_type(old: ir.Value, new: ir.Value) -> None:
    if new.type is None:
        new.type = old.type
    if new.shape is None and old.shape is not None:
        new.shape = old.shape.copy()


def sweep(node: ir.Node, names: Names | None = None, survivors: list[ir.Node] | None = None) -> list[ir.Node]:
    """Remove ``node``, which nothing reads, and upwards each producer and constant that only it kept alive.

    Their names are given back to ``names``; producers that lost a reader and live on are added to ``survivors``.

    Returns:
        The nodes that were removed, ``node`` first.
    """
    removed: list[ir.Node] = []
    survivors = survivors if survivors is not None else []
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
            producer = value.producer()
            if producer is not None:
                needed = any(v.uses() or v.is_graph_output() for v in producer.outputs)
                (survivors if needed else stack).append(producer)
            elif _is_idle_initializer(value):
                assert value.graph is not None, "initializers are of a graph"
                value.graph.initializers.pop(value.name or "")
                if names is not None:
                    names.release([value.name])
    return removed


def _is_idle_initializer(value: ir.Value) -> bool:
    """Return whether ``value`` is an initializer, no default of an input, that nothing needs any more."""
    idle = not value.uses() and not value.is_graph_output()
    return idle and value.is_initializer() and not value.is_graph_input() and value.graph is not None


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
        self._free: dict[str, int] = {}
        """Below which number no ``stem_1``, ``stem_2``, … of a value is free, so that each is found soon."""
        self._free_node: dict[str, int] = {}
        for graph in all_graphs(model):
            self._values.update(v.name for v in graph.inputs if v.name)
            self._values.update(list(graph.initializers))
            for node in graph:
                if node.name:
                    self._nodes[node.name] += 1
                self._values.update(v.name for v in node.outputs if v.name)

    def fresh(self, stem: str) -> str:
        """Return ``stem``, or ``stem_1``, ``stem_2``, … where that is taken, and take it."""
        return _fresh(self._values, stem, self._free)

    def fresh_node(self, stem: str) -> str:
        """Return a name that no node has, and take it."""
        return _fresh(self._nodes, stem, self._free_node)

    def release(self, names: Iterable[str | None]) -> None:
        """Give back the names of values that are gone; a name is free when the last of its values is."""
        for name in names:
            if name and self._values[name] > 0:
                self._values[name] -= 1
                stem, _, number = name.rpartition("_")
                if stem in self._free and number.isdecimal():
                    self._free[stem] = min(self._free[stem], int(number))

    def keep(self, names: Iterable[str | None]) -> None:
        """Take the names of values that come in with their graph and keep them; others may have the same."""
        self._values.update(name for name in names if name)

    def rename(self, name: str, wanted: str) -> str:
        """Return ``wanted`` where it is free by now, in exchange for ``name``; else ``name``."""
        if name == wanted or self._values[wanted] > 0:
            return name
        self.release([name])
        return self.fresh(wanted)


def _fresh(taken: Counter[str], stem: str, free: dict[str, int]) -> str:
    name = stem
    if taken[name]:
        number = next(i for i in itertools.count(free.get(stem, 1)) if not taken[f"{stem}_{i}"])
        name, free[stem] = f"{stem}_{number}", number + 1
    taken[name] += 1
    return name


def import_domains(model: ir.Model) -> None:
    """Import version 1 of each operator set that nodes are of and that nobody imported yet."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in nodes_in(graph):
            graph.opset_imports.setdefault(node.domain, 1)


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
