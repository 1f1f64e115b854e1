"""The difference of two models' structure, by origin: what went, what came, what changed, what stayed."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import onnx_ir as ir

from . import origin
from .analysis.cost import constants, label
from .differences import Differences, typed
from .interfaces import place
from .matching import Matching, match
from .query import all_nodes, is_op

Kind = Literal["removed", "added", "changed"]
MARKS: dict[Kind, str] = {"removed": "-", "added": "+", "changed": "~"}
WIDE = 100
"""Characters of a line of text that holds several details."""
NUMBER = re.compile(r"_?\d+")
ALIKE = 4
"""So many entries of one scope that read the same become one line of text."""


@dataclass(frozen=True)
class Entry:
    """One node that is not the same in both models."""

    kind: Kind
    place: str
    op_type: str
    scope: str
    details: tuple[str, ...] = ()
    """What changed; for a removed node what it went into, for an added one what it came from."""


@dataclass
class Diff:
    """How the structure of model B differs from that of model A."""

    kept: int
    """Nodes that are the same in both; ``Constant`` nodes count as weights."""
    entries: list[Entry]
    operators: dict[str, tuple[int, int]]
    """Operators whose number differs: in A, in B."""
    weights: list[tuple[str, str, str]]
    """Mark (``-+~``), name and types of weights of another type, shape or value, and of those in one model only."""
    weight_bytes: tuple[int, int]
    interface: list[str]
    """Inputs, outputs, opsets and IR version that differ."""
    states: dict[ir.Node, Kind] = field(default_factory=dict, repr=False)
    """The nodes of A that went, the nodes of B that came or changed: for pictures."""

    @property
    def same(self) -> bool:
        """Whether both models have one structure."""
        return not (self.entries or self.operators or self.weights or self.interface)

    def of(self, kind: Kind) -> list[Entry]:
        """Return the entries of one kind."""
        return [entry for entry in self.entries if entry.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """Return the difference as plain data."""
        return {
            "same": self.same,
            "kept": self.kept,
            **{kind: [dataclasses.asdict(entry) for entry in self.of(kind)] for kind in MARKS},
            "operators": self.operators,
            "weights": self.weights,
            "weight_bytes": self.weight_bytes,
            "interface": self.interface,
        }

    def text(self) -> str:
        """Return the difference for reading, grouped by module scope."""
        counts = ", ".join(f"{len(self.of(kind))} {kind}" for kind in MARKS)
        lines = [f"nodes: {self.kept} kept, {counts}"]
        if self.operators:
            wide = max(map(len, self.operators))
            lines += ["", "operators"]
            lines += [f"  {op:<{wide}}  {a:>4} → {b:<4} {b - a:+d}" for op, (a, b) in self.operators.items()]
        if self.interface:
            lines += ["", "interface", *(f"  {line}" for line in self.interface)]
        if self.weights:
            before, after = self.weight_bytes
            lines += ["", f"weights ({before:,} bytes → {after:,} bytes)", *_weight_lines(self.weights)]
        return "\n".join([*lines, *_scoped(self.entries)]) + "\n"


def _scoped(entries: list[Entry]) -> Iterator[str]:
    """Yield the entries under their scopes; scopes whose entries differ in numbers only are one."""
    scopes: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        scopes[entry.scope or "(top level)"].append(entry)
    printed = {scope: list(_alike(found)) for scope, found in scopes.items()}
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for scope, lines in printed.items():
        groups[tuple(NUMBER.sub("", line) for line in lines)].append(scope)
    for first, *others in groups.values():
        yield ""
        if len(others) >= ALIKE:
            yield f"{first}, and {len(others)} alike: {others[0]} … {others[-1]}"
        else:
            yield f"{first}{', and alike: ' if others else ''}{', '.join(others)}"
        yield from (f"  {line}" for line in printed[first])


def _alike(entries: list[Entry]) -> Iterator[str]:
    """Yield a line for each entry, one for all that differ only in numbers."""
    groups: dict[tuple[Kind, str, tuple[str, ...]], list[Entry]] = defaultdict(list)
    for entry in entries:
        details = tuple(NUMBER.sub("", detail) for detail in entry.details)
        groups[entry.kind, entry.op_type, details].append(entry)
    for (kind, op_type, _), group in groups.items():
        if len(group) >= ALIKE:
            yield from _lines(f"{MARKS[kind]} {op_type} ×{len(group)}, as {group[0].place}", group[0].details)
        else:
            for entry in group:
                yield from _lines(f"{MARKS[kind]} {op_type} {entry.place}", entry.details)


def _lines(head: str, details: tuple[str, ...]) -> Iterator[str]:
    """Yield one line, or one for each detail where it would be too wide."""
    line = f"{head}: {'; '.join(details)}" if details else head
    if len(details) < 2 or len(line) <= WIDE:
        yield line
    else:
        yield head
        yield from (f"    {detail}" for detail in details)


def _weight_lines(weights: list[tuple[str, str, str]]) -> Iterator[str]:
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for mark, name, text in weights:
        groups[mark, text].append(name)
    for (mark, text), names in groups.items():
        if len(names) >= ALIKE:
            yield f"  {mark} {text} ×{len(names)} ({names[0]} … {names[-1]})"
        else:
            yield from (f"  {mark} {name}: {text}" for name in names)


def diff(a: ir.Model, b: ir.Model, *, values: bool = False) -> Diff:
    """Return how the structure of ``b`` differs from that of ``a``.

    Nodes belong together by name, by the origins that rewrites note, by the names of their outputs, and what then is
    left by what feeds them and what they feed. Weights are compared by type and shape; small constants by value
    too, all of them where ``values`` asks for it.
    """
    nodes_a, nodes_b = _nodes(a), _nodes(b)
    pairs = match(a, b, nodes_a, nodes_b)
    comparison = Differences(pairs, values)
    entries: list[Entry] = []
    states: dict[ir.Node, Kind] = {}
    came_from = _origins(nodes_a, nodes_b, pairs)
    went_into = {old: new for new, olds in came_from.items() for old in olds}
    removed = {
        node: _entry("removed", node, _went(went_into.get(node)))
        for node in nodes_a
        if node not in pairs.b_of
    }
    for node in nodes_b:
        old = pairs.a_of.get(node)
        details = comparison.details(old, node) if old is not None else []
        details += _came(came_from.get(node, []), node, "takes in" if old is not None else "made of")
        if old is None or details:
            kind: Kind = "added" if old is None else "changed"
            entries.append(_entry(kind, node, details))
            states[node] = kind
    states.update(dict.fromkeys(removed, "removed"))
    counts_a, counts_b = Counter(map(label, all_nodes(a))), Counter(map(label, all_nodes(b)))
    sizes = (sum(t.nbytes for t in {id(t): t for t in constants(m)}.values()) for m in (a, b))
    return Diff(
        kept=len(nodes_b) - len(entries),
        entries=_in_order(nodes_a, nodes_b, removed, entries, states),
        operators={
            op: (n, counts_b[op]) for op in sorted(counts_a | counts_b) if (n := counts_a[op]) != counts_b[op]
        },
        weights=comparison.weights(a, b),
        weight_bytes=(next(sizes), next(sizes)),
        interface=_interface(a, b),
        states=states,
    )


def _nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in all_nodes(model) if not is_op(node, "Constant")]


def _entry(kind: Kind, node: ir.Node, details: Iterable[str]) -> Entry:
    return Entry(kind, place(node), label(node), origin.scope(node), tuple(details))


def _origins(nodes_a: list[ir.Node], nodes_b: list[ir.Node], pairs: Matching) -> dict[ir.Node, list[ir.Node]]:
    """Return for nodes of B those nodes of A that have no partner, and that B's node says it stands for."""
    gone = {node.name: node for node in nodes_a if node.name and node not in pairs.b_of}
    found = {}
    for node in nodes_b:
        if olds := [gone[name] for name in origin.origins(node) if name in gone]:
            found[node] = olds
    return found


