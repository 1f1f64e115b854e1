"""The layers that can be written as a product of thinner ones, and where their biases are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Names
from graphopt.query import attribute, constant, constant_tensor, is_constant, is_op, optional, used_once

from ..channels import LAST, layer, put

Array = np.ndarray[Any, Any]
PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Site:
    """A Conv, Gemm or MatMul with constant weights ``W`` of shape (O, I, *kernel); a matrix has no kernel."""

    node: ir.Node
    shape: tuple[int, ...]
    dtype: ir.DataType
    turned: bool
    """Whether the node reads the transposed matrix: (I, O)."""
    axis: int
    """Of the channels in what it reads and makes."""

    @property
    def x(self) -> ir.Value:
        """What it multiplies."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def y(self) -> ir.Value:
        """What it makes."""
        return self.node.outputs[0]

    @property
    def weight(self) -> ir.Value:
        """The constant that it reads."""
        value = self.node.inputs[1]
        assert value is not None
        return value

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sizes of the kernel."""
        return self.shape[2:]

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return self.node.op_type == "Conv"

    @property
    def strides(self) -> tuple[int, ...]:
        """How far the kernel moves, by spatial axis."""
        return tuple(attribute(self.node, "strides", [1] * len(self.kernel)))

    @property
    def macs(self) -> int:
        """Its multiply-accumulates for one position of what it makes."""
        return math.prod(self.shape)

    def read(self) -> Array:
        """Return ``W``."""
        w = constant(self.weight)
        return np.asarray(w.T if self.turned else w, np.float64)

    def laid(self, w: Array) -> Array:
        """Return ``W`` as the node reads it, in its type."""
        return (w.T if self.turned else w).astype(self.dtype.numpy())

    def bias(self) -> tuple[ir.Node, int] | None:
        """Return which input of which node is its constant bias; one of the node itself may still be missing.

        ``None`` where no constant is added: its output cannot be shifted.
        """
        node = self.node
        if node.op_type != "MatMul":
            given = optional(node, 2)
            return (node, 2) if given is None or is_constant(given) else None
        reader = self.y.consumers()[0] if used_once(self.y) else None
        if reader is None or not is_op(reader, "Add"):
            return None
        index = 1 if reader.inputs[0] is self.y else 0
        return (reader, index) if is_constant(reader.inputs[index]) else None

    def shifted(self, shift: Array) -> Array:
        """Return the bias that makes each channel of the output more by ``shift``."""
        holder = self.bias()
        assert holder is not None
        given = optional(*holder)
        beta = attribute(self.node, "beta", 1.0) if given is not None else 1.0
        b = constant(given).astype(np.float64) if given is not None else np.zeros(())
        made: Array = (b + attribute(self.node, "alpha", 1.0) * shift / beta).astype(self.dtype.numpy())
        return made

    def shift(self, shift: Array, names: Names) -> None:
        """Put the bias in place that makes each channel of the output more by ``shift``."""
        holder = self.bias()
        assert holder is not None and self.node.graph is not None
        node, index = holder
        array = self.shifted(shift)
        if optional(node, index) is not None:
            put(node, index, array, names)
            return
        tensor = ir.Tensor(array, name=names.fresh(f"{self.weight.name}_bias"))
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self.node.graph.register_initializer(value)
        node.resize_inputs(index + 1)
        node.replace_input_with(index, value)


def site(node: ir.Node) -> Site:
    """Return what ``node`` multiplies its input by.

    Raises:
        Decline: it is no product of activations with one dense constant matrix or kernel.
    """
    found = layer(node)
    tensor = constant_tensor(node.inputs[1])
    assert tensor is not None
    if found.shape[0] != 1:
        raise Decline(f"its channels lie in {found.shape[0]} groups")
    if attribute(node, "beta", 1.0) == 0 or attribute(node, "alpha", 1.0) == 0:
        raise Decline("it multiplies by 0")
    own = found.shape[1:]
    turned = found.axis == LAST and found.outputs_axis == 2
    return Site(node, own[::-1] if turned else own, tensor.dtype, turned, found.axis)
