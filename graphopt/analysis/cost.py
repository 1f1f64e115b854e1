"""What a model costs: multiply-accumulates, parameters, bytes; in all and per node. Nothing is executed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..errors import ModelError, UsageError
from ..interfaces import place
from ..query import all_graphs, all_nodes, constant_tensor, optional, scalar, subgraphs
from .macs import Shape, Unknown, macs

if TYPE_CHECKING:
    from .shapes import Shapes

ENDLESS = 2**31
"""A loop whose limit is as large ends by its condition: exporters write the largest integer there."""

NOT_WEIGHTS = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING, ir.DataType.UNDEFINED})
"""Types of constants that are no parameters: ONNX asks for int64 where a constant is a shape, axis, index or count."""


@dataclass(frozen=True)
class NodeCost:
    """What one node costs."""

    place: str
    op_type: str
    """With its domain, where that is not ONNX's own: ``com.microsoft::FusedConv``."""
    macs: int | None
    """Multiply-accumulates of all its runs in one run of the model; ``None`` where a shape is not known."""
    parameters: int
    """Elements of its weights: the constants of which it is the reader with the most MACs, or the first of those."""
    weight_bytes: int
    """Bytes of its weights, and of its other constants."""
    output_bytes: int | None
    """Bytes of its outputs, of one run; ``None`` where a shape is not known."""


@dataclass(frozen=True)
class Cost:
    """What a model costs; functions count where they are called, loops as often as they run at most."""

    macs: int
    """Multiply-accumulates of one run; of an ``If`` the dearer branch. A lower bound where ``unknown`` is not empty."""
    parameters: int
    """Elements of all weights, each counted once: constants of other types than int64, bool and string."""
    bytes: int
    """Bytes of all constants."""
    nodes: list[NodeCost]
    """In the order of execution, function calls expanded, a node after the nodes of its subgraphs."""
    unknown: list[str] = field(default_factory=list)
    """Places of nodes that multiply matrices of unknown shapes."""
    assumed: dict[str, int] = field(default_factory=dict)
    """What was taken for dimensions and trip counts that the model leaves open."""

    def by_operator(self) -> dict[str, tuple[int, int, int, int]]:
        """Return (nodes, MACs, parameters, bytes of constants) of each operator, most MACs first."""
        sums: dict[str, list[int]] = {}
        for node in self.nodes:
            row = sums.setdefault(node.op_type, [0, 0, 0, 0])
            for i, value in enumerate((1, node.macs or 0, node.parameters, node.weight_bytes)):
                row[i] += value
        ranked = sorted(sums.items(), key=lambda item: (-item[1][1], -item[1][2], -item[1][0], item[0]))
        return {op: (row[0], row[1], row[2], row[3]) for op, row in ranked}


def cost(model: ir.Model, dims: Mapping[str, int] | None = None) -> Cost:
    """Return what ``model`` costs; it is not changed, and weights are not read.

    Args:
        model: with or without shapes; those that are missing are inferred on a clone.
        dims: sizes of symbolic dimensions of the inputs, as ``{"batch": 8}``; 1 where not given.

    Raises:
        UsageError: ``dims`` names a dimension that the model does not have, or a size is no positive integer.
        ModelError: functions of the model call each other in a circle.
    """
    sizes = Sizes(model, dims or {})
    walk = _Walk(sizes)
    total = 0 if model.functions else walk.graph(model.graph)
    if model.functions or walk.unknown:
        sizes = Sizes(model, dims or {})
        walk = _Walk(sizes)
        total = walk.graph(_shaped(model, sizes).graph)
    held = {id(tensor): tensor for tensor in constants(model)}.values()
    return Cost(
        macs=total,
        parameters=sum(map(parameters, held)),
        bytes=sum(tensor.nbytes for tensor in held),
        nodes=walk.rows(),
        unknown=walk.unknown,
        assumed=sizes.assumed,
    )


def constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield the tensors of all initializers and ``Constant`` nodes, those of subgraphs and functions too."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in all_nodes(model):
        if node.op_type == "Constant" and node.domain == "":
            tensor = constant_tensor(node.outputs[0])
            if tensor is not None:
                yield tensor


def parameters(tensor: ir.TensorProtocol) -> int:
    """Return how many parameters ``tensor`` holds: its elements, or none where its type says it is no weight."""
    return 0 if tensor.dtype in NOT_WEIGHTS else tensor.size


