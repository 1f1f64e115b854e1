"""Let a matrix product transpose and scale its operands by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import attribute, constant_tensor, is_constant, is_op, same_shape, scalar, used_once

MICROSOFT = "com.microsoft"
FLAGS = (("transA", "transBatchA"), ("transB", "transBatchB"))


class FuseMatmul(Rewrite):
    """Replace ``MatMul(Transpose(a), b) * c`` by onnxruntime's ``FusedMatMul(a, b, transA=1, alpha=c)``.

    ::

        MatMul(Transpose(a), b)    ->  FusedMatMul(a, b, transA = 1)         the last two axes are swapped
                                   ->  FusedMatMul(a, b, transBatchA = 1)    the first axis goes before the last
                                   ->  both                                  the first axis goes to the end
        MatMul(a * c, b)           ->  FusedMatMul(a, b, alpha = c)          c is one number
        MatMul(a, b) * c           ->  the same

    The same for b, and for a division by c. Both operands have two axes or more. A factor beside constant weights is
    not taken: it can be folded into them for nothing.

    Exact up to rounding. Source: onnxruntime's com.microsoft FusedMatMul, version 1.
    """

    family: ClassVar[str] = "linear"
    anchor = ("MatMul", f"{MICROSOFT}::FusedMatMul", "Mul", "Div")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the product that does more by itself."""
        if node.op_type in ("Mul", "Div") and not node.domain:
            return _scaled_output(node, tape)
        operands, extra = list(node.inputs), _attributes(node)
        for i, flags in enumerate(FLAGS):
            _read_around(operands, i, flags, extra, node)
        return None if operands == list(node.inputs) else _product(node, operands, extra, tape)


def _read_around(
    operands: list[ir.Value | None], i: int, flags: tuple[str, str], extra: dict[str, Any], matmul: ir.Node
) -> None:
    """Put what the operand is made of in its place, as far as the product can make it by itself."""
    while (value := operands[i]) is not None and (before := value.producer()) is not None:
        if before.graph is not matmul.graph:
            return
        plain = not extra[flags[0]] and not extra[flags[1]]
        if (
            is_op(before, "Transpose")
            and plain
            and (found := _transposes(before, operands[1 - i])) is not None
        ):
            extra[flags[0]], extra[flags[1]] = found
            operands[i] = before.inputs[0]
        elif is_op(before, "Mul", "Div") and (factor := _factor(before)) is not None:
            if not used_once(value) or any(is_constant(operand) for operand in operands):
                return
            _check_precision(value, factor[1])
            extra["alpha"] *= factor[1]
            operands[i] = factor[0]
        else:
            return


def _scaled_output(node: ir.Node, tape: Tape) -> ir.Value | None:
    found = _factor(node)
    matmul = found[0].producer() if found is not None else None
    if (
        found is None
        or matmul is None
        or not (is_op(matmul, "MatMul") or is_op(matmul, "FusedMatMul", domain=MICROSOFT))
    ):
        return None
    if any(is_constant(operand) for operand in matmul.inputs):
        return None
    if not used_once(found[0]):
        raise Decline(f"{found[0].name} is used elsewhere")
    if matmul.graph is not node.graph:
        return None
    _check_precision(found[0], found[1])
    extra = _attributes(matmul)
    extra["alpha"] *= found[1]
    return _product(matmul, list(matmul.inputs), extra, tape)


def _product(
    matmul: ir.Node, operands: list[ir.Value | None], extra: Mapping[str, Any], tape: Tape
) -> ir.Value:
    for value in operands:
        if value is None or value.shape is None or len(value.shape) < 2:
            raise Decline(f"{value.name if value else 'an operand'} is not known to have two axes")
    dtype = matmul.outputs[0].dtype
    if not tape.has("FusedMatMul", MICROSOFT, dtype):
        raise Decline(f"the target has no kernel for FusedMatMul on {dtype.name.lower() if dtype else '?'}")
    given = {name: value for name, value in extra.items() if value != (1.0 if name == "alpha" else 0)}
    return tape.op("FusedMatMul", operands, given, domain=MICROSOFT)


def _attributes(matmul: ir.Node) -> dict[str, Any]:
    flags = {name: attribute(matmul, name, 0) for pair in FLAGS for name in pair}
    return {**flags, "alpha": attribute(matmul, "alpha", 1.0)}


def _transposes(node: ir.Node, other: ir.Value | None) -> tuple[int, int] | None:
    """Return whether a Transpose is one of the last two axes, and whether one of the first axis with the batch.

    The kernel does the latter only where both operands of the product have the same rank.
    """
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    count = len(x.shape)
    perm = list(attribute(node, "perm", list(range(count))[::-1]))
    if perm == [*range(count - 2), count - 1, count - 2]:
        return 1, 0
    if count < 3 or other is None or other.shape is None or len(other.shape) != count:
        return None
    if perm == [*range(1, count - 1), 0, count - 1]:
        return 0, 1
    return (1, 1) if perm == [*range(1, count), 0] else None


def _factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return what a Mul or Div scales, and by what number; ``None`` where it is none."""
    for i in (0, 1) if node.op_type == "Mul" else (0,):
        x, c = node.inputs[i], node.inputs[1 - i]
        number = scalar(c)
        if x is None or number is None or is_constant(x) or not np.isfinite(number):
            continue
        tensor = constant_tensor(c)
        if tensor is not None and len(tensor.shape) and not same_shape(x, node.outputs[0]):
            continue
        if node.op_type == "Mul" or number:
            return x, float(number) if node.op_type == "Mul" else 1 / float(number)
    return None


def _check_precision(value: ir.Value, factor: float) -> None:
    """Decline where ``alpha``, which is a float, would lose digits of a factor of doubles."""
    if value.dtype == ir.DataType.DOUBLE and float(np.float32(factor)) != factor:
        raise Decline(f"the factor {factor:g} of {value.name} is a double, and alpha a float")
