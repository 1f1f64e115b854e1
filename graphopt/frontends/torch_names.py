"""Names for what torch's exporter makes: inputs, outputs, dynamic dimensions, and where each node comes from."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ..errors import ModelError, UsageError
from ..origin import FX_NODE, SCOPE, SOURCE

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
FOREIGN = ("pkg.torch.", "namespace")
"""How the keys of the exporter's own notes begin: the same facts at ten times the length."""
NOWHERE = "_empty_nn_module_stack_from_metadata_hook"
"""The scope that torch gives to nodes of its own, which compute sizes."""


# --- nodes ------------------------------------------------------------------------------------------------------------


def adopt_notes(graph: ir.Graph) -> None:
    """Turn the exporter's notes on nodes into graphopt's, and remove the others that it leaves behind."""
    _drop(graph.metadata_props)
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        _drop(value.metadata_props)
    for node in graph:
        notes = node.metadata_props
        *scopes, fx_node = _names(notes.get("pkg.torch.onnx.name_scopes", "['']"))
        scope = scopes[-1] if scopes else ""
        source = _source(notes.get("pkg.torch.onnx.stack_trace", ""))
        _drop(notes)
        if scope == NOWHERE:
            scope = source = ""
        facts = {SCOPE: scope, SOURCE: source, FX_NODE: fx_node}
        notes.update({key: text for key, text in facts.items() if text})


def _drop(notes: dict[str, str]) -> None:
    for key in [key for key in notes if key.startswith(FOREIGN)]:
        del notes[key]


@functools.lru_cache(256)
def _names(text: str) -> list[str]:
    return list(ast.literal_eval(text))


@functools.lru_cache(256)
def _source(trace: str) -> str:
    """Return the innermost line outside torch itself, as ``model.py:17 in forward``."""
    frames = [match.groupdict() for match in FRAME.finditer(trace)]
    own = [frame for frame in frames if not _file(frame["file"]).startswith("torch/")]
    if not frames:
        return ""
    frame = (own or frames)[-1]
    return f"{_file(frame['file'])}:{frame['line']} in {frame['function']}"


@functools.cache
def _file(path: str) -> str:
    """Return ``path`` as it is seen from where Python imports it: the same on every machine."""
    roots = [root for root in map(Path, sys.path) if root.is_absolute() and Path(path).is_relative_to(root)]
    nearest = max(roots, key=lambda root: len(root.parts), default=None)
    return Path(path).relative_to(nearest).as_posix() if nearest is not None else Path(path).name


# --- dimensions -------------------------------------------------------------------------------------------------------


def rename_dimensions(graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Replace torch's symbols by the user's names in every shape of ``graph``."""
    if not names:
        return
    symbol = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")

    @functools.cache
    def renamed(text: str) -> str:
        return symbol.sub(lambda match: names[match[0]], text)

    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None and not value.shape.is_static():
            value.shape = ir.Shape(
                [d if isinstance(d, int) or d.value is None else renamed(d.value) for d in value.shape]
            )


# --- inputs and outputs -----------------------------------------------------------------------------------------------


def outputs(program: ExportedProgram) -> list[str]:
    """Return a name for each output that is a tensor: its path in what the module returns.

    Raises:
        ModelError: an output is a constant.
    """
    from torch.utils import _pytree as pytree

    specs = [spec for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    spec = program.call_spec.out_spec
    tree = (
        pytree.tree_unflatten(list(range(len(specs))), spec) if spec is not None else list(range(len(specs)))
    )
    paths = dict(_paths(tree, ()))
    names = []
    for i, output in enumerate(specs):
        path = paths.get(i, (i,))
        name = ".".join(map(str, path if path and isinstance(path[0], str) else ("output", *path)))
        constant = (
            getattr(output.arg, "value", None) if type(output.arg).__name__ == "ConstantArgument" else None
        )
        if constant is not None:
            raise ModelError(f"program: output {name!r} is the constant {constant!r}; return tensors only")
        if type(output.arg).__name__ != "ConstantArgument":
            names.append(name)
    return names


def _paths(tree: Any, path: tuple[str | int, ...]) -> Iterator[tuple[int, tuple[str | int, ...]]]:
    """Yield (index, path) for each leaf."""
    if isinstance(tree, Mapping):
        for key, inner in tree.items():
            yield from _paths(inner, (*path, str(key)))
    elif isinstance(tree, (tuple, list)):
        keys = getattr(tree, "_fields", range(len(tree)))
        for key, inner in zip(keys, tree, strict=True):
            yield from _paths(inner, (*path, key))
    elif isinstance(tree, int):
        yield tree, path


def name_inputs(model: ir.Model, names: Sequence[str] | None) -> None:
    """Name the inputs of the graph."""
    if names is None:
        return
    values = model.graph.inputs
    _check(names, len(values), "input")
    _free(model.graph, set(names), keep=values)
    for value, name in zip(values, names, strict=True):
        value.name = name


def name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Name the outputs of the graph; one that is an input, a weight or another output becomes a copy of it."""
    graph = model.graph
    _check(names, len(graph.outputs), "output")
    kept = {value.name for value in graph.inputs} | set(graph.initializers)
    names = [f"output.{name}" if name in kept else name for name in names]
    for i, value in enumerate(graph.outputs):
        if value.producer() is None or value in graph.outputs[:i]:
            copy = ir.node("Identity", [value], name=f"copy_output_{i}")
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            graph.outputs[i] = copy.outputs[0]
    _free(graph, set(names), keep=graph.outputs)
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _check(names: Sequence[str], count: int, what: str) -> None:
    if len(names) != count or len(set(names)) != count:
        raise UsageError(
            f"{what}_names: the graph has {count} {what}s, got {list(names)!r}; name each of them once"
        )


def _free(graph: ir.Graph, names: set[str], keep: Sequence[ir.Value]) -> None:
    """Rename the values, other than ``keep``, that have one of ``names``."""
    for value in [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]:
        if value.name in names and not any(value is kept for kept in keep):
            value.name = f"{value.name}.inner"
