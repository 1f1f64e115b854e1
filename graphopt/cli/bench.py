"""``graphopt bench``: time models side by side, and the nodes of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import JsonFile, table, write_json
from .progress import progress

if TYPE_CHECKING:
    from ..measuring import NodeShare

TOP_NODES = 15


def bench(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="A [B …]", help="Models: .onnx, .pt2 or package.module:callable; A counts as 1."
        ),
    ],
    target: Annotated[str, typer.Option(metavar="NAME", help="See `graphopt backends`.")] = "onnxruntime:cpu",
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Inputs to run on; else drawn.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads within one operator. [default: one a core]")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time to spend.")] = 10.0,
    per_node: Annotated[
        bool, typer.Option("--per-node", help="Show the nodes that take longest, too.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of turns and of drawn inputs.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Time models in turns; say which is faster.

    Each has a median, its spread and its ratio to the first with a 95 % interval; a difference that is not sure is
    called none.
    """
    from .. import measuring, samples

    feeds = samples.load(inputs) if inputs is not None else None
    options: dict[str, Any] = {"target": target, "threads": threads, "seed": seed}
    with progress() as show:
        found = measuring.measure(sources, feeds, seconds=seconds, progress=show, **options)
        nodes = measuring.profile(sources, feeds, progress=show, **options) if per_node else {}
    data = found.to_json() | (
        {"nodes": {k: [n.to_json() for n in v] for k, v in nodes.items()}} if nodes else {}
    )
    if write_json(data, json_file):
        return
    table(None, found.COLUMNS, found.rows(), right=(1, 2, 3))
    facts = ", ".join(map(" ".join, found.facts.items()))
    fed = ", ".join(f"{name} {kind}" for name, kind in found.inputs.items())
    print(
        f"\n{found.target} ({facts}); {found.rounds} rounds in {found.seconds:.1f} s on {fed or 'no inputs'}"
    )
    for title, shares in nodes.items():
        _show_nodes(title, shares)


def _show_nodes(title: str, shares: list[NodeShare]) -> None:
    top = sorted(shares, key=lambda node: -node.milliseconds)[:TOP_NODES]
    print()
    rows = [
        (f"{n.milliseconds:.3f}", f"{100 * n.share:.1f} %", n.op_type, n.node, n.scope, n.provider)
        for n in top
    ]
    apart = len({node.provider for node in shares}) > 1
    columns = ("ms", "share", "operator", "node", "from", "provider")
    table(title, columns[: 5 + apart], [row[: 5 + apart] for row in rows], right=(0, 1))
    rest = shares[len(top) :] and sum(node.milliseconds for node in shares) - sum(n.milliseconds for n in top)
    if rest:
        print(f"and {len(shares) - len(top)} more nodes that take {rest:.3f} ms")
