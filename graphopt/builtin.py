"""The core's own plugin: the targets and frontends that come with graphopt, offered as any plugin offers them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from .frontends import Frontend
    from .interfaces import Backend


@hookimpl
def register_backends() -> Iterable[Backend]:
    """Offer onnxruntime's providers."""
    from .backends.onnxruntime import built_in

    return built_in()


@hookimpl
def register_frontends() -> Iterable[Frontend]:
    """Offer the readers of ONNX and torch models."""
    from .frontends.onnx import OnnxFrontend
    from .frontends.torch import TorchFrontend

    return [OnnxFrontend(), TorchFrontend()]
