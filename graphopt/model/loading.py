"""Load models: their weights are mapped, not read.

A model is parsed without its large tensors, each of which becomes a :class:`~graphopt.model.mapped.MappedTensor`:
those in external files, and those inside the ``.onnx`` file itself.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from ..errors import ModelError
from ..invariants import problems
from ..query import all_graphs, subgraphs
from . import intake, protobuf
from .cloning import Swap, collector_paused
from .data import Locate
from .mapped import MappedFile, MappedTensor, Span

BREAKS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError)
"""What ``onnx_ir`` raises over malformed models, its ``SerdeError`` among them."""


def load(path: str | Path) -> ir.Model:
    """Load the ONNX model at ``path``; its weights stay in the file, mapped.

    Raises:
        ModelError: it cannot be read, is malformed, or refers to files outside its folder.
    """
    path = Path(path)
    with collector_paused():
        files = _Files(path)
        if not files.own.size:
            raise ModelError(f"{path}: it is empty; export the model again")
        try:
            skeleton = protobuf.cut(files.own.view, files.own.release)
            proto = onnx.ModelProto.FromString(skeleton)
        except (protobuf.Malformed, DecodeError) as error:
            raise ModelError(_no_model(path, files.own, str(error).rpartition(": ")[2].lower())) from None
        return _model(proto, str(path), files.locate, files.tensor)


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Return ``proto`` as a model of its own.

    Raises:
        ModelError: it is malformed, or refers to files, which it has no folder for.
    """

    def locate(location: str, offset: int, length: int) -> None:
        raise ValueError(
            f"lies in {location!r}, and a ModelProto has no folder; give the path, or call "
            f"onnx.load_external_data_for_model before"
        )

    own = onnx.ModelProto()
    own.CopyFrom(proto)
    with collector_paused():
        return _model(own, "ModelProto", locate, lambda tensor: tensor)


def _model(
    proto: onnx.ModelProto,
    name: str,
    locate: Locate,
    adopt: Swap,
) -> ir.Model:
    try:
        hidden = intake.prepare(proto, name, locate)
        model = ir.from_proto(proto)
    except BREAKS as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{name}: it is malformed: {root(error)}; export the model again") from error
    for graph in all_graphs(model):
        _adopt_tensors(graph, adopt)
        if hidden:
            _stash_types(graph)
            model.meta[intake.HIDDEN_TYPE] = True
    if problems(model):
        _repair(model)
        for problem in problems(model):
            raise ModelError(f"{name}: {problem}; the model is damaged, or was never valid")
    return model


def _adopt_tensors(graph: ir.Graph, adopt: Swap) -> None:
    """Put what ``adopt`` makes of each tensor in its place; an initializer has the type and shape of its data."""
    for value in graph.initializers.values():
        assert value.const_value is not None
        tensor = value.const_value = adopt(value.const_value)
        if value.is_graph_input():
            continue
        if value.dtype != tensor.dtype:
            value.type = ir.TensorType(tensor.dtype)
        if value.shape != tensor.shape:
            value.shape = ir.Shape(tensor.shape.numpy(), frozen=True)
    for node in graph:
        for name, attr in node.attributes.items():
            if attr.type == ir.AttributeType.TENSOR and not attr.is_ref():
                if isinstance(attr.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, adopt(attr.value), attr.doc_string)
            elif attr.type == ir.AttributeType.TENSORS and not attr.is_ref():
                node.attributes[name] = ir.AttrTensors(
                    name, [adopt(tensor) for tensor in attr.as_tensors()], attr.doc_string
                )


