"""Conv, ConvTranspose, Gemm and MatMul seen as one thing: a linear layer that takes in a scale and a shift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import (
    attribute,
    constant,
    constant_tensor,
    is_constant,
    is_op,
    optional,
    rank,
    static_shape,
)

Array = np.ndarray[Any, Any]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

SMALLEST_NORMAL = {
    ir.DataType.FLOAT16: 2.0**-14,
    ir.DataType.BFLOAT16: 2.0**-126,
    ir.DataType.FLOAT: 2.0**-126,
    ir.DataType.DOUBLE: 2.0**-1022,
}
"""The types that layers compute in, and from where down their numbers lose precision."""


@dataclass(frozen=True)
class Affine:
    """``k * x + t``, element by element; both are float64 and broadcast against ``x`` as numpy does."""

    k: Array
    t: Array


class Layer:
    """``y = alpha * L(x, w) + beta * b``: linear in ``x`` and in ``w``; ``alpha = beta = 1`` but for Gemm.

    ``w`` is viewed with the output channels O and the input channels I on axes of their own::

        Conv           (group, O/group, I/group, *kernel)
        ConvTranspose  (group, I/group, O/group, *kernel)
        Gemm, MatMul   (batch, I, O); (batch, O, I) where it is transposed, or stands on the left of x

    Source: ONNX Conv-22, ConvTranspose-22, Gemm-13, MatMul-13.
    """

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.conv = node.op_type in ("Conv", "ConvTranspose")
        self.gemm = node.op_type == "Gemm"
        self.left = node.op_type == "MatMul" and not is_constant(node.inputs[1])
        x, w = node.inputs[1::-1] if self.left else node.inputs[:2]
        assert x is not None and w is not None, "the first two inputs of a layer are not optional"
        self.x, self.w = x, w
        self.b = optional(node, 2)
        self.groups: int = attribute(node, "group", 1) if self.conv else 1
        self.alpha: float = attribute(node, "alpha", 1.0) if self.gemm else 1.0
        self.beta: float = attribute(node, "beta", 1.0) if self.gemm else 1.0
        outputs_first = node.op_type == "Conv" or self.left or (self.gemm and attribute(node, "transB", 0))
        self.o, self.i = (1, 2) if outputs_first else (2, 1)
        """Axes of the output and of the input channels in the view of ``w``."""
        self.y_axis = 1 if self.conv else -2 if self.left else -1
        self.x_axis = -2 if self.gemm and attribute(node, "transA", 0) else self.y_axis
        """Axes of the channels in ``y`` and in ``x``."""

    @cached_property
    def view(self) -> tuple[int, ...]:
        """Shape of the view of ``w`` that the docstring of the class gives."""
        tensor = constant_tensor(self.w)
        shape = tensor.shape.numpy() if tensor is not None else static_shape(self.w)
        if len(shape) < 2:
            raise Decline(f"{self.w.name} has no axis of channels")
        if self.conv:
            return (self.groups, shape[0] // self.groups, *shape[1:])
        return (math.prod(shape[:-2]), *shape[-2:])

    @cached_property
    def dtype(self) -> ir.DataType:
        """Type of the weights, and so of the bias."""
        tensor = constant_tensor(self.w)
        dtype = tensor.dtype if tensor is not None else self.w.dtype
        if dtype is None or dtype not in SMALLEST_NORMAL:
            raise Decline(
                f"{self.w.name} is {'untyped' if dtype is None else dtype.name.lower()}, not a float"
            )
        return dtype

    def rank(self, value: ir.Value) -> int:
        """Return the number of dimensions of the layer's input or output."""
        return len(self.view) - 1 if self.conv else 2 if self.gemm else rank(value)

    def takes(self, x: ir.Value, affine: Affine) -> bool:
        """Return whether ``x`` is known to have the shape of ``k * x + t``, which is the input of this layer."""
        varying = affine.k if affine.k.ndim else affine.t
        if varying.size == 1 and (varying.ndim == 0 or varying.ndim < self.rank(self.x)):
            return True
        if x.shape is None or len(x.shape) != self.rank(self.x):
            return False
        return varying.size == 1 or x.shape[self.x_axis] == self._count(self.i)

    def after(self, affine: Affine, tape: Tape) -> ir.Value:
        """Record ``k * y + t`` as one layer and return its value.

        With ``k`` and ``t`` per output channel::

            w' = k * w             (as w)
            b' = k * beta * b + t  (O,), or as Gemm's b
        """
        y = self.node.outputs[0]
        k, t = (self._per_channel(a, self.o, self.y_axis, y) for a in (affine.k, affine.t))
        if self._prefers_factors(k, t):
            return self._record(tape, self.x, self.w, self.b, self.alpha * float(k), self.beta * float(k))
        w = self._scaled(k, self.o, tape)
        if (k == 1).all() and not t.any():
            return self._record(tape, self.x, w, self.b, self.alpha, self.beta)
        return self._record(tape, self.x, w, self._bias(k * self._old_bias() + t, tape), self.alpha)

    def before(self, affine: Affine, x: ir.Value, tape: Tape) -> ir.Value:
        """Record the layer of ``k * x + t`` as a layer of ``x`` and return its value.

        With ``k`` and ``t`` per input channel, and the sum over input channels and kernel::

            w' = k * w                          (as w)
            b' = beta * b + alpha * sum(w * t)  (O,), or as Gemm's b
        """
        k, t = (self._per_channel(a, self.i, self.x_axis, self.x) for a in (affine.k, affine.t))
        if t.any():
            self._check_borders()
        if self._prefers_factors(k, t):
            return self._record(tape, x, self.w, self.b, self.alpha * float(k), self.beta)
        w = self._scaled(k, self.i, tape)
        if not t.any():
            return self._record(tape, x, w, self.b, self.alpha, self.beta)
        b = self._bias(self._old_bias() + self.alpha * self._summed(t), tape)
        return self._record(tape, x, w, b, self.alpha)

    def _count(self, channels: int) -> int:
        """Return how many channels an axis of the view counts, in all groups."""
        return self.view[channels] * (self.groups if self.conv else 1)

    def _per_channel(self, a: Array, channels: int, axis: int, value: ir.Value) -> Array:
        """Return ``a`` as one number, or as one number for each channel of ``value``."""
        if a.ndim == 0:
            return a
        dims = self.rank(value)
        shape = (1,) * (dims - a.ndim) + a.shape
        count = self._count(channels)
        if len(shape) > dims or dims < -axis or shape[axis] not in (1, count) or a.size != shape[axis]:
            raise Decline(
                f"shape {list(a.shape)} is not one number for each of the {count} channels of {value.name}"
            )
        return a.reshape(() if a.size == 1 else -1)

    def _check_borders(self) -> None:
        """Decline where zeros beside the input take part in the output: a shift of the input is not theirs."""
        if self.node.op_type == "ConvTranspose":
            raise Decline("a shift before ConvTranspose is uneven at its borders")
        if self.node.op_type != "Conv":
            return
        auto_pad: str = attribute(self.node, "auto_pad", "NOTSET")
        pads: list[int] = attribute(self.node, "pads", [])
        if auto_pad.startswith("SAME") and any(size > 1 for size in self.view[3:]):
            raise Decline(
                f"auto_pad {auto_pad} pads with zeros, which a shift before the Conv does not reach"
            )
        if auto_pad == "NOTSET" and any(pads):
            raise Decline(f"pads {pads} are zeros, which a shift before the Conv does not reach")

    def _prefers_factors(self, k: Array, t: Array) -> bool:
        """Return whether one number for all channels goes into Gemm's alpha and beta: its weights cannot take it."""
        if not self.gemm or k.ndim or t.any():
            return False
        alone = is_constant(self.w) and self._unshared() and (self.b is None or is_constant(self.b))
        factors = np.array([self.alpha, self.beta]) * k
        exact = self.dtype != ir.DataType.DOUBLE or bool((factors == factors.astype(np.float32)).all())
        return not alone and exact and bool((np.abs(factors) < np.finfo(np.float32).max).all())

    def _unshared(self) -> bool:
        return len(self.w.uses()) == 1 and not self.w.is_graph_output()

    def _scaled(self, k: Array, channels: int, tape: Tape) -> ir.Value:
        """Return ``k * w``, computed in float64 and rounded once; ``w`` itself where ``k`` is one."""
        dtype = self.dtype
        if (k == 1).all():
            return self.w
        w = constant(self.w)
        if not self._unshared():
            raise Decline(f"{self.w.name} is used elsewhere")
        scaled = np.empty(w.shape, w.dtype)
        along = [1] * len(self.view)
        along[0], along[channels] = self.groups, -1
        with np.errstate(all="ignore"):
            np.multiply(
                w.reshape(self.view),
                k.reshape(along) if k.ndim else k,
                out=scaled.reshape(self.view),
                dtype=np.float64,
                casting="unsafe",
            )
        largest = _largest(scaled)
        if not np.isfinite(largest):
            raise Decline(f"{self.w.name} times the scale overflows {dtype.name.lower()}")
        if largest < SMALLEST_NORMAL[dtype] and k.any() and w.any():
            raise Decline(f"{self.w.name} times the scale underflows {dtype.name.lower()}")
        return tape.constant(scaled, self.w.name or "weight")

    def _summed(self, t: Array) -> Array:
        """Return the sum of ``w * t`` over the input channels and the kernel, for each output channel."""
        if self.view[0] != self.groups:
            raise Decline(f"{self.w.name} is a batch of matrices, which takes no bias")
        w = constant(self.w)
        shift = np.broadcast_to(t.reshape(self.groups, -1) if t.ndim else t, (self.groups, self.view[self.i]))
        terms = "goik,gi->go" if self.o == 1 else "giok,gi->go"
        view = w.reshape(*self.view[:3], -1)
        summed: Array = np.einsum(terms, view, shift, dtype=np.float64, casting="unsafe")
        return summed.reshape(-1)

    def _old_bias(self) -> Array:
        """Return ``beta * b``."""
        if self.b is None or self.beta == 0:
            return np.zeros(())
        return self.beta * constant(self.b).astype(np.float64)

    def _bias(self, b: Array, tape: Tape) -> ir.Value | None:
        """Record a bias, rounded once; none where there was none and it is zero."""
        if self.b is None and not b.any():
            return None
        channels = self._count(self.o)
        old = constant_tensor(self.b)
        if b.size > max(channels, old.size if old is not None else 0):
            raise Decline(f"its bias would grow to shape {list(b.shape)}")
        if not self.gemm:
            b = np.broadcast_to(b, (channels,)).reshape((-1, 1) if self.left else (-1,))
        with np.errstate(all="ignore"):
            rounded = b.astype(self.dtype.numpy())
        if not np.isfinite(_largest(rounded)):
            raise Decline(f"the new bias overflows {self.dtype.name.lower()}")
        return tape.constant(rounded, self._bias_name())

    def _bias_name(self) -> str:
        """Return the old bias's name where it belongs to this layer, else ``conv1.bias`` beside ``conv1.weight``."""
        w, old = self.w.name or "", self.b.name if self.b is not None and len(self.b.uses()) == 1 else None
        module = w.removesuffix("weight")
        if old and (module == w or old.startswith(module)):
            return old
        return f"{w}_bias" if module == w else f"{module}bias"

    def _record(
        self,
        tape: Tape,
        x: ir.Value,
        w: ir.Value,
        b: ir.Value | None,
        alpha: float,
        beta: float = 1.0,
    ) -> ir.Value:
        """Record the layer with other inputs."""
        operands = [w, x] if self.left else [x, w]
        if self.node.op_type == "MatMul":
            return self._matmul(tape, operands, b)
        attributes: dict[str, Any] = dict(self.node.attributes)
        if self.gemm:
            attributes = {n: a for n, a in attributes.items() if n not in ("alpha", "beta")}
            attributes |= {"alpha": alpha} if alpha != 1.0 else {}
            attributes |= {"beta": beta} if beta != 1.0 and b is not None else {}
            if b is not self.b and tape.opset < 7:
                attributes["broadcast"] = 1
        return tape.op(self.node.op_type, operands if b is None else [*operands, b], attributes)

    def _matmul(self, tape: Tape, operands: list[ir.Value], b: ir.Value | None) -> ir.Value:
        """Record a MatMul; with a bias, a Gemm where both operands are matrices, else an Add behind it."""
        if b is None:
            return tape.op("MatMul", operands)
        if tape.opset < 7:
            raise Decline(f"a bias behind MatMul is not folded at opset {tape.opset}")
        if self.rank(self.x) == self.rank(self.w) == 2:
            return tape.op("Gemm", [*operands, b])
        return tape.op("Add", [tape.op("MatMul", operands), b])


def _largest(array: Array) -> float:
    """Return the largest magnitude; NaN where there is a NaN."""
    return float(max(abs(float(array.max())), abs(float(array.min())))) if array.size else 0.0


def is_fed_by(node: ir.Node, *op_types: str) -> bool:
    """Return whether one of ``op_types`` makes an operand of the layer ``node``."""
    return any(value is not None and is_op(value.producer(), *op_types) for value in node.inputs[:2])


def check_same_graph(first: ir.Node, second: ir.Node) -> None:
    """Decline where a fold would move ``first`` into a subgraph, which may run often or never."""
    if first.graph is not second.graph:
        raise Decline(f"{first.outputs[0].name} is computed outside of the subgraph")
