"""Quantized matrices as they are kept, and the float matrices that they stand for."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from .blocks import Blocks, Format, packed, unpacked
from .places import Place

Array = np.ndarray[Any, Any]

CHUNK = 1 << 16
"""Numbers that are rounded at a time: what takes part in it stays in the processor's cache."""
WORKERS = 2
IN_MEMORY_BYTES = 256 << 20
"""Codes up to this size together stay in memory, all others go to a temporary file, which is mapped."""


class Shelf:
    """Keeps arrays: in memory as long as they are few, then in a file that has no name and ends with them."""

    def __init__(self) -> None:
        self.room = IN_MEMORY_BYTES

    def keep(self, array: Array) -> Array:
        """Return an array of the same content."""
        self.room -= array.nbytes
        if self.room >= 0 or not array.nbytes:
            return array
        with tempfile.TemporaryFile(prefix="graphopt-") as file:
            np.ascontiguousarray(array).tofile(file)
            return np.memmap(file, array.dtype, "r", shape=array.shape)


@dataclass(frozen=True)
class Stored:
    """One matrix in codes."""

    form: Format
    columns: int
    data: Array
    """uint8 (rows, blocks, bytes of a block)."""
    scale: Array
    """(rows, blocks), of the type of the matrix."""
    zero: Array
    """uint8 (rows, blocks)."""

    def codes(self, start: int = 0, stop: int | None = None) -> Array:
        """Return the codes of some rows: (rows, columns)."""
        part = unpacked(self.data[start:stop], self.form.bits, self.form.block)
        rows: Array = part.reshape(len(part), -1)[:, : self.columns]
        return rows

    def numbers(self) -> Array:
        """Return the matrix that the codes stand for, (rows, columns), computed as a kernel does it."""
        made = np.empty((len(self.data), self.columns), self.scale.dtype)
        step = max(1, CHUNK // self.columns)
        for start in range(0, len(made), step):
            rows = slice(start, start + step)
            codes = unpacked(self.data[rows], self.form.bits, self.form.block)
            made[rows] = Blocks(codes, self.scale[rows].astype(np.float32), self.zero[rows]).numbers(
                self.columns
            )
        return made

    @property
    def nbytes(self) -> int:
        """The bytes of codes, scales and stored zero points."""
        zeros = (
            0 if self.form.symmetric else len(self.zero) * math.ceil(self.zero.shape[1] * self.form.bits / 8)
        )
        return int(self.data.nbytes + self.scale.nbytes + zeros)


def store(
    place: Place, form: Format, quantize: Callable[[Array], Blocks], shelf: Shelf, numbers: int = CHUNK
) -> Stored:
    """Return the matrix of ``place`` in codes, some rows at a time."""
    rows, columns = place.rows, place.columns
    count = -(-columns // form.block)
    data = np.empty((rows, count, form.block * form.bits // 8), np.uint8)
    scale = np.empty((rows, count), place.tensor.dtype.numpy())
    zero = np.empty((rows, count), np.uint8)
    step = max(1, numbers // (count * form.block))

    def work(start: int) -> None:
        part = slice(start, start + step)
        made = quantize(place.read(start, start + step))
        data[part], scale[part], zero[part] = packed(made.codes, form.bits), made.scale, made.zero

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, range(0, rows, step)))
    return Stored(form, columns, shelf.keep(data), shelf.keep(scale), shelf.keep(zero))


def dequantized(place: Place, stored: Stored) -> ir.LazyTensor:
    """Return what ``place`` reads in the float model whose weights are rounded; computed when somebody reads it."""

    def compute() -> ir.TensorProtocol:
        numbers = stored.numbers()
        return ir.Tensor(np.ascontiguousarray(numbers.T) if place.turned else numbers)

    shape = (place.columns, place.rows) if place.turned else (place.rows, place.columns)
    return ir.LazyTensor(compute, place.tensor.dtype, ir.Shape(shape), name=place.tensor.name)
