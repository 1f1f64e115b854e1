"""Where the channels of a value can be scaled: in the constants that make it, and in the weights that multiply it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Names, sweep
from graphopt.query import (
    attribute,
    constant,
    constant_tensor,
    is_constant,
    is_op,
    optional,
    rank,
    used_once,
)

Array = np.ndarray[Any, Any]
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Identity")
"""f(s x) = s f(x) for every s > 0."""
POOLING = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
"""The same, channel by channel along axis 1."""
LAST = -1
"""The axis of channels behind MatMul, Gemm and LayerNormalization; behind Conv it is 1."""


@dataclass(frozen=True)
class Operand:
    """A constant operand; in ``shape``, the channels lie along ``axes``, in their order."""

    node: ir.Node
    index: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def value(self) -> ir.Value:
        """The constant."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value

    def scaled(self, k: Array) -> Array:
        """Return the constant with channel i multiplied by ``k[i]``, in its own type.

        Raises:
            Decline: the type cannot hold it.
        """
        array = constant(self.value)
        along = tuple(size if axis in self.axes else 1 for axis, size in enumerate(self.shape))
        if np.prod(along) != k.size:  # one number for all channels becomes one for each
            along = tuple(k.size if axis in self.axes else 1 for axis in range(len(self.shape)))
        spread = array.reshape(self.shape).astype(np.float64) * k.reshape(along)
        with np.errstate(over="ignore"):
            made: Array = spread.astype(array.dtype)
        if not np.isfinite(made).all():
            raise Decline(f"{self.value.name} times the scale overflows {array.dtype}")
        if 0 < np.abs(spread).max(initial=0) < np.finfo(array.dtype).tiny:
            raise Decline(f"{self.value.name} times the scale underflows {array.dtype}")
        return made.reshape(array.shape) if made.size == array.size else made


@dataclass(frozen=True)
class Layer:
    """A product with constant weights. Its weights in ``shape`` have an axis for groups in front."""

    node: ir.Node
    shape: tuple[int, ...]
    outputs_axis: int
    inputs_axis: int
    axis: int
    """The axis of channels in what it reads and makes."""

    @property
    def inputs(self) -> Operand:
        """The weights, by input channel."""
        return Operand(self.node, 1, self.shape, (0, self.inputs_axis))

    @property
    def outputs(self) -> Operand:
        """The weights, by output channel."""
        return Operand(self.node, 1, self.shape, (0, self.outputs_axis))

    @property
    def out_channels(self) -> int:
        """How many channels it makes."""
        return self.shape[0] * self.shape[self.outputs_axis]

    @property
    def in_channels(self) -> int:
        """How many channels it reads."""
        return self.shape[0] * self.shape[self.inputs_axis]

    def matrix(self) -> Array:
        """Return the weights of a Gemm or MatMul as (inputs, outputs)."""
        w: Array = np.moveaxis(constant(self.inputs.value), self.inputs_axis - 1, 0)
        return w.astype(np.float32, copy=False)

    def magnitudes(self) -> Array:
        """Return the largest magnitude for each pair of channels: (groups, outputs, inputs) of a group."""
        w = np.abs(constant(self.inputs.value)).reshape(self.shape).astype(np.float64)
        w = np.moveaxis(w, (self.outputs_axis, self.inputs_axis), (1, 2))
        largest: Array = w.reshape(*w.shape[:3], -1).max(3)
        return largest


