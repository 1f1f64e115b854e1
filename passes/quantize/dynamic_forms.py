"""The nodes that quantize activations at run time and multiply them by integers, and what they stand for in floats."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt import Context, Decline, Names, PassReport, Tape, all_nodes, clone, substitute
from graphopt.query import attribute, constant, is_op, opset, optional

from .dynamic_products import Array, Integers, Product
from .floats import FLOAT

MICROSOFT = "com.microsoft"
SINCE = 11
"""ONNX knows DynamicQuantizeLinear from this opset on."""
BIASES = {"DynamicQuantizeMatMul": 4, "MatMulIntegerToFloat": 6}
"""onnxruntime's products, and which operand is the bias."""
INTEGERS = ("MatMulInteger", "ConvInteger")
ITSELF = "DynamicQuantizeMatMul"
"""The product that quantizes its activations itself."""

Quantized = tuple[ir.Value, ir.Value, ir.Value]
"""What DynamicQuantizeLinear makes: integers, scale, zero point."""
Weights = tuple[ir.Value, ir.Value, "ir.Value | None"]
"""Integers, scale, and zero point."""


def choose(given: Product, readers: int, tape: Tape) -> tuple[str, Product]:
    """Return the operator that the target is fastest at, and the product with the bias that it takes.

    ``readers`` is how many products read the same activations: where there are several, these are quantized once.

    Raises:
        Decline: the graph's opset has none.
    """
    version = opset(given.node)
    if not given.is_conv:
        several = version >= SINCE and tape.has("MatMulIntegerToFloat", MICROSOFT, ir.DataType.FLOAT)
        one = tape.has(ITSELF, MICROSOFT, ir.DataType.FLOAT)
        if one and not (several and readers > 1):
            return ITSELF, given.with_bias()
        if several:
            return "MatMulIntegerToFloat", given.with_bias()
    if version < SINCE:
        raise Decline(f"opset {version} has no DynamicQuantizeLinear; put raise-opset{{to={SINCE}}} before")
    return "ConvInteger" if given.is_conv else "MatMulInteger", given


def quantized(x: ir.Value, tape: Tape) -> Quantized:
    """Record the node that quantizes ``x`` at run time."""
    q, scale, zero_point = tape.op_multi_out("DynamicQuantizeLinear", [x], num_outputs=3)
    for value, dtype, shape, stem in (
        (q, ir.DataType.UINT8, x.shape, "quantized"),
        (scale, ir.DataType.FLOAT, ir.Shape([]), "scale"),
        (zero_point, ir.DataType.UINT8, ir.Shape([]), "zero_point"),
    ):
        value.type, value.shape, value.name = ir.TensorType(dtype), shape, f"{x.name}_{stem}"
    return q, scale, zero_point


def constants(given: Product, integers: Integers, tape: Tape) -> Weights:
    """Record the integers of the weights, their scales, and zero points where they are not 0."""
    w = tape.constant(given.laid(integers.q), f"{given.name}_quantized")
    w.meta[FLOAT] = given.floats()
    scale = tape.constant(_column(integers.scale, given), f"{given.name}_scale")
    zero = integers.zero_point.reshape(-1)[0] if given.is_conv else integers.zero_point
    return w, scale, tape.constant(zero, f"{given.name}_zero_point") if zero.any() else None


def emit(
    given: Product, op_type: str, weights: Weights, shift: Array | None, x: Quantized | None, tape: Tape
) -> ir.Value:
    """Record the product, with its bias; return what it makes. ``x`` is not quantized where the product does that."""
    w, scale, zero = weights
    bias = _bias(given, shift, tape)
    taken = bias if given.has_flat_bias and op_type in BIASES else None
    if x is None:
        y = tape.op(op_type, _trimmed(given.x, w, scale, zero, taken), domain=MICROSOFT)
    elif op_type in BIASES:
        y = tape.op(op_type, _trimmed(x[0], w, x[1], scale, x[2], zero, taken), domain=MICROSOFT)
    else:
        y = _standard(given, op_type, x, weights, tape)
    if bias is None or taken is not None:
        return y
    y.type, y.shape = given.node.outputs[0].type, given.node.outputs[0].shape
    return tape.op("Add", [y, bias])


