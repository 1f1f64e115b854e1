"""Convolutions and matrix products."""

from __future__ import annotations

import onnx_ir as ir

from ....query import attribute, is_constant, optional
from ..atoms import Labels, never
from ..edits import Count
from ..flow import Axes, Flow, Refuse, Rule, broadcast, prod


def conv(node: ir.Node, flow: Flow) -> None:
    """Conv-22: x (N, C, …), W (M, C/g, …), b (M,) make (N, M, …); the runtime's FusedConv adds z (N, M, …)."""
    x, w = flow.of(node.inputs[0]), flow.of(node.inputs[1])
    groups = attribute(node, "group", 1)
    _channels(node, flow, x[1], w[0], w[1], groups)
    if (bias := optional(node, 2)) is not None:
        flow.vector(bias, w[0])
    shape = flow.shape(node.outputs[0])
    made = [x[0], w[0], *(never(n) for n in shape[2:])]
    if (added := optional(node, 3)) is not None:
        broadcast(flow, [made, flow.of(added)])
    _spatial(flow, x, w)
    flow.multiplies(node, prod(shape[2:]) * prod(map(len, w[2:])), x[0], w[0], w[1])
    flow.give(node.outputs[0], made)


def conv_transpose(node: ir.Node, flow: Flow) -> None:
    """ConvTranspose-22: x (N, C, …), W (C, M/g, …), b (M,) make (N, M, …)."""
    x, w = flow.of(node.inputs[0]), flow.of(node.inputs[1])
    groups = attribute(node, "group", 1)
    made = w[1]
    if groups > 1:
        rows, _ = flow.atoms.grid(x[1], (groups, len(x[1]) // groups))
        flow.edit(Count(node, "group", rows))
        made = flow.atoms.merge([rows, w[1]])
    flow.tie(x[1], w[0])
    flow.source(node, made)
    if (bias := optional(node, 2)) is not None:
        flow.vector(bias, made)
    _spatial(flow, x, w)
    flow.multiplies(node, prod(map(len, (*x[2:], *w[2:]))), x[0], w[0], w[1])
    flow.give(node.outputs[0], [x[0], made, *(never(n) for n in flow.shape(node.outputs[0])[2:])])


def _channels(node: ir.Node, flow: Flow, x: Labels, m: Labels, c: Labels, groups: int) -> None:
    """Tie the channels that a convolution reads, (C,), with its weights, (M, C/g)."""
    if groups == 1:
        flow.tie(x, c)
    else:
        rows, within = flow.atoms.grid(x, (groups, len(x) // groups))
        flow.tie(within, c)
        made, _ = flow.atoms.grid(m, (groups, len(m) // groups))
        flow.tie(rows, made)
        flow.edit(Count(node, "group", rows))
        if len(x) == groups == len(m):
            return  # depthwise: it makes no channels of its own
    flow.source(node, m)


def _spatial(flow: Flow, x: Axes, w: Axes) -> None:
    for labels in (*x[2:], *w[2:]):
        flow.freeze(labels, "a convolution slides along it")


def gemm(node: ir.Node, flow: Flow) -> None:
    """Gemm-13: A' (M, K), B' (K, N), C broadcast to (M, N); transposed where transA, transB say so."""
    a, b = flow.of(node.inputs[0]), flow.of(node.inputs[1])
    a = a[::-1] if attribute(node, "transA", 0) else a
    b = b[::-1] if attribute(node, "transB", 0) else b
    _product(node, flow, a, b, 0 if attribute(node, "transA", 0) else 1)
    made = [a[0], b[1]]
    if (c := optional(node, 2)) is not None:
        broadcast(flow, [made, flow.of(c)])
    flow.give(node.outputs[0], made)


def matmul(node: ir.Node, flow: Flow) -> None:
    """MatMul-13: A (…, M, K), B (…, K, N); a vector has no M, or no N. The runtime's FusedMatMul transposes."""
    a, b = flow.of(node.inputs[0]), flow.of(node.inputs[1])
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        raise Refuse("it transposes batches")
    left = [never(1), *a] if len(a) == 1 else a
    right = [*b, never(1)] if len(b) == 1 else b
    if attribute(node, "transA", 0):
        left = [*left[:-2], left[-1], left[-2]]
    if attribute(node, "transB", 0):
        right = [*right[:-2], right[-1], right[-2]]
    _product(node, flow, left, right, len(a) - (2 if attribute(node, "transA", 0) else 1))
    batch = broadcast(flow, [left[:-2], right[:-2]]) if max(len(left), len(right)) > 2 else []
    rows = [] if len(a) == 1 else [left[-2]]
    flow.give(node.outputs[0], [*batch, *rows, *([] if len(b) == 1 else [right[-1]])])


def _product(node: ir.Node, flow: Flow, a: Axes, b: Axes, axis: int) -> None:
    """Tie what is summed over, and say which channels are made from weights."""
    flow.tie(a[-1], b[-2])
    first, second = (is_constant(value) for value in node.inputs[:2])
    if second:
        flow.source(node, b[-1])
    if first:
        flow.source(node, a[-2])
    if not first and not second:
        flow.contracted.append((node, 0, axis))
    flow.multiplies(node, 1, a[-2], a[-1], b[-1], *_widest(a[:-2], b[:-2]))


def _widest(a: Axes, b: Axes) -> Axes:
    """Return the batch axes of a product."""
    rank = max(len(a), len(b))
    both = [[each[i] for each in (a, b) if len(each) >= -i] for i in range(-rank, 0)]
    return [max(along, key=len) for along in both]


def einsum(node: ir.Node, flow: Flow) -> None:
    """Einsum-12 with an output that is written out: axes of one letter go together."""
    equation = attribute(node, "equation")
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    left, arrow, result = text.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "..." in text or any(len(set(term)) < len(term) for term in terms):
        raise Refuse("its equation leaves something implied, or takes a diagonal")
    letters: dict[str, Axes] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        for letter, labels in zip(term, flow.of(value), strict=True):
            letters.setdefault(letter, []).append(labels)
    for along in letters.values():
        for other in along[1:]:
            flow.tie(along[0], other)
    axes = {letter: max(along, key=len) for letter, along in letters.items()}
    for term, value in zip(terms, node.inputs, strict=True):
        for letter in term if is_constant(value) else "":
            if letter in result and len(letters[letter]) == 1:
                flow.source(node, axes[letter])
    weighed = {c for term, value in zip(terms, node.inputs, strict=True) if is_constant(value) for c in term}
    for letter in set(left) - {",", *result} - weighed:
        index = next(i for i, term in enumerate(terms) if letter in term)
        flow.contracted.append((node, index, terms[index].index(letter)))
    flow.multiplies(node, 1, *axes.values())
    flow.give(node.outputs[0], [axes[letter] for letter in result])


RULES: dict[tuple[str, str], Rule] = {
    ("", "Conv"): conv,
    ("com.microsoft", "FusedConv"): conv,
    ("", "ConvTranspose"): conv_transpose,
    ("", "Gemm"): gemm,
    ("com.microsoft", "FusedGemm"): gemm,
    ("", "MatMul"): matmul,
    ("com.microsoft", "FusedMatMul"): matmul,
    ("", "Einsum"): einsum,
}
