"""Read the scores of attention back from their softmax to the product of queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from graphopt import Decline
from graphopt.query import attribute, is_constant, is_op, opset, rank, scalar, used_once

from .layout import Size, scaled, sizes_of

SWALLOWS = 1e30
"""A number so large that a score vanishes beside it: adding it is replacing the score, up to rounding."""
DEEP = 8


@dataclass(frozen=True)
class Term:
    """What is added to the scores, times ``factor``, where these have dimensions ``dims``."""

    value: ir.Value
    dims: tuple[Size, ...]
    factor: float = 1.0
    kept_where: bool | None = None
    """``value`` is no number to add but a condition; scores where it is not this become ``filler``."""
    filler: float = 0.0


@dataclass(frozen=True)
class Scores:
    """``factor * MatMul + terms``."""

    matmul: ir.Node
    factor: float = 1.0
    terms: tuple[Term, ...] = ()

    def times(self, c: float) -> Scores:
        """Return these scores, multiplied by ``c``."""
        terms = tuple(replace(t, factor=c * t.factor, filler=c * t.filler) for t in self.terms)
        return Scores(self.matmul, c * self.factor, terms)

    def plus(self, term: Term) -> Scores:
        """Return these scores with one term more."""
        return replace(self, terms=(*self.terms, term))


def softmax_of(weights: ir.Value | None) -> tuple[ir.Node, bool] | None:
    """Return the Softmax that makes ``weights``, and whether a guard replaces what is not a number by 0."""
    node = weights.producer() if weights is not None else None
    if node is None or not is_op(node, "Softmax", "Where"):
        return None
    if node.op_type == "Softmax":
        return node, False
    if scalar(node.inputs[1]) != 0:
        return None
    test, kept = node.inputs[0], node.inputs[2]
    check = test.producer() if test is not None else None
    softmax = kept.producer() if kept is not None else None
    if check is None or softmax is None or not is_op(check, "IsNaN") or not is_op(softmax, "Softmax"):
        return None
    return (softmax, True) if check.inputs[0] is kept else None


def check_softmax(softmax: ir.Node, weights: ir.Value, guarded: bool) -> None:
    """Decline where the softmax is not over the keys, or its result is needed elsewhere."""
    last = rank(softmax.inputs[0]) - 1
    axis = attribute(softmax, "axis", -1 if opset(softmax) >= 13 else 1)
    if axis not in (-1, last):
        raise Decline(f"the softmax {softmax.outputs[0].name} is over axis {axis}, not over the last one")
    result = softmax.outputs[0]
    if guarded and (len(result.uses()) != 2 or result.is_graph_output()):
        raise Decline(f"the weights {result.name} are used elsewhere")
    if not used_once(weights):
        raise Decline(f"the weights {weights.name} are used elsewhere")


@dataclass(frozen=True)
class Reader:
    """Reads scores; ``is_named`` tells whether a size has a name in the model or is a number."""

    is_named: Callable[[int | ir.SymbolicDim], bool]

    def read(self, value: ir.Value | None) -> Scores:
        """Return what the scores ``value`` are made of.

        Raises:
            Decline: they are not a product with terms added, or a part of them is needed elsewhere.
        """
        scores = self._read(value, DEEP) if value is not None else None
        if scores is None:
            name = value.name if value is not None else "the softmax"
            raise Decline(f"no product of queries and keys is found before {name}")
        return scores

    def _read(self, value: ir.Value, depth: int) -> Scores | None:
        node = value.producer()
        if node is None or node.domain != "" or depth == 0:
            return None
        found = self._step(node, depth - 1)
        if found is not None and not used_once(value):
            raise Decline(f"the scores {value.name} are used elsewhere")
        return found

    def _step(self, node: ir.Node, depth: int) -> Scores | None:
        if node.op_type == "MatMul":
            return None if any(is_constant(v) for v in node.inputs) else Scores(node)
        if node.op_type == "Add":
            return self._added(node, depth)
        if node.op_type in ("Mul", "Div"):
            found = scaled(node)
            scores = self._read(found[0], depth) if found is not None else None
            return scores.times(found[1]) if scores is not None and found is not None else None
        if node.op_type == "Where":
            return self._filled(node, depth)
        if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Identity"):
            return self._read(node.inputs[0], depth) if node.inputs[0] is not None else None
        return None

    def _added(self, node: ir.Node, depth: int) -> Scores | None:
        stopped: Decline | None = None
        for x, term in (node.inputs, reversed(node.inputs)):
            try:
                scores = self._read(x, depth) if x is not None else None
            except Decline as reason:  # perhaps not the scores, but a bias that is a product too
                stopped = stopped or reason
                continue
            if scores is not None and term is not None and x is not None:
                return scores.plus(Term(term, self._dims(x, term)))
        if stopped is not None:
            raise stopped
        return None

    def _filled(self, node: ir.Node, depth: int) -> Scores | None:
        condition, first, second = node.inputs
        for kept_where, x, filler in ((True, first, second), (False, second, first)):
            number = scalar(filler)
            scores = self._read(x, depth) if x is not None and number is not None else None
            if scores is None or condition is None or x is None or number is None:
                continue
            if not number <= -SWALLOWS:
                raise Decline(
                    f"the scores that {condition.name} hides become {number:g}, not far below all others"
                )
            dims = self._dims(x, condition)
            return scores.plus(Term(condition, dims, kept_where=kept_where, filler=float(number)))
        return None

    def _dims(self, scores: ir.Value, term: ir.Value) -> tuple[Size, ...]:
        """Return the dimensions of ``scores``, which ``term`` must not change as far as sizes have names."""
        dims = tuple(sizes_of(scores))
        if term.shape is None or scores.shape is None:
            raise Decline(f"the rank of {term.name} is not known")
        if len(term.shape) > len(dims):
            raise Decline(f"{term.name} has more dimensions than the scores {scores.name}")
        for have, want in zip(term.shape, scores.shape[len(dims) - len(term.shape) :], strict=True):
            fits = Size.of(have) in (Size(), Size.of(want))
            if not fits and self.is_named(have) and self.is_named(want):
                raise Decline(f"{term.name} gives the scores {scores.name} another shape")
        return dims
