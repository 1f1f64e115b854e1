"""The nodes that read quantized matrices: onnxruntime's own, or DequantizeLinear before the node that was there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import opset, optional

from .blocks import Format, packed
from .places import Place
from .stored import Stored

Array = np.ndarray[Any, Any]

MICROSOFT = "com.microsoft"
KERNELS = {"product": "MatMulNBits", "lookup": "GatherBlockQuantized"}
WIDEST_BLOCK = 256
"""MatMulNBits of onnxruntime takes no larger ones."""
TYPES = {
    2: (25, ir.DataType.INT2, ir.DataType.UINT2),
    4: (21, ir.DataType.INT4, ir.DataType.UINT4),
    8: (21, ir.DataType.INT8, ir.DataType.UINT8),
}
"""By bits: the opset from which DequantizeLinear takes blocks of these types, and the types."""


@dataclass(frozen=True)
class Form:
    """How one matrix is stored, and what reads it."""

    format: Format
    kernel: bool
    """onnxruntime's own operator reads it; else DequantizeLinear does."""
    blocks: bool = True
    """DequantizeLinear takes blocks; else one scale for each row."""


def choose(place: Place, bits: int, block: int, symmetric: bool, tape: Tape) -> Form:
    """Return the narrowest form that the target has.

    Raises:
        Decline: it has none.
    """
    signs = bits == 1
    symmetric = symmetric or signs
    if signs:
        block = next((b for b in (256, 128, 64, 32) if place.columns % b == 0), 16)
    wanted = max(bits, 2)
    whole_bytes = place.kind == "product" or place.columns * wanted % 8 == 0
    if tape.has(KERNELS[place.kind], MICROSOFT, place.tensor.dtype) and whole_bytes:
        return Form(Format(wanted, block, symmetric, signs), kernel=True)
    version = opset(place.node)
    for width, (since, signed, unsigned) in TYPES.items():
        dtype = signed if symmetric else unsigned
        if width >= wanted and version >= since and tape.has("DequantizeLinear", "", dtype):
            return Form(Format(width, block, symmetric, signs), kernel=False)
    if bits not in (8, 1) or place.node.op_type == "Gather" or version < 13:
        raise Decline(f"opset {version} has no {bits}-bit blocks; put raise-opset before")
    return Form(Format(8, place.columns, True, signs), kernel=False, blocks=False)


def constants(place: Place, form: Form, stored: Stored, tape: Tape, tied: bool) -> list[ir.Value]:
    """Record codes, scales, and zero points where they are stored; ``tied``: products and lookups read them."""
    stem = place.tensor.name or "weight"
    if not form.kernel:
        return _linear(place, form, stored, tape, stem)
    data = stored.data
    if place.kind == "lookup" and not tied:
        data = _rows(stored)
    values = [tape.constant(data, f"{stem}_codes"), tape.constant(stored.scale, f"{stem}_scale")]
    if not form.format.symmetric:
        values.append(tape.constant(packed(stored.zero, form.format.bits), f"{stem}_zero"))
    return values


def _rows(stored: Stored) -> Array:
    """Return the bytes of each row, without what fills up the last block."""
    each = stored.columns * stored.form.bits // 8
    return stored.data.reshape(len(stored.data), -1)[:, :each]


def _linear(place: Place, form: Form, stored: Stored, tape: Tape, stem: str) -> list[ir.Value]:
    bits, middle = form.format.bits, form.format.middle
    codes, scale, zero = stored.codes(), stored.scale, stored.zero
    if form.format.symmetric:
        codes = codes - np.uint8(middle)  # wraps around: the bits of the signed integer
    if place.turned:
        codes, scale, zero = codes.T, scale.T, zero.T
    _, signed, unsigned = TYPES[bits]
    dtype = signed if form.format.symmetric else unsigned
    values = [tape.initializer(_integers(codes, bits, dtype), f"{stem}_codes")]
    values.append(tape.constant(scale if form.blocks else scale.reshape(-1), f"{stem}_scale"))
    if not form.format.symmetric:
        values.append(tape.initializer(_integers(zero, bits, dtype), f"{stem}_zero"))
    return values


def _integers(codes: Array, bits: int, dtype: ir.DataType) -> ir.TensorProtocol:
    whole = np.ascontiguousarray(codes)
    if bits == 8:
        return ir.Tensor(whole.view(dtype.numpy()), dtype)
    return ir.PackedTensor(
        packed(whole.reshape(-1) & np.uint8((1 << bits) - 1), bits), dtype, shape=whole.shape
    )


def emit(place: Place, form: Form, values: list[ir.Value], tape: Tape, accuracy: int) -> ir.Value:
    """Record the nodes that stand for ``place``; return what they make."""
    if not form.kernel:
        return _dequantized(place, form, values, tape)
    zero = values[2] if len(values) > 2 else None
    if place.kind == "lookup":
        attributes = {
            "bits": form.format.bits,
            "block_size": form.format.block,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        data = values[0]
        if data.shape is not None and len(data.shape) == 3:
            data = tape.op("Reshape", [data, tape.constant(np.array([0, -1]), "rows")])
        inputs: list[ir.Value | None] = [data, place.x, values[1]]
        return tape.op(
            "GatherBlockQuantized", [*inputs, zero] if zero else inputs, attributes, domain=MICROSOFT
        )
    attributes = {
        "K": place.columns,
        "N": place.rows,
        "bits": form.format.bits,
        "block_size": form.format.block,
    }
    if accuracy:
        attributes["accuracy_level"] = accuracy
    bias = optional(place.node, 2)
    inputs = [place.x, *values[:2]]
    takes = bias is not None and bias.shape is not None and list(bias.shape) == [place.rows]
    if zero is not None or takes:
        inputs.append(zero)
    if takes:
        inputs += [None, bias]
    y = tape.op("MatMulNBits", inputs, attributes, domain=MICROSOFT)
    return tape.op("Add", [y, bias]) if bias is not None and not takes else y


def _dequantized(place: Place, form: Form, values: list[ir.Value], tape: Tape) -> ir.Value:
    attributes: dict[str, Any] = {"axis": 0 if place.turned == form.blocks else 1}
    if form.blocks:
        attributes["block_size"] = form.format.block
    w = tape.op("DequantizeLinear", values, attributes)
    old = place.node.inputs[place.index]
    if old is not None:
        w.type, w.shape = ir.TensorType(place.tensor.dtype), old.shape
    inputs = [w if i == place.index else value for i, value in enumerate(place.node.inputs)]
    return tape.op(place.node.op_type, inputs, place.node.attributes)
