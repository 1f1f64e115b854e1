"""Recognize a normalization without scale and bias, as exporters write it out."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt import Decline
from graphopt.query import attribute, ints, is_op, optional, scalar


@dataclass
class Written:
    """``d / sqrt(mean(d^2) + epsilon)`` over the last ``axes`` axes, of ``d = x - mean(x)`` or of ``d = x``."""

    x: ir.Value
    centred: bool
    axes: int
    epsilon: float
    nodes: list[ir.Node] = field(default_factory=list)


def written(node: ir.Node) -> Written | None:
    """Return the normalization that ends in a Div or Mul; ``None`` where it is none."""
    for d, rest in ((0, 1), (1, 0)) if node.op_type == "Mul" else ((0, 1),):
        dividend, factor = node.inputs[d], node.inputs[rest]
        nodes = [node]
        variance = _under_root(factor, node.op_type == "Mul", nodes)
        if variance is not None and dividend is not None:
            found = _of(dividend, *variance, nodes)
            if found is not None:
                return found
    return None


def _under_root(value: ir.Value | None, inverse: bool, nodes: list[ir.Node]) -> tuple[ir.Value, float] | None:
    """Return ``variance`` and ``epsilon`` of ``sqrt(variance + epsilon)``, or of its inverse."""
    node = value.producer() if value is not None else None
    if node is None or node.domain:
        return None
    nodes.append(node)
    match node.op_type:
        case "Reciprocal" if inverse:
            return _under_root(node.inputs[0], False, nodes)
        case "Div" if inverse and scalar(node.inputs[0]) == 1:
            return _under_root(node.inputs[1], False, nodes)
        case "Sqrt" if inverse and is_op(node.inputs[0].producer() if node.inputs[0] else None, "Reciprocal"):
            inner = node.inputs[0].producer() if node.inputs[0] is not None else None
            assert inner is not None, "is_op() found it"
            nodes.append(inner)
            return _sum(inner.inputs[0], nodes)
        case "Sqrt" if not inverse:
            return _sum(node.inputs[0], nodes)
        case "Pow" if scalar(node.inputs[1]) == (-0.5 if inverse else 0.5):
            return _sum(node.inputs[0], nodes)
    return None


def _sum(value: ir.Value | None, nodes: list[ir.Node]) -> tuple[ir.Value, float] | None:
    add = value.producer() if value is not None else None
    if add is None or not is_op(add, "Add"):
        return None
    nodes.append(add)
    for i in (0, 1):
        epsilon, variance = scalar(add.inputs[i]), add.inputs[1 - i]
        if epsilon is not None and variance is not None:
            return variance, float(epsilon)
    return None


def _of(d: ir.Value, variance: ir.Value, epsilon: float, nodes: list[ir.Node]) -> Written | None:
    mean = variance.producer()
    square = (
        mean.inputs[0].producer()
        if is_op(mean, "ReduceMean") and mean is not None and mean.inputs[0]
        else None
    )
    base = _squared(square)
    if mean is None or square is None or base is None:
        return None
    nodes += [mean, square]
    x = _centred(d, base, nodes)
    axes = _trailing(mean, d)
    if x is None:
        return Written(d, False, axes, epsilon, nodes) if base is d else None
    average = nodes[-1]
    if _trailing(average, d) != axes:
        raise Decline("mean and variance are taken over other axes")
    return Written(x, True, axes, epsilon, nodes)


def _squared(node: ir.Node | None) -> ir.Value | None:
    if node is None or node.domain:
        return None
    if node.op_type == "Pow" and scalar(node.inputs[1]) == 2:
        return node.inputs[0]
    return node.inputs[0] if node.op_type == "Mul" and node.inputs[0] is node.inputs[1] else None


def _centred(d: ir.Value, base: ir.Value, nodes: list[ir.Node]) -> ir.Value | None:
    """Return ``x`` where ``d`` and ``base`` are both ``x - mean(x)``; the node of the mean is the last of ``nodes``."""
    first, second = d.producer(), base.producer()
    if not is_op(first, "Sub") or not is_op(second, "Sub") or first is None or second is None:
        return None
    x, mean = first.inputs
    average = mean.producer() if mean is not None else None
    if tuple(second.inputs) != (x, mean) or not is_op(average, "ReduceMean") or average is None:
        return None
    if average.inputs[0] is not x:
        return None
    nodes += [first, second, average]
    return x


def _trailing(mean: ir.Node, x: ir.Value) -> int:
    """Return over how many trailing axes a ReduceMean goes.

    Raises:
        Decline: over others, or it drops them.
    """
    if not attribute(mean, "keepdims", 1):
        raise Decline(f"{mean.outputs[0].name} has lost the axes that it is taken over")
    given = optional(mean, 1)
    axes = list(attribute(mean, "axes", [])) if given is None else ints(given)
    rank = len(x.shape) if x.shape is not None else None
    if rank is not None:
        axes = [axis - rank if axis >= 0 else axis for axis in axes]
    if not axes or sorted(axes) != list(range(-len(axes), 0)):
        raise Decline(f"{mean.outputs[0].name} is not taken over the last axes, got {axes}")
    return len(axes)
