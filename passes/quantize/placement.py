"""Which nodes run on integers, and which values get a Q/DQ pair for it, so that the runtime fuses every one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt import Decline
from graphopt.query import attribute, constant_tensor, is_constant, opset, scalar

PRODUCTS = {"Conv": 2, "Gemm": 2, "MatMul": 1}
"""Operators that multiply activations by weights, and how many operands beside the activations are constant.

Source: onnxruntime, optimizer/qdq_transformer/selectors_actions: ConvSelector, GemmSelector, MatMulSelector.
"""
JOINS = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu")
"""Operators with an integer kernel that is worth it between integers only (BinarySelector, VariadicSelector,
UnarySelector). Softmax and Sigmoid have one too, but 8 bits are too few for what is near 0 and for what multiplies."""
CARRIERS = (
    *("MaxPool", "ReduceMax", "Resize", "DepthToSpace", "Slice", "Gather", "Expand", "Tile"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
)
"""Operators that move numbers about: they run on the integers themselves, with the same scale on both sides
(DropQDQNodesSelector; found by asking onnxruntime 1.31 of each operator, which keeps Pad and SpaceToDepth in floats).
"""
ACTIVATIONS = ("Relu", "Clip")
"""Operators that the range of a Q node behind them makes superfluous (ReluQuantFusion, ClipQuantFusion)."""
FLOAT_ACTIVATIONS = ("HardSigmoid", "HardSwish", "Sigmoid", "Swish", "Tanh", "Elu", "Gelu", "Mish")
"""Operators without an integer kernel that is worth it; a Conv in floats takes most of them in."""
LEAST_PRODUCTS = 192
"""A Conv that sums fewer products for each number, and whose result is read in floats, costs more than it gains.

