"""Compute one node on arrays by numpy; operators without an entry here go to onnx's reference kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Decline
from graphopt.query import attribute, opset

Array = Any
"""``numpy.ndarray``; its stubs do not know the element types of ml_dtypes."""
Arrays = Sequence[Array | None]
Kernel = Callable[[ir.Node, list[Any]], Any]

REFERENCE_FAULTS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    NotImplementedError,
    AssertionError,
)
"""What a reference kernel may raise on a node it was not written for; the node then stays."""


def compute(node: ir.Node, inputs: Arrays) -> list[Array]:
    """Return the outputs of ``node`` on ``inputs``, with the element types that ONNX gives them.

    Raises:
        Decline: there is no kernel, or it cannot compute this node.
    """
    kernel = KERNELS.get(node.op_type)
    with np.errstate(all="ignore"):
        try:
            made = kernel(node, list(inputs)) if kernel is not None else _reference(node, inputs)
        except REFERENCE_FAULTS as error:
            raise Decline(f"it cannot be computed: {' '.join(str(error).split())[:200]}") from error
    outputs = list(made) if isinstance(made, (list, tuple)) else [made]
    return [_typed(value, array) for value, array in zip(node.outputs, outputs, strict=False)]


def _typed(value: ir.Value, array: Any) -> Array:
    if array is None or isinstance(array, (list, dict)):
        raise Decline(f"{value.name} is no tensor")
    array = np.asarray(array)
    if value.dtype is not None and array.dtype.kind != "O" and value.dtype != ir.DataType.STRING:
        wanted = value.dtype.numpy()
        if array.dtype != wanted:
            raise Decline(f"{value.name} came out as {array.dtype} instead of {wanted}")
    return array


# --- kernels ----------------------------------------------------------------------------------------------------------


def _ints(node: ir.Node, inputs: list[Any], index: int, name: str, since: int) -> list[int] | None:
    """Return the integers that are attribute ``name`` before opset ``since``, and input ``index`` from there on."""
    if opset(node) < since:
        found: list[int] | None = attribute(node, name)
        return found
    array = inputs[index] if index < len(inputs) else None
    return None if array is None else [int(i) for i in array.reshape(-1)]


def _axis(node: ir.Node, array: Array, default: int = 0) -> int:
    axis: int = attribute(node, "axis", default)
    if not -array.ndim <= axis < max(array.ndim, 1):
        raise Decline(f"axis {axis} is out of range for rank {array.ndim}")
    return axis % array.ndim if array.ndim else 0


def _cast(node: ir.Node, inputs: list[Any]) -> Array:
    (x,) = inputs[:1]
    return cast(x, ir.DataType(attribute(node, "to")))


def cast(x: Array, to: ir.DataType) -> Array:
    """Convert as ONNX Cast does where every converter agrees.

    Raises:
        Decline: from or to a string or a type below 16 bits, or a float that the integer type cannot hold.
    """
    if to == ir.DataType.STRING or x.dtype.kind in "OUS" or to.bitwidth < 8:
        raise Decline("it converts from or to a type that runtimes convert differently")
    wanted = to.numpy()
    narrow = to.bitwidth == 8 and to.is_floating_point()
    if narrow or (x.dtype.kind == "V" and x.dtype.itemsize == 1):
        raise Decline("it converts from or to a type that runtimes convert differently")
    if to == ir.DataType.BOOL:
        return x != 0
    if to.is_integer() and x.dtype.kind not in "iub":
        wide = x.astype(np.float64)
        limits = np.iinfo(wanted)
        if not np.all((wide > limits.min - 1) & (wide < float(limits.max) + 1)):
            raise Decline(f"it converts values that {wanted} cannot hold")
    return x.astype(wanted)


def _reshape(node: ir.Node, inputs: list[Any]) -> Array:
    x = inputs[0]
    dims = _ints(node, inputs, 1, "shape", 5) or []
    if not attribute(node, "allowzero", 0):
        dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    return x.reshape(dims)


def _flatten(node: ir.Node, inputs: list[Any]) -> Array:
    x = inputs[0]
    axis = attribute(node, "axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = math.prod(x.shape[:axis])
    return x.reshape(rows, math.prod(x.shape[axis:]))


def _squeeze(node: ir.Node, inputs: list[Any]) -> Array:
    axes = _ints(node, inputs, 1, "axes", 13)
    return np.squeeze(inputs[0], axis=tuple(axes) if axes is not None else None)


def _unsqueeze(node: ir.Node, inputs: list[Any]) -> Array:
    return np.expand_dims(inputs[0], tuple(_ints(node, inputs, 1, "axes", 13) or ()))


def _transpose(node: ir.Node, inputs: list[Any]) -> Array:
    return np.transpose(inputs[0], attribute(node, "perm"))


def _slice(node: ir.Node, inputs: list[Any]) -> Array:
    x = inputs[0]
    if opset(node) < 10:
        starts, ends = attribute(node, "starts"), attribute(node, "ends")
        axes, steps = attribute(node, "axes"), None
    else:
        starts, ends, axes, steps = (_ints(node, inputs, i, "", 0) for i in (1, 2, 3, 4))
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    index: list[slice] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = _python_slice(start, end, step, x.shape[axis])
    return x[tuple(index)]


def _python_slice(start: int, end: int, step: int, size: int) -> slice:
    """Return the Python slice that takes what ONNX's takes: starts and ends are cut to what is there."""
    if step < 0 and end >= 2**31 - 1:
        raise Decline("it runs backwards to the largest integer, which runtimes take differently")
    start, end = start + size * (start < 0), end + size * (end < 0)
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    end = min(max(end, -1), size - 1)
    return slice(min(max(start, 0), size - 1), end if end >= 0 else None, step) if size else slice(0, 0)


