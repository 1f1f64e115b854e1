"""Tensors whose data stay in a file until someone reads them, and can leave memory again afterwards."""

from __future__ import annotations

import errno
import math
import mmap
import os
import stat
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

Array = np.ndarray[Any, Any]

CHUNK_BYTES = 1 << 24
"""How much of a mapping is in memory at a time where it is read from end to end."""

LENT_BYTES = 1 << 26
"""How much stays in memory of the data that arrays were made of; what was lent first leaves first."""

_NO_KERNEL_COPY = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV, errno.EBADF}


class MappedFile:
    """A file, mapped once for all the tensors in it.

    It stays readable when another file takes its name. Nothing can help against a program that shortens it.
    """

    def __init__(self, path: Path) -> None:
        """Map the file at ``path``.

        Raises:
            OSError: it cannot be opened, or is no regular file.
        """
        self.path = path
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file", str(path))
            self.size = status.st_size
            self._identity = _identity(status)
            self.view: mmap.mmap | bytes = (
                mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if self.size else b""
            )
        finally:
            os.close(descriptor)

    def in_place(self) -> bool:
        """Return whether the file still has its name, and was not written to since it was mapped."""
        try:
            return _identity(self.path.stat()) == self._identity
        except OSError:
            return False

    def release(self, offset: int = 0, length: int | None = None) -> None:
        """Let the pages of a range leave memory; whoever reads them again gets them back from the file."""
        if not isinstance(self.view, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = offset - offset % mmap.PAGESIZE
        end = self.size if length is None else offset + length
        if end > start:
            self.view.madvise(mmap.MADV_DONTNEED, start, end - start)

    def lend(self, offset: int, length: int) -> memoryview:
        """Return a range, not copied; what was lent long ago leaves memory, and comes back when it is read again."""
        _LENT.add(self, offset, length)
        return memoryview(self.view)[offset : offset + length]

    def chunks(self, offset: int, length: int) -> Iterator[memoryview]:
        """Yield a range in pieces; each leaves memory when the next is asked for."""
        for start in range(offset, offset + length, CHUNK_BYTES):
            size = min(CHUNK_BYTES, offset + length - start)
            yield memoryview(self.view)[start : start + size]
            self.release(start, size)

    def copy_into(self, file: Any, offset: int, length: int) -> None:
        """Append a range to ``file``: inside the kernel where it can, else piece by piece."""
        done = self._kernel_copy(file, offset, length)
        for chunk in self.chunks(offset + done, length - done):
            file.write(chunk)

    def _kernel_copy(self, file: Any, offset: int, length: int) -> int:
        """Append as much of a range to ``file`` as the kernel does by itself; return how much that is."""
        if not hasattr(os, "copy_file_range") or not hasattr(file, "fileno"):
            return 0
        file.flush()
        try:
            target, source = file.fileno(), os.open(self.path, os.O_RDONLY)
        except OSError:  # it is no real file, or this one lost its name
            return 0
        place, done = file.tell(), 0
        try:
            while done < length and _identity(os.fstat(source)) == self._identity:
                copied = os.copy_file_range(
                    source, target, min(1 << 30, length - done), offset + done, place + done
                )
                if copied == 0:
                    break
                done += copied
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
        finally:
            os.close(source)
        file.seek(place + done)
        return done


class _Lent:
    """The ranges that were lent last, of all files; the oldest are released when they are too much together."""

    def __init__(self) -> None:
        self.ranges: deque[tuple[weakref.ref[MappedFile], int, int]] = deque()
        self.total = 0
        self.lock = threading.Lock()

    def add(self, file: MappedFile, offset: int, length: int) -> None:
        with self.lock:
            self.ranges.append((weakref.ref(file), offset, length))
            self.total += length
            while self.total > LENT_BYTES and len(self.ranges) > 1:
                reference, offset, length = self.ranges.popleft()
                self.total -= length
                if (old := reference()) is not None:
                    old.release(offset, length)


_LENT = _Lent()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when another file takes the name, or this one is written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Span:
    """A range of a mapped file: what backs a :class:`MappedTensor`, by the array protocol its bytes."""

    file: MappedFile
    offset: int
    length: int

    @property
    def path(self) -> Path:
        """The file; another one may have taken its name since."""
        return self.file.path

    def bytes(self) -> memoryview:
        """Return the bytes, not copied."""
        return self.file.lend(self.offset, self.length)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.frombuffer(self.bytes(), np.uint8)


class MappedTensor(ir.Tensor[Span]):
    """A tensor in a mapped file, at ``raw.offset`` of ``raw.path``."""

    def __init__(
        self,
        span: Span,
        dtype: ir.DataType,
        shape: ir.Shape,
        *,
        name: str | None = None,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
    ) -> None:
        """Make a tensor of the bytes in ``span``, which has as many as the shape asks for."""
        super().__init__(
            span, dtype, shape=shape, name=name, doc_string=doc_string, metadata_props=metadata_props
        )
        assert span.length == self.nbytes and span.offset + span.length <= span.file.size

    def numpy(self) -> Array:
        """Return a read-only view of the data; a copy only for types of less than a byte."""
        dims = self.shape.numpy()
        if self.dtype.bitwidth < 8:
            packed = onnx.TensorProto(dims=dims, data_type=self.dtype.value, raw_data=self.tobytes())
            return ir.serde.TensorProtoTensor(packed).numpy()
        dtype = np.dtype(self.dtype.numpy()).newbyteorder("<")
        return np.frombuffer(self.raw.bytes(), dtype, math.prod(dims)).reshape(dims)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array = self.numpy()
        return array.astype(dtype or array.dtype) if copy or dtype not in (None, array.dtype) else array

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.numpy().__dlpack_device__()

    def tobytes(self) -> bytes:
        """Return a copy of the bytes, which leave the mapping again."""
        copied = bytes(self.raw.bytes())
        self.release()
        return copied

    def tofile(self, file: Any) -> None:
        """Append the bytes to ``file`` without taking them into memory."""
        self.raw.file.copy_into(file, self.raw.offset, self.raw.length)

    def chunks(self) -> Iterator[memoryview]:
        """Yield the bytes in pieces, for hashing and comparing; each leaves memory when the next is asked for."""
        return self.raw.file.chunks(self.raw.offset, self.raw.length)

    def release(self) -> None:
        """Let the data leave memory; arrays made of them stay good."""
        self.raw.file.release(self.raw.offset, self.raw.length)

    def __repr__(self) -> str:
        return f"{self._repr_base()}({self.raw.path}, offset={self.raw.offset}, name={self.name!r})"
