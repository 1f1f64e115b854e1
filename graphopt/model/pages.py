"""Let the pages of a mapped file leave memory after a view of it, a transposed weight say, was read."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import onnx_ir as ir


def release(tensor: ir.TensorProtocol) -> None:
    """Let the pages under the array of ``tensor`` leave memory; who reads them again gets them from the file."""
    array = tensor.raw if isinstance(tensor, ir.Tensor) else None
    if not isinstance(array, np.ndarray) or not array.nbytes:
        return
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    mapping = base.obj if isinstance(base, memoryview) else base
    if not isinstance(mapping, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    origin = np.frombuffer(mapping, np.uint8).ctypes.data
    start = (low - origin) // mmap.PAGESIZE * mmap.PAGESIZE
    mapping.madvise(mmap.MADV_DONTNEED, start, high - origin - start)