def _repair(model: ir.Model) -> None:
    """Sort what is not in order, and rename what hides a value of the graph around it: both are found in the wild."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        try:
            graph.sort()
        except ValueError:
            continue  # a cycle, which is reported
        taken = {value.name for inner in graph.subgraphs() for value in _values(inner)}
        _unshadow(graph, frozenset(), taken)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def _unshadow(graph: ir.Graph, outer: frozenset[str | None], taken: set[str | None]) -> None:
    """Rename each value of ``graph`` and the graphs in it that has a name of ``outer``, the values around it."""
    for value in list(_values(graph)):
        if value.name in outer:
            value.name = next(n for i in itertools.count(1) if (n := f"{value.name}_{i}") not in taken)
            taken.add(value.name)
    names = outer | {value.name for value in _values(graph)}
    for node in graph:
        for inner in subgraphs(node):
            _unshadow(inner, names, taken)


def _stash_types(graph: ir.Graph) -> None:
    for value in {*_values(graph), *graph.outputs}:
        text = value.type.denotation if value.type is not None else None
        if text and text.startswith(intake.HIDDEN_TYPE):
            value.meta[intake.HIDDEN_TYPE] = bytes.fromhex(text.removeprefix(intake.HIDDEN_TYPE))
            value.type = None


def _no_model(path: Path, file: MappedFile, reason: str) -> str:
    """Say what a file is that is no model, where its first bytes tell."""
    for start, what in _NO_MODELS.items():
        if file.view[: len(start)] == start:
            return f"{path}: it is {what}"
    return f"{path}: it is no ONNX model, or cut short: {reason}; export or download it again"


_NO_MODELS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the model; run `git lfs pull`",
    b"PK\x03\x04": "a zip archive, perhaps of torch; export the model to ONNX",
    b"<!DOCTYPE": "a web page, not a model; download the file itself",
    b"<html": "a web page, not a model; download the file itself",
    b"\x89PNG": "a PNG image, not a model",
}


class _Files:
    """The files that hold a model's weights: its own, and those in its folder that it refers to."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        try:
            self.own = MappedFile(path)
        except FileNotFoundError:
            raise missing(path) from None
        except OSError as error:
            raise ModelError(f"{path}: it cannot be read: {why(error)}; give the file of a model") from None
        self.others: dict[str, MappedFile] = {}

    def locate(self, location: str, offset: int, length: int) -> None:
        file = self.own if location in _OWN else self.others.get(location) or self._other(location)
        if length and offset + length > file.size:
            raise ValueError(
                f"needs {length} bytes at {offset} of {file.path}, which has {file.size}; the file is cut short"
            )

    def _other(self, location: str) -> MappedFile:
        """Map an external file; it must lie in the model's folder, also behind symbolic links."""
        parts = PurePosixPath(location.replace("\\", "/"))
        if not location or "\0" in location:
            raise ValueError(f"has external data in a file named {location!r}; the model is damaged")
        outside = parts.is_absolute() or ".." in parts.parts or Path(location).is_absolute()
        path, folder = self.folder / location, os.path.realpath(self.folder)
        if outside or os.path.commonpath([folder, os.path.realpath(path)]) != folder:
            raise ValueError(
                f"has external data in {location!r}, outside the model's folder; move the file into the folder"
            )
        try:
            file = self.others[location] = MappedFile(path)
        except OSError as error:
            raise ValueError(
                f"has external data in {path}, which cannot be read: {why(error)}; put the file beside the model"
            ) from None
        return file

    def tensor(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """Return an external tensor as a mapped one; every other as it is."""
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        location = str(tensor.location)
        file = self.own if location in _OWN else self.others[location]
        offset = (tensor.offset or 0) if tensor.nbytes else 0
        return MappedTensor(
            Span(file, offset, tensor.nbytes),
            tensor.dtype,
            tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props) or None,
        )


_OWN = frozenset(protobuf.ELSEWHERE.values())


def missing(path: Path) -> ModelError:
    """Return the error for a file that is not there; it names the files nearby that have a similar name."""
    with contextlib.suppress(OSError):
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3)
        if near:
            return ModelError(f"{path}: no such file; did you mean {' or '.join(map(repr, near))}?")
    return ModelError(f"{path}: no such file; check the path")


def root(error: BaseException) -> str:
    """Return the innermost reason of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


def why(error: OSError) -> str:
    """Return what the system says, as the end of a sentence."""
    return (error.strerror or str(error)).lower()
