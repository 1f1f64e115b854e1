"""Fuse scaled dot-product attention into one operator."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt import Decline, Rewrite, Tape
from graphopt.query import describe, is_op

from .bias import Bias
from .heads import Heads, ungrouped
from .layout import HEADS
from .operands import Rows
from .scores import Reader, Scores, check_softmax, softmax_of

MICROSOFT = "com.microsoft"
SMALLEST = 1e-30
"""A scale below may be 0 in float32, which onnxruntime takes for none given."""


class FuseAttention(Rewrite):
    """Replace ``MatMul(Softmax(scale * MatMul(q, kT) + bias), v)`` by one operator for attention.

    With ``B`` batch, ``H`` heads, ``S`` rows of queries, ``T`` of keys and values, widths ``D`` and ``E`` of a head::

        q (B, H, S, D), k (B, H, T, D), v (B, H, T, E)  ->  query (B, S, H*D), key (B, T, H*D), value (B, T, H*E)
        scale = product of the factors on q, on k and on the scores
        bias  = sum of the masks and biases, each times the factors after it    (B or 1, H or 1, S, T)

    Queries, keys and values are read where they lie in the order of the right side, however they were reshaped,
    transposed, scaled and taken out of one packed tensor since. A mask that has one row for all is repeated.
    A mask of sizes that show at a run only is taken to fit the scores; a run refuses one that does not.
    ``Where(mask, scores, c)`` with ``c <= -1e30`` is the bias ``Where(mask, 0, c)``.

    A guard ``Where(IsNaN(weights), 0, weights)`` is for queries that may see no key: their scores are all -inf, and
    softmax makes them not a number. Where the bias is known to be finite there are none, and the guard goes; else it
    is put on the result instead, which is 0 for those queries either way. Exact up to rounding wherever ``q``, ``k``,
    ``v`` and the scores before the bias are finite.

    The operator is ``com.microsoft::MultiHeadAttention`` where the target has it, or ONNX's ``Attention``. Of keys and
    values that heads share, repeated by ``Reshape(Expand(Unsqueeze(k)))``, the latter takes each once, the former the
    repeated ones. Not ``GroupQueryAttention``, which is causal in any case and wants lengths instead of a mask.

    onnxruntime's ``Attention`` gives 0 where all of a mask is the lowest number there is, the average of the values
    where it is the next one: masks that may hold the lowest are kept off it.
    Source: onnxruntime ContribOperators, MultiHeadAttention-1 and its kernel for CPUs (rows without keys give what is
    not a number, biases do not broadcast along rows and keys); ONNX Attention-23 and 24.
    """

    dialect: Literal["target", "standard"] = Field(
        "target", description="`standard`: ONNX's Attention (opset 23), which runs elsewhere too"
    )

    family: ClassVar[str] = "attention"
    anchor = ("MatMul", "Softmax")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the attention that ``node``, the product of the weights and the values, is the last step of."""
        if node.op_type == "Softmax":
            _check_unused(node, tape)
            return None
        weights, v = node.inputs
        found = softmax_of(weights)
        if found is None or weights is None or v is None:
            return None
        softmax, guarded = found
        check_softmax(softmax, weights, guarded)
        scores = Reader(tape.shapes().is_named).read(softmax.inputs[0])
        heads = Heads.of(scores.matmul, v)
        domain = self._domain(tape, heads.dtype)

        rows = Rows(tape)
        y = _attention(tape, rows, heads, scores, domain, guarded)
        result = rows.by_heads(heads.of_result, y, heads.result)
        result.type, result.shape = ir.TensorType(heads.dtype), heads.result_shape
        return result

    def _domain(self, tape: Tape, dtype: ir.DataType) -> str:
        """Return the domain of the operator to make."""
        if self.dialect == "target" and tape.has("MultiHeadAttention", MICROSOFT, dtype):
            return MICROSOFT
        if tape.opset < 23:
            raise Decline(f"ONNX has Attention since opset 23, this is opset {tape.opset}")
        if not tape.has("Attention", "", dtype):
            raise Decline("the target has no attention of this type")
        return ""


def _check_unused(softmax: ir.Node, tape: Tape) -> None:
    """Decline where ``softmax`` is over scores, but no product with values follows that has the word instead."""
    result = softmax.outputs[0]
    readers = result.consumers()
    weights = [result, *(reader.outputs[0] for reader in readers if is_op(reader, "Where"))]
    if any(is_op(reader, "MatMul") for value in weights for reader in value.consumers()):
        return
    try:
        Reader(tape.shapes().is_named).read(softmax.inputs[0])
    except Decline:
        return
    raise Decline(
        f"no MatMul multiplies its weights {result.name} with values, but {describe(readers) or 'none'}"
    )


def _attention(tape: Tape, rows: Rows, heads: Heads, scores: Scores, domain: str, guarded: bool) -> ir.Value:
    """Record the operator; its result is of shape (batch, rows, heads * width)."""
    q, k, v = heads.operands()
    if domain != MICROSOFT:
        k, v = ungrouped(k, v)
    if domain == MICROSOFT and k.by_tokens is None and k.by_heads and v.by_heads and heads.one_width:
        k_view, key_dim = k.by_heads, 2
        key, value = k_view.value, v.by_heads.value
    else:
        k_view, key_dim = k.best, 1
        key, value = rows.record(k.axes, k_view), rows.record(v.axes, v.best)
    query = rows.record(q.axes, q.best)
    scale = scores.factor * q.best.factor * k_view.factor
    if not SMALLEST < abs(scale) < 1 / SMALLEST:
        raise Decline(f"its scale is {scale:g}")

    bias = Bias(tape, heads.of_scores, heads.dtype, query, key, key_dim)
    total, finite = bias.record(scores), bias.finite(scores)
    if domain == MICROSOFT:
        operands = [query, key, value, *([None, None, total] if total is not None else [])]
        attributes = {"num_heads": heads.heads.number, "scale": scale}
        y = tape.op("MultiHeadAttention", operands, attributes, domain=MICROSOFT)
    elif finite or guarded:
        if scale < 0:
            raise Decline(f"its scale is {scale:g}, and the kernel takes what is above 0")
        total = bias.above_lowest(scores, total) if finite else total
        operands = [query, key, value, *([total] if total is not None else [])]
        counts = {"q_num_heads": heads.heads.number, "kv_num_heads": k.axes[HEADS].number}
        y = tape.op("Attention", operands, {**counts, "scale": scale})
    else:
        raise Decline("queries without keys give what is not a number here, and 0 in Attention")
    if guarded and not finite:
        zero = tape.constant(np.array(0, heads.dtype.numpy()), "zero")
        y = tape.op("Where", [tape.op("IsNaN", [y]), zero, y])
    return y
