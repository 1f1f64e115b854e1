"""Multiply-accumulates of one node, by operator.

Counted is what grows with a product of three or more dimensions: convolutions, matrix products, attention and
recurrent cells. Elementwise operators, normalizations, pools, softmax and interpolation count as nothing. A kernel
counts as dense: padding is multiplied like data, and zeros in weights are multiplied like other numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import onnx_ir as ir

from ..query import attribute, optional

Shape = tuple[int, ...]
ShapeOf = Callable[[ir.Value | None], Shape]
"""Returns the shape of a value in numbers, or raises :class:`Unknown`."""
Formula = Callable[[ir.Node, ShapeOf], int]


class Unknown(Exception):
    """A shape that a formula needs is not known."""


def macs(node: ir.Node, shape: ShapeOf) -> int:
    """Return the multiply-accumulates of one run of ``node``, without those of its subgraphs.

    Raises:
        Unknown: a shape that decides is not known.
    """
    formula = FORMULAS.get((node.domain, node.op_type))
    if formula is None:
        return 0
    try:
        return formula(node, shape)
    except (IndexError, ValueError) as error:
        raise Unknown(str(error)) from error


def _conv(weight: int) -> Formula:
    def formula(node: ir.Node, shape: ShapeOf) -> int:
        """Conv-22, ConvInteger-10, QLinearConv-10, DeformConv-22; W is (M, C/group, *kernel), Y is (N, M, *out).

        ::

            MACs = N * M * prod(out) * C/group * prod(kernel) = |Y| * |W| / M
        """
        return math.prod(shape(node.outputs[0])) * math.prod(shape(node.inputs[weight])[1:])

    return formula


def _conv_transpose(node: ir.Node, shape: ShapeOf) -> int:
    """ConvTranspose-22; W is (C, M/group, *kernel), X is (N, C, *in); what pads cut off is counted too.

    ::

        MACs = N * C * prod(in) * M/group * prod(kernel) = |X| * |W| / C
    """
    return math.prod(shape(node.inputs[0])) * math.prod(shape(node.inputs[1])[1:])


def _gemm(node: ir.Node, shape: ShapeOf) -> int:
    """Gemm-13; A' is (M, K), B' is (K, N), transposed where transA, transB say so; alpha, beta and C are free.

    ::

        MACs = M * N * K
    """
    m, k = shape(node.inputs[0])[:: -1 if attribute(node, "transA", 0) else 1]
    return m * k * shape(node.inputs[1])[0 if attribute(node, "transB", 0) else 1]


def _matmul(node: ir.Node, shape: ShapeOf) -> int:
    """MatMul-13, MatMulInteger-10, QLinearMatMul-21, and the runtime's fused forms; A is (*batch, M, K).

    Batch dimensions of A and B broadcast; Y has them broadcast. ::

        MACs = prod(batch) * M * N * K = |Y| * K
    """
    a = shape(node.inputs[0])
    k = a[-2] if attribute(node, "transA", 0) and len(a) > 1 else a[-1]
    return math.prod(shape(node.outputs[0])) * k


def _attention(node: ir.Node, shape: ShapeOf) -> int:
    """Attention-23; Q is (B, Hq, L, D) or (B, L, Hq * D), keys have S positions (past ones too), values E channels.

    ::

        MACs = B * Hq * L * S * (D + E)        (Q K^T, then the weighted sum of V)
    """
    q, k, v = (shape(value) for value in node.inputs[:3])
    if len(q) == 3:
        hq, hk = attribute(node, "q_num_heads", 1), attribute(node, "kv_num_heads", 1)
        q, k, v = (_split(s, heads) for s, heads in ((q, hq), (k, hk), (v, hk)))
    past = optional(node, 4)
    s = k[2] + (shape(past)[2] if past is not None else 0)
    return q[0] * q[1] * q[2] * s * (q[3] + v[3])


def _split(shape: Shape, heads: int) -> Shape:
    batch, length, width = shape
    return batch, heads, length, width // heads


def _multi_head_attention(node: ir.Node, shape: ShapeOf) -> int:
    """com.microsoft.MultiHeadAttention-1, not packed; Q is (B, L, D), K is (B, S, D), V is (B, S, E).

    ::

        MACs = B * L * S * (D + E)
    """
    (b, length, d), k, v = (shape(optional(node, i)) for i in range(3))
    return b * length * k[1] * (d + v[-1])


def _recurrent(node: ir.Node, shape: ShapeOf) -> int:
    """LSTM-22, GRU-22, RNN-22; X holds T steps of B rows, W is (directions, gates * H, I), R the same with H for I.

    Peepholes are elementwise. ::

        MACs = T * B * (|W| + |R|)
    """
    steps, batch = shape(node.inputs[0])[:2]
    return steps * batch * sum(math.prod(shape(node.inputs[i])) for i in (1, 2))


def _matmul_n_bits(node: ir.Node, shape: ShapeOf) -> int:
    """com.microsoft.MatMulNBits-1; A is (*batch, M, K), the packed B stands for (K, N).

    ::

        MACs = prod(batch) * M * K * N
    """
    return math.prod(shape(node.inputs[0])) * int(attribute(node, "N", 0))


def _einsum(node: ir.Node, shape: ShapeOf) -> int:
    """Einsum-12; operands are contracted from left to right, an index is summed as soon as nothing later needs it.

    One contraction of two operands, over the union of their indices::

        MACs = prod(size of each index of either operand)
    """
    terms, output = _parse(attribute(node, "equation", ""), [shape(value) for value in node.inputs])
    sizes: dict[str, int] = {}
    for term, dims in terms:
        for label, size in zip(term, dims, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    total, left = 0, set(terms[0][0])
    for i, (term, _) in enumerate(terms[1:], 2):
        union = left | set(term)
        total += math.prod(sizes[label] for label in union)
        left = union & set(output).union(*(later for later, _ in terms[i:]))
    return total


def _parse(equation: str, shapes: Sequence[Shape]) -> tuple[list[tuple[list[str], Shape]], list[str]]:
    """Return the indices of each operand with its shape, and those of the output; ``...`` is expanded."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = []
    for text, dims in zip(left.split(","), shapes, strict=True):
        spread = len(dims) - len(text.replace("...", ""))
        terms.append((_labels(text, spread), dims))
    widest = max(sum(label.startswith(".") for label in term) for term, _ in terms)
    if arrow:
        return terms, _labels(right, widest)
    seen = Counter(label for term, _ in terms for label in term)
    return terms, [label for label, times in seen.items() if times == 1 or label.startswith(".")]


