"""Check the data of serialized tensors before anything is allocated, and make sparse ones dense."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from .protobuf import ELSEWHERE

LARGEST_DENSE_BYTES = 1 << 30
"""A sparse tensor that takes more than this when it is made dense is refused."""

MAX_RANK = 32
"""What every version of numpy can do."""

Locate = Callable[[str, int, int], None]
"""Called with an external tensor's location, offset and number of bytes; raises ``ValueError`` with what is wrong."""

_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_FIELD: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
_KNOWN = {dtype.value for dtype in ir.DataType if dtype != ir.DataType.UNDEFINED}
_SIX_BITS = {dtype.value for dtype in ir.DataType if dtype.name.startswith("FLOAT6")}


def check(tensor: TensorProto, locate: Locate) -> None:
    """Check that a tensor has the data that its type and shape ask for.

    Raises:
        ValueError: it has not; the text goes on after the tensor's name.
    """
    kind, dims = tensor.data_type, list(tensor.dims)
    if kind not in _KNOWN:
        raise ValueError(
            f"has data type {kind}, which is not known; upgrade onnx-ir, or the model is damaged"
        )
    if any(dim < 0 for dim in dims):
        raise ValueError(f"has a negative dimension in its shape {dims}; the model is damaged")
    if len(dims) > MAX_RANK or math.prod(dim or 1 for dim in dims) >= 1 << 59:
        raise ValueError(f"has the shape {str(dims)[:100]}, which no memory holds; the model is damaged")
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_external(tensor, locate)
    elif not tensor.HasField("raw_data"):
        _check_typed(tensor)
    elif kind == TensorProto.STRING:
        raise ValueError("is of strings, and its data are raw; the model is damaged")
    else:
        _fits(tensor, len(tensor.raw_data), _needed_bytes(tensor), "bytes")


def _check_typed(tensor: TensorProto) -> None:
    kind = tensor.data_type
    field = _FIELD.get(kind, "int32_data")
    for other in _FIELDS:
        if other != field and len(getattr(tensor, other)):
            raise ValueError(f"is of {_name(kind)}, and its data are in {other}; the model is damaged")
    count = math.prod(tensor.dims)
    if kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        count *= 2
    elif kind != TensorProto.STRING and kind not in _SIX_BITS and ir.DataType(kind).bitwidth < 8:
        count = _needed_bytes(tensor)
    _fits(tensor, len(getattr(tensor, field)), count, "elements")
    if kind in _SIX_BITS and any(not 0 <= value < 64 for value in tensor.int32_data):
        raise ValueError(f"is of {_name(kind)}, and has values of more than 6 bits; the model is damaged")


def _check_external(tensor: TensorProto, locate: Locate) -> None:
    kind = tensor.data_type
    if kind == TensorProto.STRING:
        raise ValueError("is of strings, which cannot be external; the model is damaged")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, needed = entries.get("location", ""), _needed_bytes(tensor)
    if location in ELSEWHERE.values() and location not in ("<raw_data>", f"<{_FIELD.get(kind)}>"):
        raise ValueError(f"is of {_name(kind)}, and its data are in {location[1:-1]}; the model is damaged")
    offset = _number(entries, "offset", 0)
    _fits(tensor, _number(entries, "length", needed), needed, "bytes")
    locate(location, offset, needed)


def _number(entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"has external data with {key} {text[:40]!r}, which is no number of bytes")
    return int(text)


def _fits(tensor: TensorProto, found: int, needed: int, unit: str) -> None:
    if found != needed:
        wanted = f"{_name(tensor.data_type)}{list(tensor.dims)}"
        raise ValueError(f"has {found} {unit} of data, and {wanted} needs {needed}; the model is damaged")


def _needed_bytes(tensor: TensorProto) -> int:
    bits: int = ir.DataType(tensor.data_type).bitwidth * math.prod(tensor.dims)
    return (bits + 7) // 8


def _name(kind: int) -> str:
    return ir.DataType(kind).name


def dense(sparse: onnx.SparseTensorProto) -> TensorProto:
    """Return a sparse tensor as a dense one.

    Raises:
        ValueError: it is malformed, or would be too large; the text goes on after the tensor's name.
    """
    dims, size = list(sparse.dims), math.prod(sparse.dims)
    for part in (sparse.values, sparse.indices):
        check(part, _nowhere)
    if any(dim < 0 for dim in dims) or len(dims) > MAX_RANK or size > LARGEST_DENSE_BYTES:
        raise ValueError(
            f"has the shape {str(dims)[:100]}, which is too much to make it dense; save it dense"
        )
    values = np.asarray(numpy_helper.to_array(sparse.values)).reshape(-1)
    indices = numpy_helper.to_array(sparse.indices).astype(np.int64)
    if indices.ndim == 2 and indices.shape == (len(values), len(dims)):
        inside = bool(((indices >= 0) & (indices < dims)).all())
        indices = indices @ np.cumprod([1, *dims[:0:-1]], dtype=np.int64)[::-1]
    else:
        inside = indices.shape == values.shape and bool(((indices >= 0) & (indices < size)).all())
    if not inside or size * values.itemsize > LARGEST_DENSE_BYTES:
        raise ValueError(f"has {len(values)} values whose indices do not fit its shape {dims}; it is damaged")
    full = np.full(size, "" if values.dtype == object else 0, values.dtype)
    full[indices] = values
    return numpy_helper.from_array(full.reshape(dims), sparse.values.name)


def _nowhere(location: str, offset: int, length: int) -> None:
    raise ValueError("has external data, which sparse tensors may not have; make it dense")
