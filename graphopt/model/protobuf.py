"""Protobuf's wire format, as far as it takes to lift large tensors out of a serialized model and put them back.

A model is a tree of length-delimited fields, and nearly all of its bytes are payloads of tensors. :func:`cut` walks
the tree, steps over each payload without reading it, and returns the model without them; :func:`paste` gives the
pieces of a model in which other payloads stand. Both visit the same places: every tensor among the initializers
and attributes of every graph and function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

SMALLEST = 4096
"""Payloads of fewer bytes stay where they are: below a page there is nothing to gain."""

ELSEWHERE = {9: "<raw_data>", 4: "<float_data>", 10: "<double_data>"}
"""Location that :func:`cut` gives to a payload, by its field: it lies in the model file itself."""


class Malformed(ValueError):
    """The bytes are no protobuf message, or not of this kind."""


class Buffer(Protocol):
    """Bytes, or a mapped file."""

    def __len__(self) -> int:
        """Return the number of bytes."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return a byte, or the bytes of a slice."""


@dataclass(frozen=True)
class Payload:
    """A tensor's payload, to be written from somewhere else."""

    index: int
    size: int


Piece = bytes | Payload
Visit = Callable[[int, int, int], Sequence[Piece] | None]
"""Called with a payload's field number, start and end; returns the fields to put in its place, or ``None``."""

_EXTERNAL = b"\x70\x01"
"""data_location: EXTERNAL, as a tensor's field."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

Fields = dict[int, Any]
"""Field number to the fields of the message in it, or to ``None`` for a payload."""

_TENSOR: Fields = {4: None, 9: None, 10: None}  # float_data, raw_data, double_data: all little-endian
_GRAPH: Fields = {5: _TENSOR}
_ATTRIBUTE: Fields = {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH}
_NODE: Fields = {5: _ATTRIBUTE}
_GRAPH[1] = _NODE
_FUNCTION: Fields = {7: _NODE, 11: _ATTRIBUTE}
_MODEL: Fields = {7: _GRAPH, 25: _FUNCTION}


def cut(buffer: Buffer, release: Callable[[int, int], None] = lambda offset, length: None) -> bytes:
    """Return the serialized model in ``buffer`` without large payloads.

    A tensor that had one refers to it as external data at :data:`ELSEWHERE`, by offset and length.
    ``release`` is called with (offset, length) of what was read and is not needed any more: around each payload the
    system maps up to two megabytes that nobody reads.

    Raises:
        Malformed: ``buffer`` holds no such message.
    """
    before = previous = 0

    def visit(field: int, start: int, end: int) -> Sequence[Piece]:
        nonlocal before, previous
        release(before, start - before)
        before, previous = previous, start
        place = {"location": ELSEWHERE[field], "offset": str(start), "length": str(end - start)}
        entries = (_field(1, key.encode()) + _field(2, value.encode()) for key, value in place.items())
        return [b"".join(_field(13, entry) for entry in entries)]  # external_data

    try:
        pieces = _Walk(buffer, visit, _EXTERNAL).message(0, len(buffer), _MODEL)
    except RecursionError:
        raise Malformed("its graphs are nested too deeply") from None
    release(0, len(buffer))
    return b"".join(piece for piece in pieces if isinstance(piece, bytes)) if pieces else bytes(buffer[:])


def placeholder(index: int) -> bytes:
    """Return what stands for payload ``index`` in a model that :func:`paste` takes."""
    return _MARK + index.to_bytes(8, "little") + bytes(SMALLEST - len(_MARK) - 8)


_MARK = b"graphopt:payload:\x00\xff\xfe\xfd\xfc\xfb\xfa"


def paste(buffer: bytes, sizes: Sequence[int]) -> list[Piece]:
    """Return the pieces of the model in ``buffer`` with payloads of ``sizes`` instead of placeholders."""

    def visit(field: int, start: int, end: int) -> Sequence[Piece] | None:
        if buffer[start : start + len(_MARK)] != _MARK:
            return None
        index = int.from_bytes(buffer[start + len(_MARK) : start + len(_MARK) + 8], "little")
        return [_tag(field) + _varint(sizes[index]), Payload(index, sizes[index])]

    return _Walk(buffer, visit).message(0, len(buffer), _MODEL) or [buffer]


def size(pieces: Sequence[Piece]) -> int:
    """Return the number of bytes that ``pieces`` have together."""
    return sum(piece.size if isinstance(piece, Payload) else len(piece) for piece in pieces)


class _Walk:
    """Rewrites a message by replacing payloads in it."""

    def __init__(self, buffer: Buffer, visit: Visit, closing: bytes = b"") -> None:
        self.buffer = buffer
        self.visit = visit
        self.closing = closing
        """Put at the end of a tensor whose payload is replaced, where it wins over what the tensor itself says."""

    def message(self, start: int, end: int, fields: Fields) -> list[Piece] | None:
        """Return the message between ``start`` and ``end``, rewritten; ``None`` where nothing is replaced."""
        buffer = self.buffer
        pieces: list[Piece] = []
        kept, position, payloads = start, start, 0
        while position < end:
            at = position
            tag = buffer[position]
            if tag < 0x80:
                position += 1
            else:
                tag, position = self.varint(position, end)
            kind = tag & 7
            if kind == _LENGTH:
                length, position = self.varint(position, end)
                start_of_value, position = position, position + length
                if position > end:
                    raise Malformed(f"a field of {length} bytes at byte {at} runs over the end at byte {end}")
                if length < SMALLEST or (inner := fields.get(tag >> 3, _UNKNOWN)) is _UNKNOWN:
                    continue
                if inner is None:
                    new = self.visit(tag >> 3, start_of_value, position)
                    payloads += 1
                else:
                    new = self.message(start_of_value, position, inner)
                    new = new and [_tag(tag >> 3) + _varint(size(new)), *new]
                if new:
                    pieces += [buffer[kept:at], *new]
                    kept = position
            elif kind == _VARINT:
                _, position = self.varint(position, end)
            elif kind in (_FIXED64, _FIXED32):
                position += 8 if kind == _FIXED64 else 4
            else:
                raise Malformed(f"a field of wire type {kind} at byte {at}")
        if position > end:
            raise Malformed(f"a field runs over the end at byte {end}")
        if not pieces or payloads > 1:  # a payload in several parts is for the parser to put together
            return None
        return [*pieces, buffer[kept:end], self.closing if fields is _TENSOR else b""]

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Return the number at ``position``, and where it ends."""
        value = shift = 0
        while position < end:
            byte = self.buffer[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
            if shift > 63:
                raise Malformed(f"a number of more than ten bytes at byte {position}")
        raise Malformed(f"a number is cut off at byte {end}")


_UNKNOWN = object()


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _tag(field: int) -> bytes:
    return _varint(field << 3 | _LENGTH)


def _field(number: int, value: bytes) -> bytes:
    return _tag(number) + _varint(len(value)) + value