def _standard(given: Product, op_type: str, x: Quantized, weights: Weights, tape: Tape) -> ir.Value:
    """Record what ONNX itself has: a product of integers, made floats by both scales."""
    w, scale, zero = weights
    sums = tape.op(op_type, _trimmed(x[0], w, x[2], zero), _attributes(given.node))
    floats = tape.op("Cast", [sums], {"to": ir.DataType.FLOAT})
    scales = tape.op("Mul", [x[1], scale])
    sums.type = ir.TensorType(ir.DataType.INT32)
    floats.type = scales.type = ir.TensorType(ir.DataType.FLOAT)
    sums.shape = floats.shape = given.node.outputs[0].shape
    return tape.op("Mul", [floats, scales])


def _attributes(node: ir.Node) -> dict[str, Any]:
    """Return the attributes of a Conv, which ConvInteger has as well."""
    conv = node.op_type in ("Conv", "ConvInteger")
    return {name: attribute(node, name) for name in node.attributes} if conv else {}


def _bias(given: Product, shift: Array | None, tape: Tape) -> ir.Value | None:
    """Return the bias as the product takes it, with what makes up for the errors of the weights."""
    if given.bias is None or (shift is None and not given.is_conv):
        return given.bias
    b = constant(given.bias)
    moved = b if shift is None else (b + shift).astype(b.dtype)
    value = tape.constant(_column(moved, given), given.bias.name or "bias")
    value.meta[FLOAT] = ir.Tensor(_column(b, given))
    return value


def _column(numbers: Array, given: Product) -> Array:
    """Return numbers for each output such that they broadcast: of a Conv, along the second axis."""
    spatial = len(given.tensor.shape) - 2 if given.is_conv and numbers.ndim else 0
    return numbers.reshape(numbers.shape + (1,) * spatial)


def _trimmed(*operands: ir.Value | None) -> list[ir.Value | None]:
    """Return operands without the missing ones at the end."""
    kept = list(operands)
    while kept[-1] is None:
        kept.pop()
    return kept


def restored(model: ir.Model) -> ir.Model:
    """Return a copy of ``model`` with float products of the float weights for what this pass put in."""
    model = clone(model)
    context, names = Context(model), Names(model)
    for node in list(all_nodes(model)):
        ours = node.domain == MICROSOFT and node.op_type in BIASES
        if not (ours or is_op(node, *INTEGERS)) or node.inputs[1] is None:
            continue
        floats = node.inputs[1].meta.get(FLOAT)
        if floats is None:
            continue
        tape = Tape(node, context)
        w, x = tape.initializer(floats, f"{node.inputs[1].name}_float"), _activations(node)
        y = tape.op("Conv" if node.op_type == "ConvInteger" else "MatMul", [x, w], _attributes(node))
        bias = optional(node, BIASES[node.op_type]) if ours else None
        y = tape.op("Add", [y, bias]) if bias is not None else y
        substitute(node if ours else _scaled(node), [y], tape, names, PassReport())
    for value in model.graph.initializers.values():
        value.const_value = value.meta.get(FLOAT, value.const_value)
    return model


def _activations(node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    assert x is not None
    maker = x.producer()
    if is_op(maker, "DynamicQuantizeLinear"):
        assert maker is not None and maker.inputs[0] is not None
        return maker.inputs[0]
    return x


def _scaled(node: ir.Node) -> ir.Node:
    """Return the Mul that makes floats of the sums of ``node``."""
    (cast,) = node.outputs[0].consumers()
    (scaled,) = cast.outputs[0].consumers()
    return scaled
