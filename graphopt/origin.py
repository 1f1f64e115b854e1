"""Where a node comes from: the module scope, source line and FX node, or the node of the ONNX file.

Notes in ``node.metadata_props``, which are saved with the model. A frontend writes scope, source line and FX
node; a rewrite merges the notes of what it replaces into what it makes, and adds the pass's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .query import all_nodes

if TYPE_CHECKING:
    import onnx_ir as ir

ORIGIN = "graphopt.origin"
"""Names of the original ONNX nodes, one a line; a node without the note is its own origin."""
PASSES = "graphopt.passes"
"""Names of the passes that made the node, one a line."""
SCOPE = "graphopt.scope"
"""Path of the torch module, as ``features.0.conv``; innermost common one where several nodes were merged."""
SOURCE = "graphopt.source"
"""Lines of Python, one a line, as ``model.py:17 in forward``."""
FX_NODE = "graphopt.fx_node"
"""Names of the FX nodes, one a line."""

EXPORTED_SCOPES = "pkg.torch.onnx.name_scopes"
"""Note of torch's exporter: a Python list as text, the modules from the outermost on, then the FX node."""
EXPORTED_NAME = re.compile(r"'([^']*)'")
NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
"""What the exporter writes where an operator belongs to no module."""

MAX_NOTES = 16
"""A node that stands for more originals than this names so many of them."""


def merge(made: Sequence[ir.Node], replaced: Iterable[ir.Node], pass_name: str) -> None:
    """Give each node of ``made`` the merged origins of the ``replaced`` ones, and ``pass_name``."""
    if not made:
        return
    replaced = list(replaced)
    notes = {key: _union(replaced, key) for key in (SOURCE, FX_NODE)}
    notes[SCOPE] = _common([scope(node) for node in replaced])
    notes[ORIGIN] = _lines(name for node in replaced for name in origins(node))
    passes = _union(replaced, PASSES)
    notes[PASSES] = _lines([*passes.split("\n"), pass_name])
    kept = {key: text for key, text in notes.items() if text}
    for node in made:
        node.metadata_props.update(kept)


def origins(node: ir.Node) -> list[str]:
    """Return the names of the original nodes that ``node`` stands for: its own where nothing replaced it."""
    noted = node.metadata_props.get(ORIGIN)
    if noted is not None:
        return noted.split("\n")
    return [node.name] if node.name else []


def scope(node: ir.Node) -> str:
    """Return the path of the torch module that ``node`` came from, ``""`` where nothing tells.

    Taken from graphopt's own note, else from the exporter's, else from a name like ``/layer1/layer1.0/conv1/Conv``.
    """
    noted = node.metadata_props.get(SCOPE)
    if noted is not None:
        return noted
    exported = EXPORTED_NAME.findall(node.metadata_props.get(EXPORTED_SCOPES, ""))
    if exported:
        return exported[-2].replace(NO_MODULE, "") if len(exported) > 1 else ""
    path: list[str] = []
    for part in (node.name or "").split("/")[1:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def strip(model: ir.Model) -> None:
    """Remove all notes."""
    for node in all_nodes(model):
        for key in (ORIGIN, PASSES, SCOPE, SOURCE, FX_NODE):
            node.metadata_props.pop(key, None)


def _union(nodes: Iterable[ir.Node], key: str) -> str:
    return _lines(line for node in nodes for line in node.metadata_props.get(key, "").split("\n"))


def _lines(names: Iterable[str]) -> str:
    return "\n".join(list(dict.fromkeys(name for name in names if name))[:MAX_NOTES])


def _common(scopes: Sequence[str]) -> str:
    """Return the longest path that all ``scopes`` which are known begin with."""
    paths = [path.split(".") for path in dict.fromkeys(scopes) if path]
    if not paths:
        return ""
    shortest = min(paths, key=len)
    for i, part in enumerate(shortest):
        if any(path[i] != part for path in paths):
            return ".".join(shortest[:i])
    return ".".join(shortest)