def label(node: ir.Node) -> str:
    """Return the operator of ``node`` with its domain, where that is not ONNX's own."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


class Sizes:
    """Shapes in numbers: symbols of the inputs have the sizes that were asked for, or 1."""

    def __init__(self, model: ir.Model, dims: Mapping[str, int]) -> None:
        self.assumed: dict[str, int] = {}
        self._bound = dict(dims)
        self._cache: dict[str, int | None] = {}
        known = {symbol for value in model.graph.inputs for symbol in _symbols(value)}
        for symbol, size in dims.items():
            if symbol not in known:
                have = ", ".join(sorted(known)) or "none"
                raise UsageError(f"dims: no input has a dimension called {symbol!r}; those there are: {have}")
            if not isinstance(size, int) or size < 1:
                raise UsageError(f"dims: the size of {symbol} must be a positive integer, got {size!r}")
        for value in model.graph.inputs:
            for symbol in _symbols(value):
                if symbol not in self._bound:
                    self._bound[symbol] = self.assumed[symbol] = 1

    def __call__(self, value: ir.Value | None) -> Shape:
        """Return the shape of ``value``.

        Raises:
            Unknown: it, or a dimension of it, is not known.
        """
        if value is None or value.shape is None:
            if value is not None and value.const_value is not None:
                return tuple(int(dim) for dim in value.const_value.shape.numpy())
            raise Unknown("no shape")
        return tuple(self._size(value, axis, dim) for axis, dim in enumerate(value.shape))

    def _size(self, value: ir.Value, axis: int, dim: int | ir.SymbolicDim) -> int:
        if isinstance(dim, int):
            return dim
        name = dim.value if dim.value is not None else f"{value.name}[{axis}]"
        if name not in self._cache:
            self._cache[name] = self._bound[name] if name in self._bound else self._evaluate(dim)
        size = self._cache[name]
        if size is None:
            raise Unknown(f"dimension {name}")
        return size

    def _evaluate(self, dim: ir.SymbolicDim) -> int | None:
        try:
            size = dim.evaluate(self._bound)
        except (ValueError, TypeError, ArithmeticError):
            return None
        return size if isinstance(size, int) and size >= 0 else None

    def settle(self, value: ir.Value, stored: ir.Shape | None) -> ir.Shape | None:
        """Return the shape of ``value`` in numbers: as it was inferred, else as ``stored``, else as far as is known."""
        inferred = value.shape
        for shape in (inferred, stored):
            if shape is not None:
                value.shape = shape
                try:
                    return ir.Shape(self(value))
                except Unknown:
                    pass
        shape = inferred if inferred is not None else stored
        return self.assume(value, shape) if shape is not None else None

    def assume(self, value: ir.Value, shape: ir.Shape) -> ir.Shape:
        """Return ``shape`` in numbers, 1 where nothing is known, which is noted."""
        sizes = []
        for axis, dim in enumerate(shape):
            try:
                sizes.append(self._size(value, axis, dim))
            except Unknown:
                assert not isinstance(dim, int)
                self.assumed[dim.value or f"{value.name}[{axis}]"] = 1
                sizes.append(1)
        return ir.Shape(sizes)

    def trips(self, node: ir.Node) -> int:
        """Return how often the body of ``node`` runs, at most; 1 where nobody knows, which is noted."""
        if node.op_type == "Loop" and (limit := scalar(optional(node, 0))) is not None and limit < ENDLESS:
            return max(0, int(limit))
        if node.op_type == "Scan" and (scanned := _scanned(node)):
            axes = node.attributes.get_ints("scan_input_axes", [0] * len(scanned))
            try:
                return self(node.inputs[-len(scanned)])[axes[0]]
            except (Unknown, IndexError):
                pass
        if node.op_type in ("Loop", "Scan"):
            self.assumed[f"runs of {place(node)}"] = 1
        return 1


def _symbols(value: ir.Value) -> Iterator[str]:
    """Yield the names of the open dimensions of an input; one without a name is ``input[axis]``."""
    for axis, dim in enumerate(value.shape or ()):
        if not isinstance(dim, int):
            yield dim.value if dim.value is not None else f"{value.name}[{axis}]"


def _scanned(node: ir.Node) -> list[ir.Value | None]:
    count = node.attributes.get_int("num_scan_inputs", 0)
    return list(node.inputs[-count:]) if count else []


class _Walk:
    """Adds up a graph, and keeps a row for each node."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.nodes: list[NodeCost] = []
        self.unknown: list[str] = []
        self._owners: dict[int, tuple[int, ir.TensorProtocol]] = {}

    def rows(self) -> list[NodeCost]:
        """Return what each node costs, each constant counted once."""
        held: dict[int, list[ir.TensorProtocol]] = defaultdict(list)
        for row, tensor in self._owners.values():
            held[row].append(tensor)
        return [
            replace(
                node, parameters=sum(map(parameters, own)), weight_bytes=sum(tensor.nbytes for tensor in own)
            )
            if (own := held.get(i))
            else node
            for i, node in enumerate(self.nodes)
        ]

    def graph(self, graph: ir.Graph, runs: int = 1) -> int:
        """Return the MACs of ``runs`` runs of ``graph``."""
        return sum(self._node(node, runs) for node in graph)

    def _node(self, node: ir.Node, runs: int) -> int:
        inner = list(subgraphs(node))
        times = runs * self.sizes.trips(node) if inner else runs
        bodies = [self.graph(body, times) for body in inner]
        own: int | None
        try:
            own = runs * macs(node, self.sizes)
        except Unknown:
            own = None
            self.unknown.append(place(node))
        for tensor in {
            id(t): t for value in node.inputs if (t := constant_tensor(value)) is not None
        }.values():
            owner = self._owners.get(id(tensor))
            if owner is None or (self.nodes[owner[0]].macs or 0) < (own or 0):
                self._owners[id(tensor)] = len(self.nodes), tensor
        self.nodes.append(
            NodeCost(
                place=place(node),
                op_type=label(node),
                macs=own,
                parameters=0,
                weight_bytes=0,
                output_bytes=self._output_bytes(node),
            )
        )
        return (own or 0) + (max(bodies, default=0) if node.op_type == "If" else sum(bodies))

    def _output_bytes(self, node: ir.Node) -> int | None:
        total = 0
        for value in node.outputs:
            try:
                total += -(
                    -math.prod(self.sizes(value)) * (value.dtype or ir.DataType.UNDEFINED).bitwidth // 8
                )
            except (Unknown, TypeError):
                return None
        return total