def layer(node: ir.Node) -> Layer:
    """Return what ``node`` multiplies its first input by.

    Raises:
        Decline: it is no product of activations with constant float weights.
    """
    if not is_op(node, *PRODUCTS):
        raise Decline(f"{node.op_type} is no product with weights")
    tensor = constant_tensor(node.inputs[1])
    if tensor is None or is_constant(node.inputs[0]):
        raise Decline("it multiplies no activations by constant weights")
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        raise Decline(f"its weights are {tensor.dtype.name.lower()}")
    shape = tuple(tensor.shape.numpy())
    if tensor.size == 0:
        raise Decline("its weights are empty")
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = attribute(node, "group", 1)
        split = (groups, shape[0] // groups, *shape[1:])
        first = (1, 2) if node.op_type == "Conv" else (2, 1)
        return Layer(node, split, *first, axis=1)
    if len(shape) != 2:
        raise Decline(f"its weights have {len(shape)} dimensions")
    if attribute(node, "transA", 0):
        raise Decline("it transposes the activations")
    transposed = attribute(node, "transB", 0)
    return Layer(node, (1, *shape), *((1, 2) if transposed else (2, 1)), axis=LAST)


@dataclass(frozen=True)
class Source:
    """The constants that the channels of a value are proportional to."""

    operands: tuple[Operand, ...]
    axis: int
    layer: Layer | None
    """The product that makes it; ``None`` where a normalization or a factor does."""
    rectified: bool
    """Whether an activation lies in between."""


def source(value: ir.Value) -> Source:
    """Return the constants by which the channels of ``value`` can be scaled.

    Raises:
        Decline: something in between does not let a scale through, or is used elsewhere.
    """
    terms: list[tuple[ir.Node, int]] = []
    pooled = rectified = False
    while True:
        node = value.producer()
        if node is None:
            raise Decline(f"nothing that can be scaled makes {value.name}")
        at = _operand(node, "Add")
        if at is not None:
            terms.append((node, at))
        elif not is_op(node, *HOMOGENEOUS, *POOLING):
            break
        pooled, rectified = pooled or is_op(node, *POOLING), rectified or is_op(node, *HOMOGENEOUS[:-1])
        before = node.inputs[0 if at is None else 1 - at]
        assert before is not None
        if not used_once(before):
            raise Decline(f"{before.name} is used elsewhere")
        value = before
    own, axis, made_by = _made(node)
    if pooled and axis != 1:
        raise Decline("it is pooled along other axes than its channels")
    own += [_broadcast(term, at, axis) for term, at in terms]
    return Source(tuple(own), axis, made_by, rectified)


def _made(node: ir.Node) -> tuple[list[Operand], int, Layer | None]:
    """Return what the output of ``node`` is proportional to."""
    if is_op(node, *PRODUCTS):
        found = layer(node)
        bias = [_broadcast(node, 2, LAST)] if optional(node, 2) is not None else []
        return [found.outputs, *bias], found.axis, found
    if is_op(node, "LayerNormalization"):
        if attribute(node, "axis", -1) not in (-1, rank(node.inputs[0]) - 1):
            raise Decline("the normalization is over more than one axis")
        return [_broadcast(node, i, LAST) for i in (1, 2) if optional(node, i) is not None], LAST, None
    at = _operand(node, "Mul")
    if at is None:
        raise Decline(f"{node.op_type} lets no scale of channels through")
    return [_broadcast(node, at, LAST)], LAST, None


def _operand(node: ir.Node, op_type: str) -> int | None:
    """Return which of the two inputs of an ``op_type`` is the constant one."""
    if not is_op(node, op_type) or is_constant(node.inputs[0]) == is_constant(node.inputs[1]):
        return None
    return 0 if is_constant(node.inputs[0]) else 1


def _broadcast(node: ir.Node, index: int, axis: int) -> Operand:
    """Return a constant that is added or multiplied, with its channels along ``axis``."""
    value = node.inputs[index]
    shape = constant(value).shape
    if axis == 1 and node.op_type not in PRODUCTS:
        size = rank(node.outputs[0])
        shape = (1,) * (size - len(shape)) + shape
        return Operand(node, index, shape, (1,))
    return Operand(node, index, shape or (1,), (max(len(shape) - 1, 0),))


def check_sizes(operands: Sequence[Operand], channels: int) -> None:
    """Raise :class:`~graphopt.Decline` where an operand has neither one number nor one for each channel."""
    for operand in operands:
        size = int(np.prod([operand.shape[axis] for axis in operand.axes]))
        if size not in (1, channels):
            raise Decline(f"{operand.value.name} has {size} channels, not {channels}")


def scaled(scales: Mapping[Operand, Array]) -> dict[Operand, Array]:
    """Return each constant with its channels multiplied.

    Raises:
        Decline: one of them overflows its type.
    """
    return {operand: operand.scaled(k) for operand, k in scales.items()}


def put_all(made: Mapping[Operand, Array], names: Names) -> None:
    """Put new constants in place of operands; what others read too stays as it is for them."""
    for operand, array in made.items():
        put(operand.node, operand.index, array, names)


def put(node: ir.Node, index: int, array: Array, names: Names) -> None:
    """Let input ``index`` of ``node`` be a constant of ``array``, under the name of what it was where that is free."""
    old = node.inputs[index]
    assert old is not None and node.graph is not None
    tensor = ir.Tensor(np.asarray(array, order="C"), name=old.name)
    if old.is_initializer() and used_once(old):
        old.const_value, old.shape = tensor, ir.Shape(array.shape)
        return
    new = ir.Value(type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    new.name = tensor.name = names.fresh(f"{old.name}_scaled")
    node.graph.register_initializer(new)
    node.replace_input_with(index, new)
    maker = old.producer()
    if maker is not None and not old.uses() and not old.is_graph_output():
        sweep(maker, names)


def same_axis(value: ir.Value, made: int, read: int) -> None:
    """Raise :class:`~graphopt.Decline` where the channels that are made are not those that are read."""
    if made != read and rank(value) != 2:
        raise Decline(f"the channels of {value.name} are made along another axis than read")
