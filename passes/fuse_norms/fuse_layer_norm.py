"""Make one LayerNormalization or RMSNormalization of what it is written as."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import attribute, constant, constant_tensor, is_constant, is_op, optional, used_once

from ..fusion import Fusion, check_private
from .written import Written, written

NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


class FuseLayerNorm(Fusion):
    """Replace ``(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias`` by ``LayerNormalization(x)``.

    In steps, each of which stands on its own::

        d = x - mean(x);  d / sqrt(mean(d^2) + epsilon)    ->  LayerNormalization(x, ones)
        x / sqrt(mean(x^2) + epsilon)                      ->  RMSNormalization(x, ones)
        Norm(x, scale) * c                                 ->  Norm(x, scale * c)
        LayerNormalization(x, scale) + c                   ->  LayerNormalization(x, scale, c)
        Cast(Norm(Cast(x, float), scale), float16)         ->  Norm(x, scale)      it computes in float by itself

    The square may be Pow or a product, the quotient a product with a reciprocal or with a power of -1/2, the axes one
    or several trailing ones. LayerNormalization is ONNX's from opset 17 on, RMSNormalization from 23 on; below,
    onnxruntime has LayerNormalization and SimplifiedLayerNormalization in the same place.

    Exact up to rounding. Source: ONNX LayerNormalization-17 and RMSNormalization-23, y = d / sqrt(mean(d^2) + epsilon)
    * scale + bias, computed in float (stash_type 1); Ba, Kiros and Hinton, arXiv 1607.06450; Zhang and Sennrich, arXiv
    1910.07467.
    """

    family: ClassVar[str] = "normalizations"
    anchor = ("Div", "Mul", "Add", "Cast")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the normalization that ends in ``node``."""
        if node.op_type in ("Div", "Mul") and (found := written(node)) is not None:
            return self._make(node, found, tape)
        for i, value in enumerate(node.inputs[:2]):
            norm = value.producer() if value is not None else None
            if value is not None and is_op(norm, *NORMS) and norm is not None and norm.outputs[0] is value:
                if node.op_type == "Cast":
                    return _uncast(node, norm, tape)
                if len(node.inputs) == 2 and is_constant(node.inputs[1 - i]) and node.op_type != "Div":
                    return _with(node, norm, node.inputs[1 - i], tape)
        return None

    def _make(self, node: ir.Node, found: Written, tape: Tape) -> ir.Value:
        check_private(found.nodes, node)
        x, dtype = found.x, found.x.dtype
        if dtype is None or not dtype.is_floating_point():
            raise Decline(f"the type of {x.name} is not known to be a float")
        if dtype == ir.DataType.DOUBLE:
            raise Decline(f"{x.name} is double, and the operator computes in float")
        sizes = [dim for dim in list(x.shape or ())[-found.axes :] if isinstance(dim, int)]
        if len(sizes) != found.axes:
            raise Decline(f"the sizes of the last axes of {x.name}, {found.axes} in number, are not known")
        ones = np.ones(sizes, dtype.numpy())
        op_type = self._operator(found.centred, dtype, tape)
        attributes = {"axis": -found.axes, "epsilon": found.epsilon}
        return tape.op(op_type, [x, tape.constant(ones, f"{node.outputs[0].name}_scale", dtype)], attributes)

    def _operator(self, centred: bool, dtype: ir.DataType, tape: Tape) -> str:
        name, since = ("LayerNormalization", 17) if centred else ("RMSNormalization", 23)
        if self.may(tape, name, dtype, since=since):
            return name
        older = "LayerNormalization" if centred else "SimplifiedLayerNormalization"
        is_onnxruntime = tape.has("SkipLayerNormalization", "com.microsoft", dtype)
        if self.dialect == "target" and is_onnxruntime and tape.has(older, "", dtype):
            return older
        raise self.refusal(tape, name, dtype, since)


def _with(node: ir.Node, norm: ir.Node, c: ir.Value | None, tape: Tape) -> ir.Value | None:
    """Return ``norm`` with a factor in its scale, or with a bias."""
    bias = optional(norm, 2)
    if bias is not None or (node.op_type == "Add" and norm.op_type != "LayerNormalization"):
        return None
    scale, tensor = constant_tensor(norm.inputs[1]), constant_tensor(c)
    if scale is None or tensor is None or c is None:
        return None
    if tensor.dtype != scale.dtype or not _fits(tuple(tensor.shape), tuple(scale.shape), norm.inputs[0]):
        return None
    _check_alone(norm)
    if node.op_type == "Add":
        return tape.op(
            norm.op_type, [*norm.inputs[:2], _shaped(c, tuple(scale.shape), tape)], norm.attributes
        )
    s = constant(norm.inputs[1])
    if (s == 1).all():
        return tape.op(norm.op_type, [norm.inputs[0], _shaped(c, tuple(scale.shape), tape)], norm.attributes)
    product = (s.astype(np.float64) * constant(c).astype(np.float64).reshape(-1)).astype(s.dtype)
    name = norm.inputs[1].name if norm.inputs[1] is not None else None
    return tape.op(norm.op_type, [norm.inputs[0], tape.constant(product, name or "scale")], norm.attributes)


def _fits(shape: tuple[Any, ...], wanted: tuple[Any, ...], x: ir.Value | None) -> bool:
    """Return whether a constant has the shape of a scale, but for leading axes of size 1 that ``x`` has too."""
    extra = len(shape) - len(wanted)
    if extra > 0 and (x is None or x.shape is None or len(x.shape) < len(shape)):
        return False
    return extra >= 0 and shape[extra:] == wanted and all(dim == 1 for dim in shape[:extra])


def _shaped(c: ir.Value, shape: tuple[Any, ...], tape: Tape) -> ir.Value:
    array = constant_tensor(c)
    assert array is not None, "the caller found it constant"
    if tuple(array.shape) == shape and c.is_initializer():
        return c
    return tape.constant(constant(c).reshape(shape), c.name or "constant", array.dtype)


def _uncast(node: ir.Node, norm: ir.Node, tape: Tape) -> ir.Value | None:
    """Return the normalization of a narrower float without the casts around it."""
    x = norm.inputs[0]
    cast = x.producer() if x is not None else None
    if not is_op(cast, "Cast") or cast is None or x is None or x.dtype != ir.DataType.FLOAT:
        return None
    source = cast.inputs[0]
    narrow = ir.DataType(attribute(node, "to"))
    if attribute(norm, "stash_type", 1) != ir.DataType.FLOAT or source is None or source.dtype != narrow:
        return None
    if narrow not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return None
    _check_alone(norm)
    if not tape.has(norm.op_type, "", narrow):
        raise Decline(f"the target has no kernel for {norm.op_type} on {narrow.name.lower()}")
    parameters = [_narrowed(value, narrow, tape) for value in norm.inputs[1:]]
    return tape.op(norm.op_type, [source, *parameters], norm.attributes)


def _narrowed(value: ir.Value | None, dtype: ir.DataType, tape: Tape) -> ir.Value | None:
    if value is None:
        return None
    wide = constant(value)
    narrow = wide.astype(dtype.numpy())
    if not np.array_equal(narrow.astype(wide.dtype), wide):
        raise Decline(f"{value.name} loses digits as {dtype.name.lower()}")
    return tape.constant(narrow, value.name or "constant", dtype)


def _check_alone(norm: ir.Node) -> None:
    """Decline where something else reads what ``norm`` makes."""
    if not used_once(norm.outputs[0]):
        raise Decline(f"{norm.outputs[0].name} is used elsewhere")
    if any(value.uses() or value.is_graph_output() for value in norm.outputs[1:]):
        raise Decline("the statistics of the normalization are used")