# --- shapes that the model does not bring -----------------------------------------------------------------------------


def _shaped(model: ir.Model, sizes: Sizes) -> ir.Model:
    """Return a clone of ``model``, its functions inlined and its shapes inferred, in numbers."""
    from onnx_ir.passes import PreconditionError
    from onnx_ir.passes.common import InlinePass

    from ..model import clone
    from .shapes import Shapes

    copy = clone(model)
    if copy.functions:
        for node in all_nodes(copy):
            node.name = place(node)
        try:
            InlinePass()(copy)
        except PreconditionError as error:
            raise ModelError(f"functions of the model: {error}; break the circle") from error
    for value in copy.graph.inputs:
        if value.shape is not None:
            value.shape = sizes.assume(value, value.shape)
    _infer(copy.graph, Shapes(copy), sizes)
    return copy


def _infer(graph: ir.Graph, shapes: Shapes, sizes: Sizes) -> None:
    for node in graph:
        inner = list(subgraphs(node))
        for body in inner:
            _enter(node, body)
            _infer(body, shapes, sizes)
        stored = [value.shape for value in node.outputs]
        for value, shape in zip(node.outputs, stored, strict=True):
            if shape is not None and not shape.is_static():
                value.shape = None
        shapes.infer(node)
        if inner:
            _leave(node, inner[0], sizes)
        for value, shape in zip(node.outputs, stored, strict=True):
            if value.shape is None or not value.shape.is_static():
                value.shape = sizes.settle(value, shape)


def _enter(node: ir.Node, body: ir.Graph) -> None:
    """Tell the inputs of a loop's body what the loop hands to them, where they do not know."""
    if node.op_type == "Loop":
        pairs = [(value, outer, None) for value, outer in zip(body.inputs[2:], node.inputs[2:], strict=False)]
    elif node.op_type == "Scan":
        scanned = len(_scanned(node))
        axes = node.attributes.get_ints("scan_input_axes", [0] * scanned)
        sliced = [None] * (len(body.inputs) - scanned) + list(axes)
        pairs = list(zip(body.inputs, node.inputs, sliced, strict=False))  # type: ignore[arg-type]
    else:
        return
    for value, outer, axis in pairs:
        if outer is None or outer.shape is None:
            continue
        value.type = value.type or outer.type
        if value.shape is None or not value.shape.is_static():
            kept = list(outer.shape)
            if axis is not None and kept:
                del kept[axis % len(kept)]
            value.shape = ir.Shape(kept)


def _leave(node: ir.Node, body: ir.Graph, sizes: Sizes) -> None:
    """Give the outputs of a node with subgraphs the shapes that its first one makes, where they have none."""
    made = list(body.outputs)[1 if node.op_type == "Loop" else 0 :]
    states = {"Loop": len(node.inputs) - 2, "Scan": len(node.inputs) - len(_scanned(node))}.get(node.op_type)
    for i, (value, inner) in enumerate(zip(node.outputs, made, strict=False)):
        value.type = value.type or inner.type
        if value.shape is None and inner.shape is not None:
            front = [sizes.trips(node)] if states is not None and i >= states else []
            value.shape = ir.Shape([*front, *inner.shape])
