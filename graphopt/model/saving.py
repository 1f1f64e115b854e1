"""Save models: whole or not at all, one tensor at a time."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from ..errors import ModelError, UsageError
from ..query import all_graphs
from . import intake, pages, protobuf
from .cloning import Swap, clone, collector_paused
from .loading import BREAKS, root, why

LARGEST_FILE_BYTES = (1 << 31) - 1
"""What protobuf can read; a larger model has its weights in a file beside it."""

ALIGNED_BYTES = 1 << 16
"""External tensors from this size on start at a page, smaller ones at a multiple of 64 bytes."""

Progress = Callable[[int, int], None]
Part = bytes | ir.TensorProtocol


def save(
    model: ir.Model,
    path: str | Path,
    *,
    external_data: str | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write ``model`` to ``path``, whole or not at all, one tensor at a time; the model is not changed.

    Args:
        model: the model.
        path: where to; a file that is there is replaced, also one that the weights are mapped from.
        external_data: ``"file"`` to put the weights into ``NAME.data`` beside the model, which is done by itself
            where the model is too large for one file.
        progress: called with (bytes written, bytes in all).

    Raises:
        ModelError: it cannot be written, or the model is malformed.
    """
    path = Path(path)
    if external_data not in (None, "file"):
        raise UsageError(f"external_data is None or 'file', got {external_data!r}")
    if path.is_dir():
        raise ModelError(f"{path}: it cannot be written: it is a folder; name a file")
    try:
        with collector_paused():
            files = (_single(model, path) if external_data is None else None) or _external(model, path)
        _write(files, progress)
    except OSError as error:
        raise ModelError(f"{path}: it cannot be written: {why(error)}") from error
    except (*BREAKS, EncodeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: the model cannot be serialized: {root(error)}") from error


def to_proto(model: ir.Model, swap: Swap | None = None) -> onnx.ModelProto:
    """Return ``model`` as a ``ModelProto``, with what ``swap`` makes of each tensor in its place."""
    copy = clone(model, swap)
    if not model.meta.get(intake.HIDDEN_TYPE):
        return ir.to_proto(copy)
    for inner in all_graphs(copy):
        for value in (*inner.inputs, *inner.outputs, *(v for node in inner for v in node.outputs)):
            foreign = value.meta.get(intake.HIDDEN_TYPE)
            if foreign is not None and value.type is None:
                denotation = intake.HIDDEN_TYPE + foreign.hex()
                value.type = ir.TensorType(ir.DataType.UNDEFINED, denotation=denotation)
    proto = ir.to_proto(copy)
    for graph in (proto.graph, *proto.functions):
        intake.unhide(graph)
    return proto


def _single(model: ir.Model, path: Path) -> dict[Path, list[Part]] | None:
    """Return the parts of the one file, or ``None`` where one would be too large."""
    weights = _weights(model)
    sizes = [tensor.nbytes for tensor in weights.values()]
    if sum(sizes) > LARGEST_FILE_BYTES:
        return None
    stand_ins = {key: _Placeholder(tensor, i) for i, (key, tensor) in enumerate(weights.items())}
    skeleton = to_proto(model, lambda tensor: stand_ins.get(id(tensor), tensor)).SerializeToString()
    pieces = protobuf.paste(skeleton, sizes)
    if protobuf.size(pieces) > LARGEST_FILE_BYTES:
        return None
    tensors = list(weights.values())
    return {
        path: [tensors[piece.index] if isinstance(piece, protobuf.Payload) else piece for piece in pieces]
    }


def _external(model: ir.Model, path: Path) -> dict[Path, list[Part]]:
    """Return the parts of the data file and those of the model file."""
    data = path.with_name(f"{path.name}.data")
    parts: list[Part] = []
    stand_ins: dict[int, ir.TensorProtocol] = {}
    end = 0
    for key, tensor in _weights(model).items():
        unit = 4096 if tensor.nbytes >= ALIGNED_BYTES else 64
        offset = -(-end // unit) * unit
        parts += [bytes(offset - end), tensor]
        stand_ins[key] = ir.ExternalTensor(
            data.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
        end = offset + tensor.nbytes
    proto = to_proto(model, lambda tensor: stand_ins.get(id(tensor), tensor))
    return {data: parts, path: [proto.SerializeToString()]} if parts else {path: [proto.SerializeToString()]}


def _weights(model: ir.Model) -> dict[int, ir.TensorProtocol]:
    """Return the tensors that are worth writing by themselves, by identity."""
    return {
        id(tensor): tensor
        for graph in all_graphs(model)
        for tensor in tensors(graph)
        if tensor.dtype != ir.DataType.STRING and tensor.nbytes >= protobuf.SMALLEST
    }


def tensors(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    """Yield the tensors among the initializers and attributes of one graph, not of those nested in it."""
    for value in graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value
    for node in graph:
        for attr in node.attributes.values():
            if attr.type == ir.AttributeType.TENSOR and not attr.is_ref():
                yield attr.as_tensor()
            elif attr.type == ir.AttributeType.TENSORS and not attr.is_ref():
                yield from attr.as_tensors()


class _Placeholder(ir.Tensor[Any]):
    """Stands for a tensor while the model around it is serialized."""

    def __init__(self, tensor: ir.TensorProtocol, index: int) -> None:
        super().__init__(
            tensor,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
        self.index = index

    def tobytes(self) -> bytes:
        """Return the mark that :func:`protobuf.paste` finds."""
        return protobuf.placeholder(self.index)


def _write(files: Mapping[Path, Sequence[Part]], progress: Progress) -> None:
    """Write the files, one part after another, and give them their names when all are complete."""
    total = sum(
        len(part) if isinstance(part, bytes) else part.nbytes for parts in files.values() for part in parts
    )
    done = 0
    with _Beside() as beside:
        for path, parts in files.items():
            with beside.create(path) as file:
                for part in parts:
                    if isinstance(part, bytes):
                        file.write(part)
                        done += len(part)
                        continue
                    start = file.tell()
                    part.tofile(file) if hasattr(part, "tofile") else file.write(part.tobytes())
                    pages.release(part)
                    if file.tell() - start != part.nbytes:
                        raise ModelError(
                            f"tensor {part.name!r} has {file.tell() - start} bytes, and {part.dtype}{part.shape} "
                            f"needs {part.nbytes}; whoever made it gave it a wrong shape"
                        )
                    done += part.nbytes
                    progress(done, total)
    progress(total, total)


class _Beside:
    """Files that are written beside their places and then take them, all together or none of them."""

    def __init__(self) -> None:
        self.made: dict[Path, Path] = {}

    def __enter__(self) -> _Beside:
        return self

    def create(self, path: Path) -> Any:
        """Open a new file beside ``path``."""
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        file = beside.open("xb")
        self.made[path] = beside
        return file

    def __exit__(self, kind: object, *_: object) -> None:
        kept: dict[Path, Path] = {}
        try:
            if kind is None:
                for path, beside in self.made.items():
                    with contextlib.suppress(OSError):
                        old = beside.with_name(f"{beside.name}.old")
                        os.link(path, old)
                        kept[path] = old
                    beside.replace(path)
        except OSError:
            self._undo(kept)
            raise
        finally:
            for leftover in (*self.made.values(), *kept.values()):
                leftover.unlink(missing_ok=True)

    def _undo(self, kept: Mapping[Path, Path]) -> None:
        """Give the files that took their places before another one failed to take its own back."""
        for path, beside in self.made.items():
            if not beside.exists():
                kept[path].replace(path) if path in kept else path.unlink()
