"""Read arithmetic nodes as a polynomial, whatever the order and grouping in which an exporter wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import constant_tensor, is_constant, is_op, opset, same_shape, scalar, used_once

from ..fusion import check_private

Powers = tuple[int, ...]
"""The exponent of each atom in one term."""
Polynomial = Mapping[Powers, float]

PRODUCT: Polynomial = {(1, 1): 1.0}
"""x * gate(x), of the atoms x and gate(x)."""

ARITHMETIC = ("Mul", "Div", "Add", "Sub", "Neg", "Pow")
NODES = 16
"""A formula of more nodes is none that anybody writes by hand."""
RTOL = {ir.DataType.FLOAT16: 2e-3, ir.DataType.BFLOAT16: 1.5e-2}
"""What rounding does to a product of coefficients; for float and double it is how many digits exporters write."""


class Formula:
    """The polynomial that nodes compute of ``atoms``; remembers which nodes those are."""

    def __init__(self, *atoms: ir.Value) -> None:
        self.atoms = atoms
        self.nodes: dict[ir.Node, None] = {}
        self.rank = 0
        """The largest rank of a coefficient: it may give the result a higher rank than the atoms have."""

    def of(self, value: ir.Value | None) -> Polynomial | None:
        """Return the polynomial for ``value``; ``None`` where it is no polynomial of the atoms alone."""
        if value is None:
            return None
        if value in self.atoms:
            return {tuple(int(value is atom) for atom in self.atoms): 1.0}
        number = scalar(value)
        if number is not None:
            tensor = constant_tensor(value)
            self.rank = max(self.rank, len(tensor.shape) if tensor is not None else 0)
            return {(0,) * len(self.atoms): float(number)}
        node = value.producer()
        if not is_op(node, *ARITHMETIC) or len(self.nodes) >= NODES:
            return None
        assert node is not None, "is_op() found it"
        self.nodes[node] = None
        return self._arithmetic(node)

    def _arithmetic(self, node: ir.Node) -> Polynomial | None:
        a = self.of(node.inputs[0])
        if a is None or node.op_type == "Neg":
            return None if a is None else _times(a, -1.0)
        b = self.of(node.inputs[1])
        if b is None:
            return None
        match node.op_type:
            case "Add":
                return _sum(a, b)
            case "Sub":
                return _sum(a, _times(b, -1.0))
            case "Mul":
                return _product(a, b)
        number = next(iter(b.values())) if len(b) == 1 and not any(next(iter(b))) else None
        if number is None:
            return None
        if node.op_type == "Div":
            return _times(a, 1 / number) if number else None
        return _product(a, *[a] * (int(number) - 1)) if number in (1, 2, 3) else None

    def check(self, root: ir.Node, *between: ir.Node) -> None:
        """Decline where one node cannot stand for ``root`` and what it reads: the formula's nodes and ``between``.

        Something else reads what they make, or a coefficient may give the result another shape than the first atom's.
        """
        check_private([*between, *self.nodes, root], root)
        if any(opset(node) < 7 and "axis" in node.attributes for node in self.nodes):
            raise Decline("its operands are broadcast along an axis, as before opset 7")
        x = self.atoms[0]
        if self.rank and not same_shape(x, root.outputs[0]) and (x.shape is None or len(x.shape) < self.rank):
            raise Decline(
                f"a coefficient of rank {self.rank} may give the result another shape than {x.name} has"
            )


def equal(p: Polynomial | None, wanted: Polynomial, dtype: ir.DataType | None) -> bool:
    """Return whether two polynomials are the same up to the rounding of coefficients of ``dtype``."""
    return multiple(p, wanted, dtype) == 1


def multiple(p: Polynomial | None, wanted: Polynomial, dtype: ir.DataType | None) -> float | None:
    """Return by what factor ``p`` is ``wanted``, 1 where only rounding differs; ``None`` where it is by none."""
    terms = {powers: c for powers, c in (p or {}).items() if c}
    if terms.keys() != wanted.keys():
        return None
    first = next(iter(wanted))
    factor = terms[first] / wanted[first]
    if all(close(terms[k], c, rtol(dtype)) for k, c in wanted.items()):
        return 1.0
    return factor if all(close(terms[k], c * factor, rtol(dtype)) for k, c in wanted.items()) else None


def scaled(value: ir.Value, factor: float, tape: Tape) -> ir.Value:
    """Return ``value * factor``, which a layer after it can take into its weights."""
    dtype = value.dtype if value.dtype is not None else tape.anchor.outputs[0].dtype
    if dtype is None:
        raise Decline(f"the type of {tape.anchor.outputs[0].name} is not known")
    return tape.op("Mul", [value, tape.constant(np.array(factor, dtype.numpy()), "factor", dtype)])


def is_scaled_next(node: ir.Node) -> bool:
    """Return whether one product with a number is all that reads ``node``: that number may complete it."""
    value = node.outputs[0]
    reader = value.consumers()[0] if used_once(value) else None
    return (
        reader is not None
        and is_op(reader, "Mul", "Div")
        and any(scalar(v) is not None for v in reader.inputs)
    )


def close(a: float, b: float, tolerance: float) -> bool:
    """Return whether ``a`` is ``b`` up to ``tolerance``, relative to ``b``."""
    return abs(a - b) <= tolerance * abs(b)


def rtol(dtype: ir.DataType | None) -> float:
    """Return how far a coefficient of ``dtype`` may be off and still be the one that was meant."""
    return RTOL.get(dtype, 4e-6) if dtype is not None else 4e-6


def gated(root: ir.Node, *gates: str) -> Iterator[tuple[ir.Value, ir.Node]]:
    """Yield values ``x`` that ``root`` may combine with ``gate(x)``, the nearest first, with the gate.

    A gate is one of the operators ``gates`` that ``root`` reaches through arithmetic; both of them read ``x``.
    """
    near = list(reached(root, 4))
    for value in near:
        gate = value.producer()
        if is_op(gate, *gates):
            assert gate is not None, "is_op() found it"
            read = dict.fromkeys(reached(gate, 6))
            yield from ((x, gate) for x in near if x in read and x is not value)


def reached(root: ir.Node, steps: int) -> Iterator[ir.Value]:
    """Yield what ``root`` reads, through up to ``steps`` arithmetic nodes; no constants, the nearest first."""
    level = [root]
    seen: set[ir.Value] = set()
    for _ in range(steps):
        following: list[ir.Node] = []
        for node in level:
            for value in node.inputs:
                if value is None or value in seen or is_constant(value):
                    continue
                seen.add(value)
                yield value
                producer = value.producer()
                if producer is not None and is_op(producer, *ARITHMETIC, "Softplus"):
                    following.append(producer)
        level = following


def _times(p: Polynomial, factor: float) -> Polynomial:
    return {powers: c * factor for powers, c in p.items()}


def _sum(p: Polynomial, q: Polynomial) -> Polynomial:
    return {powers: p.get(powers, 0.0) + q.get(powers, 0.0) for powers in {**p, **q}}


def _product(p: Polynomial, *others: Polynomial) -> Polynomial:
    for q in others:
        terms: dict[Powers, float] = {}
        for a, c in p.items():
            for b, d in q.items():
                powers = tuple(m + n for m, n in zip(a, b, strict=True))
                terms[powers] = terms.get(powers, 0.0) + c * d
        p = terms
    return p
