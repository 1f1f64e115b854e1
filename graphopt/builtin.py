"""The core's own plugin: the targets that come with graphopt, offered as any plugin offers them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from .interfaces import Backend


@hookimpl
def register_backends() -> Iterable[Backend]:
    """Offer onnxruntime's providers."""
    from .backends.onnxruntime import built_in

    return built_in()