def _went(new: ir.Node | None) -> list[str]:
    return [f"went into {label(new)} {place(new)}"] if new is not None else []


def _came(olds: list[ir.Node], node: ir.Node, verb: str) -> list[str]:
    if not olds:
        return []
    passes = node.metadata_props.get(origin.PASSES, "").replace("\n", ", ")
    return [
        f"{verb} {', '.join(f'{label(old)} {place(old)}' for old in olds)}{f' ({passes})' if passes else ''}"
    ]


def _in_order(
    nodes_a: list[ir.Node],
    nodes_b: list[ir.Node],
    removed: dict[ir.Node, Entry],
    entries: list[Entry],
    states: dict[ir.Node, Kind],
) -> list[Entry]:
    """Put removed nodes before the others of their scope; scopes in the order in which A, then B come to them."""
    scopes = {name: i for i, name in enumerate(dict.fromkeys(map(origin.scope, [*nodes_a, *nodes_b])))}
    return sorted([*removed.values(), *entries], key=lambda entry: scopes[entry.scope])


def _interface(a: ir.Model, b: ir.Model) -> list[str]:
    found = []
    for what in ("inputs", "outputs"):
        was, now = ({v.name or "?": typed(v) for v in getattr(m.graph, what)} for m in (a, b))
        found += list(_changes(what[:-1], was, now))
        if not found and list(was) != list(now):
            found.append(f"{what}: {', '.join(was)} → {', '.join(now)}")
    opsets = ({domain or "ai.onnx": str(v) for domain, v in m.opset_imports.items()} for m in (a, b))
    found += _changes("opset", next(opsets), next(opsets))
    if a.ir_version != b.ir_version:
        found.append(f"~ IR version: {a.ir_version} → {b.ir_version}")
    return found


def _changes(what: str, was: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    for name in dict.fromkeys((*was, *now)):
        if name not in now:
            yield f"- {what} {name}: {was[name]}"
        elif name not in was:
            yield f"+ {what} {name}: {now[name]}"
        elif was[name] != now[name]:
            yield f"~ {what} {name}: {was[name]} → {now[name]}"
