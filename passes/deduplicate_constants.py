"""Keep one of several constants that hold the same."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt import Pass, PassReport, sweep
from graphopt.query import constant_tensor, is_op, subgraphs

if TYPE_CHECKING:
    from graphopt.context import Context

Path = tuple[int, ...]
"""Numbers of the graphs around a constant, outermost first."""
Candidate = tuple[ir.Value, ir.TensorProtocol, Path]

PROBE = 16
"""Elements at either end that are looked at first."""
CHUNK_BYTES = 1 << 20


class DeduplicateConstants(Pass):
    """Let initializers and Constant nodes of the same type, shape and bytes be one.

    The first one in the order of the graph stays, initializers before nodes; a subgraph uses those of the graphs
    around it. A constant that is an input or output of a graph keeps its name and stays. Weights are read only
    where another constant has the same type and shape, as far as it takes to tell the two apart: their first and
    last 16 elements, then a digest (BLAKE2b, 256 bits).

    Exact: bytes are compared, so that 0.0 and -0.0 are two constants. Source: ONNX IR, "Graphs", initializers.
    """

    limit_bytes: int | None = Field(
        None, ge=0, description="leave constants larger than this alone; none by default"
    )

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Group the constants by type and shape, and look into the groups of more than one."""
        report = PassReport()
        for graph in (*(function.graph for function in model.functions.values()), model.graph):
            groups: dict[Hashable, list[Candidate]] = defaultdict(list)
            for candidate in _constants(graph, (), report):
                tensor = candidate[1]
                if self.limit_bytes is None or tensor.nbytes <= self.limit_bytes:
                    groups[tensor.dtype, tuple(tensor.shape)].append(candidate)
            for group in groups.values():
                for twins in _equal(group):
                    _merge(twins, report, context)
        return report


def _constants(graph: ir.Graph, path: Path, report: PassReport) -> Iterator[Candidate]:
    """Yield the constants that may go, in the order in which they come to be known."""
    path = (*path, id(graph))
    for value in graph.initializers.values():
        if value.const_value is not None and not value.is_graph_input() and not value.is_graph_output():
            yield value, value.const_value, path
    for node in graph:
        if is_op(node, "Constant"):
            value = node.outputs[0]
            tensor = constant_tensor(value)
            if value.is_graph_output():
                report.decline(node, f"{value.name} is a graph output")
            elif tensor is not None:
                yield value, tensor, path
        for inner in subgraphs(node):
            yield from _constants(inner, path, report)


def _equal(group: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    """Split constants of one type and shape into those that are equal; nothing is read for a group of one."""
    groups = [group]
    for tell_apart in (_ends, _digest):
        groups = [part for group in groups if len(group) > 1 for part in _split(group, tell_apart)]
    return (group for group in groups if len(group) > 1)


def _split(group: Sequence[Candidate], key: Any) -> Iterator[Sequence[Candidate]]:
    parts: dict[Hashable, list[Candidate]] = defaultdict(list)
    for candidate in group:
        parts[key(candidate[1])].append(candidate)
    yield from parts.values()


def _ends(tensor: ir.TensorProtocol) -> Hashable:
    """Return the first and last few elements, without laying out a view of a large weight."""
    if isinstance(tensor, ir.StringTensor):
        return None
    elements = tensor.numpy().flat
    return elements[:PROBE].tobytes(), elements[-PROBE:].tobytes()


def _digest(tensor: ir.TensorProtocol) -> Hashable:
    if not isinstance(tensor, ir.StringTensor) and tensor.size <= 2 * PROBE:
        return None
    data = _bytes(tensor)
    digest = hashlib.blake2b(digest_size=32)
    for start in range(0, data.size, CHUNK_BYTES):
        digest.update(data[start : start + CHUNK_BYTES].data)
    return digest.digest()


def _bytes(tensor: ir.TensorProtocol) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the content as bytes, without a copy where it lies in memory or is mapped."""
    if isinstance(tensor, ir.StringTensor):
        strings = tensor.string_data()
        text = b"".join(len(s).to_bytes(8, "little") + s for s in strings)
        return np.frombuffer(text, np.uint8)
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)


def _merge(twins: Sequence[Candidate], report: PassReport, context: Context) -> None:
    """Let each of ``twins`` be the first one that is known where it is used."""
    kept: list[Candidate] = []
    for value, tensor, path in twins:
        first = next((v for v, _, outer in kept if path[: len(outer)] == outer), None)
        if first is None:
            kept.append((value, tensor, path))
        elif context.admit(report, value, f"= {first.name}"):
            _replace(value, first)


def _replace(value: ir.Value, first: ir.Value) -> None:
    value.replace_all_uses_with(first)
    node = value.producer()
    if node is not None:
        sweep(node)
    elif value.graph is not None:
        del value.graph.initializers[value.name or ""]
