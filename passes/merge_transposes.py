"""Merge transposes with each other and into Gemm."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import attribute, is_op


class MergeTransposes(Rewrite):
    """Replace ``Transpose(Transpose(x, p), q)`` by one Transpose, or by none; let Gemm transpose its operands.

    ::

        Transpose(Transpose(x, p), q)  ->  Transpose(x, r),  r[i] = p[q[i]]    (x itself where r is 0, 1, 2, …)
        Gemm(Transpose(a), b, transA)  ->  Gemm(a, b, transA = not transA)     (the same for b and transB)

    Where something else reads the inner Transpose, that stays for it; the outer one reads around it. A Transpose
    without ``perm`` reverses the axes. Exact: only the order of the elements is described anew. Source: ONNX
    Transpose-1 to 25, Gemm-1 to 13.
    """

    anchor = ("Transpose", "Gemm")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the one Transpose, its input, or the Gemm that reads around its transposes."""
        return self._gemm(node, tape) if node.op_type == "Gemm" else self._transpose(node, tape)

    def _transpose(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        inner = _transpose_before(node, 0)
        if inner is None:
            q = attribute(node, "perm")
            return node.inputs[0] if q is not None and _is_identity(q) else None
        x = inner.inputs[0]
        q, p = _perm(node), _perm(inner)
        if p is None and q is None:
            return x
        p = p if p is not None else list(reversed(range(len(q or ()))))
        q = q if q is not None else list(reversed(range(len(p))))
        if sorted(p) != sorted(q):
            raise Decline(f"its perm {q} does not go with the perm {p} before it")
        r = [p[i] for i in q]
        return x if _is_identity(r) else tape.op("Transpose", [x], {"perm": r})

    def _gemm(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        operands, attributes = list(node.inputs), dict(node.attributes)
        for i, flag in enumerate(("transA", "transB")):
            inner = _transpose_before(node, i)
            if inner is not None and _perm(inner) in (None, [1, 0]):
                operands[i] = inner.inputs[0]
                attributes.pop(flag, None)
                if not attribute(node, flag, 0):
                    attributes[flag] = ir.AttrInt64(flag, 1)
        return tape.op("Gemm", operands, attributes) if operands != list(node.inputs) else None


def _transpose_before(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index]
    inner = value.producer() if value is not None else None
    return inner if is_op(inner, "Transpose") else None


def _perm(node: ir.Node) -> list[int] | None:
    perm: list[int] | None = attribute(node, "perm")
    return perm


def _is_identity(perm: list[int]) -> bool:
    return perm == list(range(len(perm)))