def _split(node: ir.Node, inputs: list[Any]) -> list[Array]:
    x = inputs[0]
    axis, count = _axis(node, x), len(node.outputs)
    sizes = _ints(node, inputs, 1, "split", 13)
    if sizes is None:
        chunk = -(-x.shape[axis] // count)
        sizes = [chunk] * (count - 1) + [x.shape[axis] - chunk * (count - 1)]
    if min(sizes) < 0 or sum(sizes) != x.shape[axis]:
        raise Decline(f"the parts {sizes} do not make up {x.shape[axis]}")
    return np.split(x, np.cumsum(sizes)[:-1], axis=axis)


def _gather(node: ir.Node, inputs: list[Any]) -> Array:
    x, indices = inputs
    axis = _axis(node, x)
    size = x.shape[axis]
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        raise Decline(f"an index is out of range for a dimension of {size}")
    return np.take(x, indices, axis=axis)


def _gather_nd(node: ir.Node, inputs: list[Any]) -> Array:
    x, indices = inputs
    shared = attribute(node, "batch_dims", 0)
    lead = indices.shape[:-1]
    batch = [
        np.arange(size).reshape(size, *[1] * (len(lead) - i - 1)) for i, size in enumerate(lead[:shared])
    ]
    return x[(*batch, *np.moveaxis(indices, -1, 0))]


def _concat(node: ir.Node, inputs: list[Any]) -> Array:
    return np.concatenate(inputs, axis=_axis(node, inputs[0], 1 if opset(node) < 4 else 0))


def _expand(node: ir.Node, inputs: list[Any]) -> Array:
    x, shape = inputs
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(i) for i in shape)))


def _constant_of_shape(node: ir.Node, inputs: list[Any]) -> Array:
    value = attribute(node, "value")
    fill = np.zeros(1, np.float32) if value is None else value.numpy()
    return np.broadcast_to(fill.reshape(()), tuple(int(i) for i in inputs[0]))


def _range(node: ir.Node, inputs: list[Any]) -> Array:
    start, limit, delta = (a.reshape(()) for a in inputs)
    if start.dtype.kind != "i":
        raise Decline("a range of floats may round to another length")
    return np.arange(start, limit, delta, dtype=start.dtype)


def _shape(node: ir.Node, inputs: list[Any]) -> Array:
    return np.array(inputs[0].shape[attribute(node, "start", 0) : attribute(node, "end")], np.int64)


def _divide(node: ir.Node, inputs: list[Any]) -> Array:
    a, b = inputs
    if a.dtype.kind not in "iu":
        return a / b
    if np.any(b == 0):
        raise Decline("it divides an integer by zero")
    quotient = np.floor_divide(a, b)
    return (quotient + ((quotient < 0) & (quotient * b != a))).astype(a.dtype)


def _power(node: ir.Node, inputs: list[Any]) -> Array:
    x, y = inputs
    if x.dtype.kind in "iu" and np.any(y < 0):
        raise Decline("it raises integers to negative powers")
    return np.power(x, y).astype(x.dtype)