def _labels(text: str, spread: int) -> list[str]:
    before, dots, after = text.partition("...")
    return [*before, *(f".{i}" for i in range(spread, 0, -1) if dots), *after]


MICROSOFT = "com.microsoft"
FORMULAS: dict[tuple[str, str], Formula] = {
    ("", "Conv"): _conv(1),
    ("", "ConvInteger"): _conv(1),
    ("", "DeformConv"): _conv(1),
    ("", "QLinearConv"): _conv(3),
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("", "MatMulInteger"): _matmul,
    ("", "QLinearMatMul"): _matmul,
    ("", "Attention"): _attention,
    ("", "LSTM"): _recurrent,
    ("", "GRU"): _recurrent,
    ("", "RNN"): _recurrent,
    ("", "Einsum"): _einsum,
    (MICROSOFT, "FusedConv"): _conv(1),
    (MICROSOFT, "FusedGemm"): _gemm,
    (MICROSOFT, "FusedMatMul"): _matmul,
    (MICROSOFT, "DynamicQuantizeMatMul"): _matmul,
    (MICROSOFT, "MatMulIntegerToFloat"): _matmul,
    (MICROSOFT, "MatMulNBits"): _matmul_n_bits,
    (MICROSOFT, "MultiHeadAttention"): _multi_head_attention,
}
"""Operators that multiply matrices, each with its formula."""
