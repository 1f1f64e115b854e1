"""Make one Gemm of a MatMul and the addition after it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt import Decline, Rewrite, Tape
from graphopt.query import is_op, rank, same_dim, same_shape, used_once


class FuseMatmulAdd(Rewrite):
    """Replace ``MatMul(x, w) + b`` by ``Gemm(x, w, b)``.

    ::

        x (M, K),  w (K, N):         MatMul(x, w) + b  ->  Gemm(x, w, b)
        x (..., M, K),  w (K, N):    MatMul(x, w) + b  ->  Reshape(Gemm(Reshape(x, (-1, K)), w, b), (..., M, N))

    The second form is an option: it saves a pass over memory and costs two nodes, or five where several sizes show at
    a run only. ``b`` is what Gemm broadcasts to the product without giving it another shape.

    Exact up to rounding. Source: ONNX MatMul-1, Add-7, Gemm-7.
    """

    flatten: bool = Field(False, description="also where x has more than two axes, between two Reshapes")

    family: ClassVar[str] = "linear"
    anchor = "Add"

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the Gemm that multiplies and adds."""
        for i in (0, 1):
            product, b = node.inputs[i], node.inputs[1 - i]
            matmul = product.producer() if product is not None else None
            if product is None or b is None or matmul is None or not is_op(matmul, "MatMul"):
                continue
            x, w = matmul.inputs
            if x is None or w is None or rank(w) != 2 or rank(x) < 2 or (rank(x) > 2 and not self.flatten):
                continue
            _check(matmul, b, node, tape)
            return tape.op("Gemm", [x, w, b]) if rank(x) == 2 else _flattened(x, w, b, tape)
        return None


def _check(matmul: ir.Node, b: ir.Value, add: ir.Node, tape: Tape) -> None:
    product = matmul.outputs[0]
    if not used_once(product):
        raise Decline(f"{product.name} is used elsewhere")
    if tape.opset < 7:
        raise Decline("Gemm broadcasts by itself from opset 7 on")
    if not tape.has("Gemm", "", product.dtype):
        raise Decline(
            f"the target has no kernel for Gemm on {product.dtype.name.lower() if product.dtype else '?'}"
        )
    if rank(b) > min(2, rank(product)):
        raise Decline(f"{b.name} is of rank {rank(b)}, and Gemm adds up to 2 axes")
    if rank(product) > 2 and rank(b) > 1:
        raise Decline(f"{b.name} is not one axis of the width of {product.name}")
    dims = list(b.shape or ())
    ends = list(product.shape or ())[rank(product) - len(dims) :]
    fits = all(m == 1 or same_dim(m, n) for m, n in zip(dims, ends, strict=True))
    if not fits or not (same_shape(product, add.outputs[0]) or all(m == 1 for m in dims)):
        raise Decline(f"{b.name} may give the result another shape than {product.name} has")


def _flattened(x: ir.Value, w: ir.Value, b: ir.Value, tape: Tape) -> ir.Value:
    """Return the Gemm between two Reshapes."""
    assert x.shape is not None and w.shape is not None, "the caller knows both ranks"
    k, n = w.shape
    if not isinstance(k, int) or not isinstance(n, int):
        raise Decline(f"the shape of {w.name} is not known")
    flat = tape.op("Reshape", [x, tape.constant(np.array([-1, k]), "rows")])
    gemm = tape.op("Gemm", [flat, w, b])
    leading = list(x.shape)[:-1]
    if sum(not isinstance(dim, int) for dim in leading) <= 1:
        sizes = [dim if isinstance(dim, int) else -1 for dim in leading]
        return tape.op("Reshape", [gemm, tape.constant(np.array([*sizes, n]), "sizes")])
    if tape.opset < 15:
        raise Decline("several sizes show at a run only, and Shape gives a part of them from opset 15 on")
    sizes_of = tape.op("Shape", [x], {"end": -1})
    sizes_then = tape.op("Concat", [sizes_of, tape.constant(np.array([n]), "width")], {"axis": 0})
    return tape.op("Reshape", [gemm, sizes_then])