def _mod(node: ir.Node, inputs: list[Any]) -> Array:
    a, b = inputs
    if a.dtype.kind in "iu" and np.any(b == 0):
        raise Decline("it divides an integer by zero")
    return np.fmod(a, b) if attribute(node, "fmod", 0) else np.mod(a, b)


def _where(node: ir.Node, inputs: list[Any]) -> Array:
    return np.where(*inputs)


def _tile(node: ir.Node, inputs: list[Any]) -> Array:
    return np.tile(inputs[0], [int(i) for i in inputs[1]])


def _many(operation: Any) -> Kernel:
    def kernel(node: ir.Node, inputs: list[Any]) -> Any:
        result = inputs[0]
        for other in inputs[1:]:
            result = operation(result, other)
        return result

    return kernel


def _reduce(operation: Any) -> Kernel:
    def kernel(node: ir.Node, inputs: list[Any]) -> Any:
        x = inputs[0]
        since = 13 if node.op_type == "ReduceSum" else 18
        axes = _ints(node, inputs, 1, "axes", since)
        if not axes and attribute(node, "noop_with_empty_axes", 0):
            return x
        if x.size == 0:
            raise Decline("it reduces nothing")
        return operation(x, tuple(axes) if axes else None, bool(attribute(node, "keepdims", 1)))

    return kernel


def _sum(x: Array, axis: Any, keepdims: bool) -> Array:
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype)


def _prod(x: Array, axis: Any, keepdims: bool) -> Array:
    return np.prod(x, axis=axis, keepdims=keepdims, dtype=x.dtype)


def _maximum(x: Array, axis: Any, keepdims: bool) -> Array:
    return np.max(x, axis=axis, keepdims=keepdims)


def _minimum(x: Array, axis: Any, keepdims: bool) -> Array:
    return np.min(x, axis=axis, keepdims=keepdims)


def _plain(operation: Any) -> Kernel:
    return lambda node, inputs: operation(*inputs)


def _scatter_nd(node: ir.Node, inputs: list[Any]) -> Array:
    x, indices, updates = inputs
    if attribute(node, "reduction", "none") != "none":
        return _reference(node, inputs)[0]
    result = x.copy()
    result[tuple(np.moveaxis(indices, -1, 0))] = updates
    return result


KERNELS: dict[str, Kernel] = {
    "Identity": lambda node, inputs: inputs[0],
    "Cast": _cast,
    "CastLike": lambda node, inputs: cast(inputs[0], ir.DataType.from_numpy(inputs[1].dtype)),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Concat": _concat,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Shape": _shape,
    "Size": lambda node, inputs: np.array(inputs[0].size, np.int64),
    "Add": _plain(np.add),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Div": _divide,
    "Pow": _power,
    "Mod": _mod,
    "Neg": _plain(np.negative),
    "Abs": _plain(np.abs),
    "Sqrt": _plain(np.sqrt),
    "Floor": _plain(np.floor),
    "Ceil": _plain(np.ceil),
    "Exp": _plain(np.exp),
    "Log": _plain(np.log),
    "Not": _plain(np.logical_not),
    "And": _plain(np.logical_and),
    "Or": _plain(np.logical_or),
    "Xor": _plain(np.logical_xor),
    "Equal": _plain(np.equal),
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Where": _where,
    "Tile": _tile,
    "Max": _many(np.maximum),
    "Min": _many(np.minimum),
    "ReduceSum": _reduce(_sum),
    "ReduceProd": _reduce(_prod),
    "ReduceMax": _reduce(_maximum),
    "ReduceMin": _reduce(_minimum),
    "ScatterND": _scatter_nd,
}
"""The operators that graphs compute shapes, masks and weights with; numpy, or views where nothing need be copied."""


# --- onnx's reference kernels -----------------------------------------------------------------------------------------


def _reference(node: ir.Node, inputs: Arrays) -> list[Array]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    names = [f"x{i}" if array is not None else "" for i, array in enumerate(inputs)]
    proto = ir.to_proto(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(f"y{i}" if value.name else "" for i, value in enumerate(node.outputs))
    untyped = onnx.TypeProto()
    graph = onnx.helper.make_graph(
        [proto],
        "one_node",
        [onnx.helper.make_value_info(name, untyped) for name in names if name],
        [onnx.helper.make_value_info(name, untyped) for name in proto.output if name],
    )
    version = onnx.helper.make_opsetid("", opset(node))
    evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[version]))
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if name}
    made = iter(evaluator.run(None, feeds))
    return [next(made) if name else np.empty(0) for name in proto.output]
