"""Operators with a neutral element."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import attribute, axis_of, constant_tensor, ints, opset, optional, same_shape

Rule = Callable[[ir.Node, Tape], "ir.Value | None"]


def neutral(element: int, *sides: int) -> Rule:
    """Return the rule that ``x`` stays where the input on one of ``sides`` is ``element`` everywhere."""

    def rule(node: ir.Node, _: Tape) -> ir.Value | None:
        for side in sides:
            x, e = node.inputs[1 - side], node.inputs[side]
            if x is None or e is None or not _is_everywhere(e, element):
                continue
            if _keeps_shape(node, x, e, side):
                return x
            raise Decline(f"{e.name} may give the result a larger shape than {x.name} has")
        return None

    return rule


def _is_everywhere(value: ir.Value, element: int) -> bool:
    """Return whether ``value`` is a constant of ``element`` alone; -1 stands for all bits set."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size == 0 or tensor.dtype == ir.DataType.STRING:
        return False
    array = tensor.numpy()
    wanted = ~array.dtype.type(0) if element == -1 else array.dtype.type(element)
    return bool(array.flat[0] == wanted and (array == wanted).all())


def _keeps_shape(node: ir.Node, x: ir.Value, e: ir.Value, side: int) -> bool:
    """Return whether broadcasting with ``e`` leaves the shape of ``x`` as it is."""
    if opset(node) < 7 and "broadcast" in node.attributes:
        return side == 1 or not attribute(node, "broadcast", 0)
    tensor = constant_tensor(e)
    assert tensor is not None
    if not len(tensor.shape) or same_shape(x, node.outputs[0]):
        return True
    if x.shape is None or len(tensor.shape) > len(x.shape):
        return False
    ends = list(x.shape)[len(x.shape) - len(tensor.shape) :]
    return all(n in (1, dim) for n, dim in zip(tensor.shape, ends, strict=True))


def where(node: ir.Node, _: Tape) -> ir.Value | None:
    """Where(c, x, y) is x where c is true everywhere, y where it is false everywhere."""
    condition = node.inputs[0]
    assert condition is not None
    if not _is_everywhere(condition, 1) and not _is_everywhere(condition, 0):
        return None
    chosen = node.inputs[1 if _is_everywhere(condition, 1) else 2]
    if not same_shape(chosen, node.outputs[0]):
        raise Decline("the result may have a larger shape than what is chosen")
    return chosen


def reduction(node: ir.Node, _: Tape) -> ir.Value | None:
    """Reduce(x) is x where the axes have size 1 and stay, or where there are none and that means none."""
    x = node.inputs[0]
    assert x is not None
    axes = _axes(node)
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        return x
    if not attribute(node, "keepdims", 1):
        return None
    if x.shape is None:
        raise Decline(f"the shape of {x.name} is not known")
    reduced = [x.shape[axis_of(axis, len(x.shape))] for axis in axes] if axes else list(x.shape)
    if any(isinstance(dim, int) and dim != 1 for dim in reduced):
        return None
    if any(dim != 1 for dim in reduced):
        raise Decline("it is not known that the axes have size 1")
    return x


def _axes(node: ir.Node) -> list[int]:
    """Return the axes to reduce; none may mean all.

    Raises:
        Decline: they are known at a run only.
    """
    if "axes" in node.attributes:
        return list(attribute(node, "axes"))
    value = optional(node, 1)
    if value is None:
        return []
    return ints(value)


RULES: Mapping[str, Rule] = {
    "Add": neutral(0, 1, 0),
    "Sub": neutral(0, 1),
    "Mul": neutral(1, 1, 0),
    "Div": neutral(1, 1),
    "Pow": neutral(1, 1),
    "And": neutral(1, 1, 0),
    "Or": neutral(0, 1, 0),
    "Xor": neutral(0, 1, 0),
    "BitwiseAnd": neutral(-1, 1, 0),
    "BitwiseOr": neutral(0, 1, 0),
    "BitwiseXor": neutral(0, 1, 0),
    "BitShift": neutral(0, 1),
    "Where": where,
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"), reduction),
}
