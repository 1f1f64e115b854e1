"""Which nodes an option like ``include=[MatMul,"encoder.layer.0.*"]`` means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from .interfaces import place
from .origin import origins, scope

if TYPE_CHECKING:
    import onnx_ir as ir


def selected(node: ir.Node, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Return whether ``node`` matches a pattern of ``include`` (where there are any) and none of ``exclude``.

    A pattern, with ``*``, ``?`` and ``[abc]``, stands for a node's operator, its name or that of the original node
    or of a value that it makes, a weight that it reads, or the path of its torch module or of one around that.
    """
    if not include and not exclude:
        return True
    names = list(_names(node))
    return (not include or _any(names, include)) and not _any(names, exclude)


def _any(names: Iterable[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _names(node: ir.Node) -> Iterable[str]:
    """Yield all that a pattern may stand for."""
    yield node.op_type
    yield place(node)
    yield from origins(node)
    yield from (value.name for value in node.outputs if value.name)
    for value in node.inputs:
        while value is not None and (made := value.producer()) is not None and made.op_type == "Transpose":
            value = made.inputs[0]
        if value is not None and value.const_value is not None and value.name:
            yield value.name
    path = scope(node)
    while path:
        yield path
        path = path.rpartition(".")[0]
