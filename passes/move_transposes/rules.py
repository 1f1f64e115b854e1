"""The operators that have a frame besides the elementwise ones, and how each is told its axes in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import Tape
from graphopt.query import (
    attribute,
    axis_of,
    constant,
    ints,
    is_constant,
    opset,
    optional,
    rank,
)

from .frames import Build, Frame, all_axes, anything, elementwise, rank_of, rebuilt, without
from .orders import Order
from .reshaping import integers, named_axes, naming, reshape, squeeze, unsqueeze

Rule = Callable[[ir.Node], Frame | None]


def along(default: int, *, keeps: bool = True, last: bool = False, inputs: int | None = 1) -> Rule:
    """Return the rule of operators with an attribute ``axis``."""

    def rule(node: ir.Node) -> Frame | None:
        r = rank(node.inputs[0])
        axis = axis_of(attribute(node, "axis", default), r)
        keep = keeps or bool(attribute(node, "keepdims", 1))
        count = len(node.inputs) if inputs is None else inputs
        return Frame(
            r,
            dict.fromkeys(range(count), all_axes(r)),
            [all_axes(r) if keep else without(r, [axis])] * len(node.outputs),
            lambda tape, inputs, order: rebuilt(tape, node, inputs, axis=order.index(axis)),
            last=axis if last else None,
        )

    return rule


def softmax(node: ir.Node) -> Frame | None:
    """Before opset 13 it runs over all axes from ``axis`` on."""
    if opset(node) >= 13:
        return along(-1, last=True)(node)
    r = rank(node.inputs[0])
    axis = axis_of(attribute(node, "axis", 1), r)
    return _same(node, allows=lambda order: set(order[:axis]) == set(range(axis)))


def layer_norm(node: ir.Node) -> Frame | None:
    """The axes from ``axis`` on stay where they are."""
    r = rank(node.inputs[0])
    axis = axis_of(attribute(node, "axis", -1), r)
    return _same(node, allows=lambda order: order[axis:] == all_axes(r)[axis:])


def batch_norm(node: ir.Node) -> Frame | None:
    """Axis 1 stays where it is."""
    if len(node.outputs) > 1 or attribute(node, "training_mode", 0) or not attribute(node, "spatial", 1):
        return None
    return _same(node, allows=lambda order: order[1:2] == (1,))


def spatial(node: ir.Node) -> Frame | None:
    """The first two axes stay where they are."""
    return _same(node, allows=lambda order: order[:2] == (0, 1))


def global_average(node: ir.Node) -> Frame | None:
    """In an order in which the first two axes do not stay, it is a ReduceMean."""
    r = rank(node.inputs[0])

    def build(tape: Tape, inputs: list[ir.Value | None], order: Order) -> Sequence[ir.Value]:
        if order[:2] == (0, 1):
            return rebuilt(tape, node, inputs)
        axes = sorted(order.index(axis) for axis in range(2, r))
        if tape.opset < 18:
            return [tape.op("ReduceMean", inputs, {"axes": axes, "keepdims": 1})]
        return [tape.op("ReduceMean", [*inputs, integers(tape, axes, "axes")], {"keepdims": 1})]

    return Frame(r, {0: all_axes(r)}, [all_axes(r)], build)


def matmul(node: ir.Node) -> Frame | None:
    """A matrix on the right: the last axis stays where it is."""
    r = rank(node.inputs[0])
    if r < 2 or rank_of(node.inputs[1]) != 2:
        return None
    return _same(node, allows=lambda order: order[-1] == r - 1)


def reduce(node: ir.Node) -> Frame | None:
    """The axes are an attribute, later an input; without any it runs over all of them."""
    r = rank(node.inputs[0])
    given = named_axes(node, 1, r)
    if not given and attribute(node, "noop_with_empty_axes", 0):
        return None
    axes = given or list(range(r))
    keeps = attribute(node, "keepdims", 1)
    build = naming(node, given) if given else lambda tape, inputs, order: rebuilt(tape, node, inputs)
    return Frame(r, {0: all_axes(r)}, [all_axes(r) if keeps else without(r, axes)], build)


def slice_(node: ir.Node) -> Frame | None:
    """Starts and ends stay; the axes that they are for are named anew."""
    r = rank(node.inputs[0])
    if opset(node) < 10:
        axes = attribute(node, "axes") or list(range(len(attribute(node, "starts"))))
        return _same(
            node,
            lambda tape, inputs, order: rebuilt(
                tape, node, inputs, axes=[order.index(axis_of(a, r)) for a in axes]
            ),
        )
    starts = node.inputs[1]
    named = optional(node, 3)
    if starts is None or starts.dtype is None or (named is None and rank_of(starts) != 1):
        return None
    count = starts.shape[0] if starts.shape is not None and len(starts.shape) == 1 else None
    if named is None and not isinstance(count, int):
        return None
    axes = ints(named) if named is not None else list(range(count if isinstance(count, int) else 0))
    kind = starts.dtype.numpy()

    def build(tape: Tape, inputs: list[ir.Value | None], order: Order) -> Sequence[ir.Value]:
        moved = np.array([order.index(axis_of(axis, r)) for axis in axes], kind)
        return rebuilt(tape, node, [*inputs[:3], tape.constant(moved, "axes"), *inputs[4:]])

    return _same(node, build)


def pad(node: ir.Node) -> Frame | None:
    """The pads are a list of all axes, or of those that an input names."""
    r = rank(node.inputs[0])
    named = optional(node, 3)
    if opset(node) < 11:
        pads = attribute(node, "pads")
        return (
            None
            if pads is None
            else _same(
                node, lambda tape, inputs, order: rebuilt(tape, node, inputs, pads=_permuted(pads, order))
            )
        )
    if named is None and is_constant(node.inputs[1]):
        pads = ints(node.inputs[1])

        def build(tape: Tape, inputs: list[ir.Value | None], order: Order) -> Sequence[ir.Value]:
            return rebuilt(
                tape, node, [inputs[0], integers(tape, _permuted(pads, order), "pads"), *inputs[2:]]
            )

        return _same(node, build) if len(pads) == 2 * r else None
    if opset(node) < 18:
        return None
    axes = [axis_of(axis, r) for axis in ints(named)] if named is not None else list(range(r))

    def renamed(tape: Tape, inputs: list[ir.Value | None], order: Order) -> Sequence[ir.Value]:
        first = [*inputs, None][:3]
        return rebuilt(tape, node, [*first, integers(tape, [order.index(axis) for axis in axes], "axes")])

    return _same(node, renamed)


def tile(node: ir.Node) -> Frame | None:
    """The repeats are a list of all axes."""
    if opset(node) < 6:
        return None
    repeats = ints(node.inputs[1])

    def build(tape: Tape, inputs: list[ir.Value | None], order: Order) -> Sequence[ir.Value]:
        return rebuilt(tape, node, [inputs[0], integers(tape, [repeats[axis] for axis in order], "repeats")])

    return _same(node, build)


def gather(node: ir.Node) -> Frame | None:
    """One index takes the axis away; a list of them keeps it."""
    r, indices = rank(node.inputs[0]), rank(node.inputs[1])
    axis = axis_of(attribute(node, "axis", 0), r)
    if indices > 1:
        return None
    return Frame(
        r,
        {0: all_axes(r)},
        [all_axes(r) if indices else without(r, [axis])],
        lambda tape, inputs, order: rebuilt(tape, node, inputs, axis=order.index(axis)),
    )


def cumsum(node: ir.Node) -> Frame | None:
    """The axis is an input."""
    r = rank(node.inputs[0])
    (axis,) = ints(node.inputs[1])

    def build(tape: Tape, inputs: list[ir.Value | None], order: Order) -> Sequence[ir.Value]:
        moved = tape.constant(np.array(order.index(axis_of(axis, r)), np.int64), "axis")
        return rebuilt(tape, node, [inputs[0], moved])

    return _same(node, build)


def quantize(node: ir.Node) -> Frame | None:
    """A scale for each element of an axis, or one for all."""
    if "block_size" in node.attributes:
        return None
    scale = node.inputs[1]
    if rank(scale) == 0 or (scale is not None and scale.shape == ir.Shape([1])):
        return _same(node)
    return along(1)(node) if rank(scale) == 1 and opset(node) >= 13 else None


def resize(node: ir.Node) -> Frame | None:
    """Nearest neighbours in any order; else the axes that change stay the last two, which is what kernels know."""
    r = rank(node.inputs[0])
    roi, index = optional(node, 1), 3 if optional(node, 3) is not None else 2
    if opset(node) < 11 or "axes" in node.attributes or index >= len(node.inputs):
        return None
    if attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize" and roi is not None:
        return None
    sizes = constant(node.inputs[index])
    if sizes.shape != (r,):
        return None

    def build(tape: Tape, inputs: list[ir.Value | None], order: Order) -> Sequence[ir.Value]:
        laid = [*inputs]
        laid[1], laid[index] = None, tape.constant(sizes[list(order)], "sizes" if index == 3 else "scales")
        return rebuilt(tape, node, laid)

    def keeps_outer(order: Order) -> bool:
        return index == 2 and r >= 2 and all(sizes[axis] == 1 for axis in order[:-2])

    nearest = attribute(node, "mode", "nearest") == "nearest"
    return _same(node, build, anything if nearest else keeps_outer)


def shape(node: ir.Node) -> Frame | None:
    """The sizes are put back into their order."""
    r = rank(node.inputs[0])
    if "start" in node.attributes or "end" in node.attributes:
        return None

    def build(tape: Tape, inputs: list[ir.Value | None], order: Order) -> Sequence[ir.Value]:
        places = integers(tape, [order.index(axis) for axis in range(r)], "axes")
        return [tape.op("Gather", [tape.op("Shape", inputs), places], {"axis": 0})]

    return Frame(r, {0: all_axes(r)}, [None], build)


def unary(node: ir.Node) -> Frame | None:
    """Activations with a bias add it along the last axis."""
    return elementwise(node) if len(node.inputs) == 1 else None


def _same(
    node: ir.Node,
    build: Build | None = None,
    allows: Callable[[Order], bool] = anything,
) -> Frame:
    """Return the frame of a node whose first input and outputs have the same axes."""
    r = rank(node.inputs[0])
    return Frame(
        r,
        {0: all_axes(r)},
        [all_axes(r)] * len(node.outputs),
        build or (lambda tape, inputs, order: rebuilt(tape, node, inputs)),
        allows,
    )


def _permuted(pads: Sequence[int], order: Order) -> list[int]:
    half = len(pads) // 2
    return [pads[axis] for axis in order] + [pads[half + axis] for axis in order]


REDUCTIONS = "Sum Mean Max Min Prod L1 L2 SumSquare LogSum LogSumExp".split()
BY_NAME: Mapping[str, Rule] = {
    **dict.fromkeys((f"Reduce{name}" for name in REDUCTIONS), reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), layer_norm),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization", "GlobalMaxPool"), spatial),
    **dict.fromkeys(("ArgMax", "ArgMin"), along(0, keeps=False)),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize),
    **dict.fromkeys(("Reshape", "Flatten"), reshape),
    "LpNormalization": along(-1),
    "TopK": along(-1),
    "Concat": along(1, inputs=None),
    "Split": along(0),
    "BatchNormalization": batch_norm,
    "GlobalAveragePool": global_average,
    "MatMul": matmul,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Slice": slice_,
    "Pad": pad,
    "Tile": tile,
    "Gather": gather,
    "CumSum": cumsum,
    "Resize": resize,
    "Shape": shape,
}
RULES: Mapping[tuple[str, str], Rule] = {
    **{("", name): rule for name, rule in BY_NAME.items()},
    **{("com.microsoft", name): unary for name in ("Gelu", "FastGelu", "QuickGelu")},
}
