"""``graphopt show``: what is in a model, as tables or as a picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .output import JsonFile, table, writable, write_json
from .progress import progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..analysis.cost import Cost
    from ..structure import Diff

OPERATORS = 24
"""So many operators have a row of their own."""
WEIGHTS = 6
"""So many of the largest weights are listed."""


def show(
    source: Annotated[str, typer.Argument(metavar="MODEL", help=".onnx, .pt2 or package.module:callable")],
    other: Annotated[
        str | None,
        typer.Argument(metavar="B", help="Another model; pictures show it, coloured where it differs."),
    ] = None,
    nodes: Annotated[bool, typer.Option("--nodes", help="List every node.")] = False,
    dim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SIZE", help="Size of a dynamic dimension, for the MACs. [default: 1]"),
    ] = None,
    dot: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=writable, help="Write the graph as DOT.")
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=writable, help="Draw the graph by Graphviz; .png and .pdf work too."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="Boxes in a picture, more are collapsed by scope.")
    ] = 150,
    json_file: JsonFile = None,
) -> None:
    """Show what is in a model, or draw it.

    Its operators, parameters, multiply-accumulates, bytes and dimensions; with B, how B differs.
    """
    from .. import frontends, structure
    from ..analysis.cost import cost

    with progress() as report:
        report("reading", 0, 0)
        model = frontends.read(source)
        if other is not None:
            second = frontends.read(other)
            difference = structure.diff(model, second)
            _draw(second, dot, svg, limit, difference)
            if not write_json(difference.to_json(), json_file):
                print(difference.text(), end="")
            return
        spent = cost(model, _sizes(dim or []))
        _draw(model, dot, svg, limit, None)
    found = facts(model, spent)
    rows = _rows(model, spent) if nodes or json_file is not None else []
    if write_json({"source": source, **found, "nodes": rows}, json_file):
        return
    _print(source, found)
    if nodes:
        print()
        table(
            None,
            ["node", "operator", "MACs", "parameters", "output", "scope"],
            [
                (*row[:2], _count(row[2] or None), _count(row[3] or None), _bytes(row[4] or None), row[5])
                for row in (list(row.values()) for row in rows)
            ],
            right=(2, 3, 4),
        )


def _sizes(dims: list[str]) -> dict[str, int]:
    found = {}
    for text in dims:
        name, _, size = text.rpartition("=")
        if not name or not size.isdecimal():
            raise UsageError(f"--dim {text}: expected NAME=SIZE, as batch=8")
        found[name] = int(size)
    return found


def _draw(model: ir.Model, dot: Path | None, svg: Path | None, limit: int, changed: Diff | None) -> None:
    if dot is None and svg is None:
        return
    from .. import dot as pictures

    text = pictures.to_dot(model, changed=changed, limit=limit)
    if dot is not None:
        pictures.write(dot, text.encode())
    if svg is not None:
        pictures.draw(text, svg)


def facts(model: ir.Model, spent: Cost) -> dict[str, Any]:
    """Return what there is to know of a model, as plain data."""
    from ..analysis.cost import constants, parameters
    from ..differences import typed

    held = {id(tensor): tensor for tensor in constants(model)}.values()
    by_type: Counter[str] = Counter()
    for tensor in held:
        by_type[tensor.dtype.name.lower()] += tensor.nbytes
    largest = sorted(held, key=lambda tensor: -tensor.nbytes)[:WEIGHTS]
    values = (*model.graph.inputs, *model.graph.outputs)
    open_dims = dict.fromkeys(
        str(d.value or "?") for v in values for d in v.shape or () if not isinstance(d, int)
    )
    return {
        "ir_version": model.ir_version,
        "opsets": dict(
            sorted((domain or "ai.onnx", version) for domain, version in model.opset_imports.items())
        ),
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "metadata": dict(model.metadata_props),
        "inputs": {v.name: typed(v) for v in model.graph.inputs if not v.is_initializer()},
        "outputs": {v.name: typed(v) for v in model.graph.outputs},
        "dynamic_dimensions": list(open_dims),
        "functions": [f"{f.domain}::{f.name}" for f in model.functions.values()],
        "node_count": len(spent.nodes),
        "parameters": spent.parameters,
        "macs": spent.macs,
        "macs_unknown_at": spent.unknown,
        "assumed": spent.assumed,
        "bytes": spent.bytes,
        "bytes_by_type": dict(by_type.most_common()),
        "operators": {
            op: dict(zip(("nodes", "macs", "parameters", "bytes"), row, strict=True))
            for op, row in spent.by_operator().items()
        },
        "largest_weights": [
            {"name": t.name, "type": typed(t), "parameters": parameters(t), "bytes": t.nbytes}
            for t in largest
        ],
    }


def _rows(model: ir.Model, spent: Cost) -> list[dict[str, Any]]:
    from .. import origin
    from ..interfaces import place
    from ..query import all_nodes

    scopes = {place(node): origin.scope(node) for node in all_nodes(model)}
    return [
        {
            "place": n.place,
            "op_type": n.op_type,
            "macs": n.macs,
            "parameters": n.parameters,
            "output_bytes": n.output_bytes,
            "scope": scopes.get(n.place, ""),
        }
        for n in spent.nodes
    ]


def _print(source: str, found: dict[str, Any]) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in found["opsets"].items())
    types = ", ".join(f"{name} {_bytes(size)}" for name, size in found["bytes_by_type"].items())
    lines = [("model", f"{source}, IR version {found['ir_version']}, opset {opsets}")]
    lines += [("producer", found["producer"])] if found["producer"] else []
    lines += [("input", f"{name}  {text}") for name, text in found["inputs"].items()]
    lines += [("output", f"{name}  {text}") for name, text in found["outputs"].items()]
    lines += [("dynamic", ", ".join(found["dynamic_dimensions"]))] if found["dynamic_dimensions"] else []
    lines += [("functions", ", ".join(found["functions"]))] if found["functions"] else []
    lines += [
        ("nodes", f"{found['node_count']:,}"),
        ("parameters", _exact(found["parameters"])),
        ("MACs", _macs(found)),
        ("weights", f"{_bytes(found['bytes'])}{f'  ({types})' if types else ''}"),
    ]
    lines += [(key.removeprefix("graphopt."), _short(text)) for key, text in found["metadata"].items()]
    wide = max(len(key) for key, _ in lines) + 1
    for key, text in lines:
        print(f"{key:<{wide}} {text}")
    print()
    rows = list(found["operators"].items())
    table(
        None,
        ["operator", "nodes", "MACs", "%", "parameters", "bytes"],
        [_operator(op, row, found["macs"]) for op, row in _folded(rows)],
        right=(1, 2, 3, 4, 5),
    )
    weights = found["largest_weights"]
    if weights:
        print()
        table(
            None,
            ["largest weights", "type", "bytes", "%"],
            [(w["name"], w["type"], _bytes(w["bytes"]), _share(w["bytes"], found["bytes"])) for w in weights],
            right=(2, 3),
        )


def _macs(found: dict[str, Any]) -> str:
    text = _exact(found["macs"])
    if found["assumed"]:
        named = ", ".join(f"{name}={size}" for name, size in found["assumed"].items())
        many = f"{len(found['assumed'])} open dimensions = 1"
        text += f"  with {named if len(named) <= 40 else many} assumed"
    unknown = found["macs_unknown_at"]
    if unknown:
        names = ", ".join(unknown[:3]) + ", …" * (len(unknown) > 3)
        text += f"; unknown at {len(unknown)} node{'s' * (len(unknown) > 1)}: {names}"
    return text


def _folded(rows: list[tuple[str, dict[str, int]]]) -> list[tuple[str, dict[str, int]]]:
    """Put the operators behind the first ones into one row."""
    if len(rows) <= OPERATORS:
        return rows
    rest = rows[OPERATORS - 1 :]
    total = {key: sum(row[key] for _, row in rest) for key in rest[0][1]}
    return [*rows[: OPERATORS - 1], (f"{len(rest)} others", total)]


def _operator(op: str, row: dict[str, int], macs: int) -> tuple[str, ...]:
    shown = (_count(row["macs"] or None), _share(row["macs"], macs), _count(row["parameters"] or None))
    return (op, f"{row['nodes']:,}", *shown, _bytes(row["bytes"] or None))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if part and whole else ""


def _exact(number: int) -> str:
    return f"{_count(number)}  ({number:,})" if number >= 1000 else f"{number}"


def _count(number: int | None) -> str:
    """Return 4089184256 as 4.09 G, nothing for nothing."""
    return _scaled(number, ("", " k", " M", " G", " T", " P"))


def _bytes(number: int | None) -> str:
    return _scaled(number, (" B", " kB", " MB", " GB", " TB", " PB"))


def _scaled(number: int | None, units: tuple[str, ...]) -> str:
    if number is None:
        return ""
    size, unit = float(number), 0
    while size >= 999.5 and unit < len(units) - 1:
        size, unit = size / 1000, unit + 1
    return (
        f"{number}{units[0]}"
        if unit == 0
        else f"{size:.3g}{units[unit]}"
        if size < 100
        else f"{size:.0f}{units[unit]}"
    )


def _short(text: str, most: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}… ({len(text):,} characters)"