Measured with onnxruntime 1.31 on a processor with AVX2 and no VNNI, one thread, in PP-OCR's recognizer: integers save
0.025 ns a product, while to convert a number, run HardSigmoid and Mul on it, which a Conv in floats does as it goes,
and convert it back takes 3 to 6 ns. Convs of 240 products measured faster on integers; for those of 128 the difference
was within the noise, and they stay in floats, which loses nothing.
"""


@dataclass
class Spot:
    """One node that is to run on integers."""

    node: ir.Node
    inputs: dict[int, ir.Value]
    """The operands that are activations."""
    weight: int | None = None
    bias: int | None = None
    output: ir.Value | None = None
    """What gets a pair behind the node; ``None`` where its kernel gives floats."""


@dataclass
class Placement:
    """Nodes that run on integers, and values that get a pair."""

    spots: dict[ir.Node, Spot] = field(default_factory=dict)
    shares: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """For each value with a pair, the value whose range it has; mostly itself."""

    def add(self, spot: Spot) -> None:
        """Take in a node."""
        self.spots[spot.node] = spot
        for value in (*spot.inputs.values(), spot.output):
            if value is not None:
                self.shares.setdefault(value, value)

    def source(self, value: ir.Value) -> ir.Value:
        """Return the value whose range ``value`` has."""
        while self.shares[value] is not value:
            value = self.shares[value]
        return value

    def settle(self) -> None:
        """Let products give integers, too, where one reads them as such: their kernels give either, not both."""
        for spot in self.spots.values():
            if spot.output is None and (y := behind(spot.node)) in self.shares and not y.is_graph_output():
                spot.output = y

    def integers(self) -> set[ir.Value]:
        """Return the values that are made as integers, so that all their readers get them back from these."""
        return {spot.output for spot in self.spots.values() if spot.output is not None}


def product(node: ir.Node) -> Spot:
    """Return the spot of a node that multiplies by weights.

    Raises:
        Decline: it cannot run on integers.
    """
    weight = _weight_index(node)
    if weight is None:
        raise Decline("it multiplies no activations by constant weights")
    x = node.inputs[1 - weight]
    if x is None or x.dtype != ir.DataType.FLOAT:
        raise Decline(
            f"its activations are {x.dtype.name.lower() if x is not None and x.dtype else '?'}, not float"
        )
    bias = 2 if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if bias is not None and not is_constant(node.inputs[bias]):
        raise Decline(f"its bias {node.inputs[bias].name} is computed")  # type: ignore[union-attr]
    if node.op_type == "Gemm":
        _check_gemm(node, bias)
    spot = Spot(node, {1 - weight: x}, weight, bias)
    if node.op_type == "Conv":
        spot.output = behind(node)
        if spot.output.is_graph_output():
            raise Decline("its result is a graph output, and its integer kernel gives integers")
    return spot


def _weight_index(node: ir.Node) -> int | None:
    """Return which operand holds the weights; the second, which kernels are made for."""
    return (
        1
        if len(node.inputs) > 1 and is_constant(node.inputs[1]) and not is_constant(node.inputs[0])
        else None
    )


def _check_gemm(node: ir.Node, bias: int | None) -> None:
    alpha, beta = (node.attributes[n].as_float() if n in node.attributes else 1.0 for n in ("alpha", "beta"))
    if alpha != 1.0 or beta != 1.0:
        raise Decline(f"its alpha is {alpha:g} and its beta {beta:g}; its integer kernel wants 1")
    if "transA" in node.attributes and node.attributes["transA"].as_int():
        raise Decline("it transposes the activations")
    tensor = constant_tensor(node.inputs[2]) if bias is not None else None
    if tensor is not None and len(tensor.shape) != 1:
        raise Decline(f"its bias has shape {list(tensor.shape)}, not one number for each column")


def behind(node: ir.Node) -> ir.Value:
    """Return the value behind ``node`` and the activation that the range of a pair there makes superfluous."""
    (value,) = node.outputs[:1]
    readers = value.consumers()
    if len(readers) != 1 or value.is_graph_output():
        return value
    (reader,) = readers
    if reader.op_type not in ACTIVATIONS or reader.domain != "" or reader.graph is not node.graph:
        return value
    if reader.op_type == "Clip" and (opset(reader) < 11 or scalar(reader.inputs[1]) not in (0, 0.0)):
        return value
    return reader.outputs[0]


def unpaid(spots: Iterable[Spot]) -> dict[ir.Node, str]:
    """Return the Convs that cost more on integers than they gain, and why: light ones that are read in floats."""
    light = {
        spot.node: spot.output
        for spot in spots
        if spot.node.op_type == "Conv" and products(spot.node) < LEAST_PRODUCTS
    }
    found: dict[ir.Node, str] = {}
    for node, output in reversed(light.items()):  # what reads a value comes later
        assert output is not None
        for reader in output.consumers():
            if _in_floats(reader) or reader in found:
                reads = f"{reader.op_type} {reader.outputs[0].name} reads its result in floats"
                found[node] = (
                    f"{reads}; its products for each number, {products(node)}, are too few to pay for converting it"
                )
                break
    return found


def _in_floats(reader: ir.Node) -> bool:
    """Return whether ``reader`` is an activation without an integer kernel, or multiplies by the result of one."""
    made = (value.producer() for value in reader.inputs if value is not None)
    return reader.op_type in FLOAT_ACTIVATIONS or (
        reader.op_type in JOINS
        and any(node is not None and node.op_type in FLOAT_ACTIVATIONS for node in made)
    )


def products(conv: ir.Node) -> int:
    """Return how many products a Conv sums for each number that it makes."""
    tensor = constant_tensor(conv.inputs[1])
    assert tensor is not None
    return math.prod(tensor.shape.numpy()[1:])


def spread(placement: Placement, nodes: list[ir.Node], allowed: frozenset[str]) -> Iterator[Spot]:
    """Yield the nodes between integers that can run on them too; the caller adds them, or does not."""
    refused: set[ir.Node] = set()
    changed = True
    while changed:
        changed = False
        for node in nodes:
            if node in placement.spots or node in refused or node.domain != "" or node.op_type not in allowed:
                continue
            spot = _between(placement, node)
            if spot is not None:
                yield spot
                changed = node in placement.spots or changed
                refused.add(node)


def _between(placement: Placement, node: ir.Node) -> Spot | None:
    """Return the spot of a node all of whose activations have pairs; of a carrier, where its result is wanted so."""
    if node.op_type in JOINS:
        inputs = {i: value for i, value in enumerate(node.inputs) if value is not None}
        output = behind(node)
        if output.is_graph_output() or not inputs:
            return None
        if not all(value in placement.shares for value in inputs.values()):
            return None
        return Spot(node, inputs, output=output)
    if node.op_type in CARRIERS:
        (x, y) = (node.inputs[0], node.outputs[0])
        if not _carries(node):
            return None
        if x is None or x not in placement.shares or y.is_graph_output() or len(node.outputs) > 1:
            return None
        if y not in placement.shares and not any(reader in placement.spots for reader in y.consumers()):
            return None
        return Spot(node, {0: x}, output=y)
    return None


def _carries(node: ir.Node) -> bool:
    """Return whether the node makes no number that it was not given."""
    if node.op_type == "Resize":
        mode, where = (
            attribute(node, "mode", "nearest"),
            attribute(node, "coordinate_transformation_mode", ""),
        )
        return mode == "nearest" and where != "tf_crop_and_resize"
    return node.op_type not in ("MaxPool", "ReduceMax") or opset(node) >= 12
