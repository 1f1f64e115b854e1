"""DOT and pictures of a model: clusters by module scope, differences coloured, large graphs collapsed."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from . import origin
from .analysis.cost import label
from .differences import typed
from .errors import UnavailableError, UsageError
from .interfaces import place
from .query import constant_tensor, is_op, nodes_in, subgraphs
from .structure import Diff, Kind

LIMIT = 150
"""A picture has at most so many boxes, unless asked for more: scopes are collapsed until it has."""
CHAIN = 6
"""So many nodes of a chain that is one box are named in it."""
MANY = 4
"""A value that goes to more boxes is drawn pale, or it would hide everything else."""

FAMILIES = {
    "matrix products": (
        "#cfe2f3",
        "Conv ConvTranspose ConvInteger QLinearConv Gemm MatMul MatMulInteger QLinearMatMul Einsum Attention LSTM GRU",
    ),
    "activations": (
        "#fff2cc",
        "Relu LeakyRelu PRelu Sigmoid Tanh Gelu Erf HardSwish HardSigmoid Clip Elu Softplus Mish Softmax LogSoftmax",
    ),
    "normalization": (
        "#e6d9f2",
        "BatchNormalization LayerNormalization RMSNormalization InstanceNormalization GroupNormalization",
    ),
    "pools, sums": (
        "#d9ead3",
        "MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean ReduceSum ReduceMax ReduceMin ArgMax TopK",
    ),
    "types": ("#fce5cd", "QuantizeLinear DequantizeLinear DynamicQuantizeLinear Cast CastLike"),
    "shapes": (
        "#eeeeee",
        "Reshape Transpose Flatten Squeeze Unsqueeze Concat Split Slice Gather Shape Expand Identity Pad Tile Range",
    ),
}
FILL = {name: color for color, names in FAMILIES.values() for name in names.split()}
BORDER: dict[Kind, str] = {"added": "#1a7f37", "changed": "#bf8700", "removed": "#cf222e"}
TINT: dict[Kind, str] = {"added": "#b7ebc3", "changed": "#ffe08a", "removed": "#ffd0d0"}


@dataclass
class _Box:
    """What is drawn as one: a node, or all nodes of a collapsed scope."""

    id: str
    scope: tuple[str, ...]
    nodes: list[ir.Node] = field(default_factory=list)
    collapsed: bool = False


def to_dot(
    model: ir.Model,
    *,
    changed: Mapping[ir.Node, Kind] | Diff | None = None,
    limit: int = LIMIT,
    depth: int | None = None,
) -> str:
    """Return ``model`` as DOT, boxes in nested clusters by module scope; weights stand in their readers' boxes.

    Args:
        model: the main graph is drawn; a node with subgraphs is one box.
        changed: nodes to colour, or the difference from another model: what was removed is noted in its scope.
        limit: draw at most so many boxes: collapse scopes until it fits, and leave out what is more then.
        depth: collapse scopes at this depth instead.
    """
    states = changed.states if isinstance(changed, Diff) else changed or {}
    nodes = [node for node in model.graph if not is_op(node, "Constant")]
    boxes, note = _boxes(nodes, limit, depth)
    shown = {inner: box for box in boxes for node in box.nodes for inner in _within(node)}
    ghosts = _ghosts(changed, boxes) if isinstance(changed, Diff) else {}
    lines = [
        "digraph model {",
        '  graph [fontname="Helvetica" fontsize=11 nodesep=0.25 ranksep=0.35 labeljust=l style=rounded color=gray60];',
        '  node [fontname="Helvetica" fontsize=10 shape=box style="rounded,filled" fillcolor=white color="#8a8a8a"];',
        '  edge [fontname="Helvetica" fontsize=8 color="#6e6e6e" fontcolor="#6e6e6e" arrowsize=0.6];',
    ]
    lines += _clusters(boxes, states, ghosts)
    lines += _ends(model, shown)
    lines += _edges(boxes, shown)
    lines += _legend(nodes, states, ghosts, note)
    return "\n".join([*lines, "}"]) + "\n"


def _boxes(nodes: list[ir.Node], limit: int, depth: int | None) -> tuple[list[_Box], str]:
    """Collapse scopes at the greatest depth that gives no more than ``limit`` boxes; say what is not drawn one by one.

    Where that is not enough, chains become one box; where that is not enough either, the end is left out.
    """
    scopes = {node: _scope(node) for node in nodes}
    if depth is None:
        deepest = max(map(len, scopes.values()), default=0)
        depths = range(deepest + 1, 0, -1)
        depth = next((d for d in depths if len(set(_keys(scopes, d).values())) <= limit), 1)
    keys = _keys(scopes, depth)
    notes = [f"{len(nodes)} nodes"]
    if any(isinstance(key, tuple) for key in keys.values()):
        notes.append(f"scopes are collapsed at depth {depth}")
    if len(set(keys.values())) > limit:
        keys = _chains(keys)
        notes.append("chains are one box")
    groups: dict[object, list[ir.Node]] = defaultdict(list)
    for node, key in keys.items():
        groups[key].append(node)
    boxes = []
    for i, (key, group) in enumerate(groups.items()):
        collapsed = isinstance(key, tuple) and len(group) > 1
        scope = scopes[group[0]]
        boxes.append(_Box(f"n{i}", scope[: depth - 1] if collapsed else scope, group, collapsed))
    if len(boxes) > limit:
        notes.append(f"the first {limit} of {len(boxes)} boxes are drawn")
    return boxes[:limit], "; ".join(notes) if len(boxes) > limit or len(boxes) < len(nodes) else ""


def _scope(node: ir.Node) -> tuple[str, ...]:
    scope = origin.scope(node)
    return tuple(scope.split(".")) if scope else ()


def _keys(scopes: Mapping[ir.Node, tuple[str, ...]], depth: int) -> dict[ir.Node, object]:
    """Return for each node what it is drawn as: itself, or the scope that is collapsed."""
    return {node: scope[:depth] if len(scope) >= depth else node for node, scope in scopes.items()}


def _chains(keys: Mapping[ir.Node, object]) -> dict[ir.Node, object]:
    """Draw a node as what its producer is drawn as, where it alone reads that and reads nothing else that is drawn."""
    found = dict(keys)
    for node, key in keys.items():
        makers = dict.fromkeys(p for v in node.inputs if v is not None and (p := v.producer()) in keys)
        maker = next(iter(makers), None)
        if key is not node or len(makers) != 1 or maker is None or keys[maker] is not maker:
            continue
        if {use.node for value in maker.outputs for use in value.uses()} == {node}:
            found[node] = found[maker]
    return found


def _ghosts(changed: Diff, boxes: list[_Box]) -> dict[tuple[str, ...], str]:
    """Return a line for each drawn scope that lost nodes: which."""
    drawn = {box.scope[:i] for box in boxes for i in range(len(box.scope) + 1)}
    gone: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for entry in changed.of("removed"):
        scope = tuple(entry.scope.split(".")) if entry.scope else ()
        while scope not in drawn and scope:
            scope = scope[:-1]
        gone[scope][entry.op_type] += 1
    return {scope: _counts(counter) for scope, counter in gone.items()}


def _counts(counter: Counter[str], most: int = 4) -> str:
    named = [f"{op} ×{n}" if n > 1 else op for op, n in counter.most_common(most)]
    rest = sum(counter.values()) - sum(n for _, n in counter.most_common(most))
    return ", ".join(named) + (f", {rest} more" if rest else "")


def _clusters(
    boxes: list[_Box], states: Mapping[ir.Node, Kind], ghosts: Mapping[tuple[str, ...], str]
) -> Iterator[str]:
    """Yield the boxes in their clusters; a scope with one box is a line in that box."""
    inside: dict[tuple[str, ...], list[_Box]] = defaultdict(list)
    children: dict[tuple[str, ...], dict[tuple[str, ...], None]] = defaultdict(dict)
    for box in boxes:
        inside[box.scope].append(box)
    for scope in [*inside, *ghosts]:
        for i in range(len(scope)):
            children[scope[:i]][scope[: i + 1]] = None
    number = itertools.count()

    def cluster(scope: tuple[str, ...], indent: str) -> Iterator[str]:
        for box in inside.get(scope, ()):
            yield indent + _draw(box, states)
        if scope in ghosts:
            yield (
                f'{indent}g{next(number)} [label={_quote(f"removed: {ghosts[scope]}")} style="rounded,dashed,filled" '
                f'fillcolor="{TINT["removed"]}" color="{BORDER["removed"]}" fontsize=9];'
            )
        for child in children.get(scope, ()):
            if len(inside.get(child, ())) == 1 and child not in ghosts and child not in children:
                yield indent + _draw(inside[child][0], states, ".".join(child))
                continue
            yield f"{indent}subgraph cluster_{next(number)} {{"
            yield f"{indent}  label={_quote('.'.join(child))};"
            yield from cluster(child, indent + "  ")
            yield f"{indent}}}"

    yield from cluster((), "  ")


def _draw(box: _Box, states: Mapping[ir.Node, Kind], scope: str = "") -> str:
    kinds = {states[node] for node in box.nodes if node in states}
    kind = kinds.pop() if len(kinds) == 1 else "changed" if kinds else None
    fill = "#f6f6f6"
    if box.collapsed:
        touched = sum(node in states for node in box.nodes)
        counts = _counts(Counter(node.op_type for node in box.nodes))
        size = f"{len(box.nodes)} nodes{f', {touched} changed' if touched else ''}"
        text = f"{'.'.join(_scope(box.nodes[0])[: len(box.scope) + 1])}\n{size}\n{counts}"
        look = ' shape=box3d style="filled"'
    else:
        text = "\n".join(_title(node) for node in box.nodes[:CHAIN])
        text += f"\n… {len(box.nodes) - CHAIN} more" if len(box.nodes) > CHAIN else ""
        text += f"\n{scope}" if scope else ""
        look = ""
        if not states:
            colors = [FILL[node.op_type] for node in box.nodes if node.op_type in FILL]
            fill = min(colors, key=[color for color, _ in FAMILIES.values()].index, default="#ffffff")
    if kind is not None:
        look += f' color="{BORDER[kind]}" penwidth=2.5'
        fill = TINT[kind]
    names = ", ".join(place(node) for node in box.nodes[:20])
    return f'{box.id} [label={_quote(text)} tooltip={_quote(names)} fillcolor="{fill}"{look}];'


def _title(node: ir.Node) -> str:
    weights = [_dims(v) for v in node.inputs if constant_tensor(v) is not None and v is not None]
    shapes = [text for text in weights if text][:2]
    extra = f"\n{', '.join(shapes)}" if shapes else ""
    return f"{label(node)}{extra}"


def _dims(value: ir.Value) -> str:
    tensor = constant_tensor(value)
    if tensor is None or tensor.size < 2:
        return ""
    return "×".join(map(str, tensor.shape)) if tensor.size > 8 else str(tensor.numpy().tolist())


def _ends(model: ir.Model, shown: Mapping[ir.Node, _Box]) -> Iterator[str]:
    """Yield the inputs and outputs of the graph, and what connects them."""
    for i, value in enumerate(model.graph.inputs):
        readers = dict.fromkeys(shown[n].id for n in value.consumers() if n in shown)
        if readers or not value.is_initializer():
            yield f'  i{i} [label={_quote(_named(value))} shape=cds style=filled fillcolor="#dde7ee"];'
            yield from (f"  i{i} -> {box};" for box in readers)
    for i, value in enumerate(model.graph.outputs):
        producer = value.producer()
        yield f'  o{i} [label={_quote(_named(value))} shape=cds style=filled fillcolor="#dde7ee"];'
        if producer in shown:
            assert producer is not None
            yield f"  {shown[producer].id} -> o{i};"


def _edges(boxes: list[_Box], shown: Mapping[ir.Node, _Box]) -> Iterator[str]:
    """Yield an edge between boxes that pass values, with the shape where it is one; what goes to many boxes is pale."""
    drawn: dict[tuple[str, str], list[ir.Value]] = defaultdict(list)
    targets: dict[ir.Value, set[str]] = defaultdict(set)
    for box in boxes:
        for value in (v for node in box.nodes for v in node.outputs):
            for reader in value.consumers():
                target = shown.get(reader)
                if target is not None and target is not box:
                    drawn[box.id, target.id].append(value)
                    targets[value].add(target.id)
    for (start, end), values in drawn.items():
        labels = list(dict.fromkeys(text for text in map(_edge_label, values) if text))
        look = f"label={_quote(labels[0])}" if len(labels) == 1 else ""
        if all(len(targets[value]) > MANY for value in values):
            look = 'color="#d0d0d0" style=dashed arrowsize=0.4'
        yield f"  {start} -> {end}{f' [{look}]' if look else ''};"


def _named(value: ir.Value) -> str:
    return f"{value.name}\n{typed(value)}"


def _within(node: ir.Node) -> Iterator[ir.Node]:
    """Yield ``node`` and the nodes of its subgraphs."""
    yield node
    for graph in subgraphs(node):
        yield from nodes_in(graph)


def _edge_label(value: ir.Value) -> str:
    if value.shape is None:
        return ""
    return "×".join(str(d) if isinstance(d, int) else d.value or "?" for d in value.shape)


def _legend(
    nodes: list[ir.Node], states: Mapping[ir.Node, Kind], ghosts: Collection[object], note: str
) -> Iterator[str]:
    """Yield a box that says what the colours mean, those that occur."""
    used = {FILL[node.op_type] for node in nodes if node.op_type in FILL and not states}
    rows = [(color, text) for text, (color, _) in FAMILIES.items() if color in used]
    kinds = {kind for kind in states.values() if kind != "removed"} | ({"removed"} if ghosts else set())
    rows += [(color, kind) for kind, color in TINT.items() if kind in kinds]
    cells = "".join(
        f'<tr><td bgcolor="{color}" width="18"></td><td align="left">{text}</td></tr>' for color, text in rows
    )
    cells += f'<tr><td colspan="2" align="left">{_escape(note)}</td></tr>' if note else ""
    if cells:
        yield (
            '  legend [shape=plain style="" fontsize=9 label=<<table border="1" color="#bbbbbb" cellborder="0" '
            f'cellspacing="2">{cells}</table>>];'
        )


def _quote(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def draw(dot: str, path: Path) -> None:
    """Write a picture of ``dot`` to ``path``, in the format that its name ends in.

    Raises:
        UnavailableError: Graphviz is not installed.
        UsageError: the file cannot be written.
    """
    program = shutil.which("dot")
    if program is None:
        raise UnavailableError(
            f"{path}: pictures need Graphviz, whose program dot is not on PATH; install it "
            "(apt install graphviz, brew install graphviz), or write DOT text with --dot"
        )
    kind = path.suffix.lstrip(".") or "svg"
    done = subprocess.run([program, f"-T{kind}"], input=dot.encode(), capture_output=True, check=False)
    if done.returncode != 0:
        raise UsageError(
            f"{path}: Graphviz refused: {done.stderr.decode(errors='replace').strip()}; check the format"
        )
    write(path, done.stdout)


def write(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all.

    Raises:
        UsageError: the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written: {error.strerror}; choose another file") from error
