"""The core's own plugin: its targets, frontends, calibrators and criteria, offered as any plugin offers them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from .calibration import Calibrator
    from .criteria import Criterion
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


@hookimpl
def register_calibrators() -> Mapping[str, type[Calibrator]]:
    """Offer the usual ways to find a range."""
    from . import calibration

    return {
        "minmax": calibration.MinMax,
        "moving-average": calibration.MovingAverage,
        "percentile": calibration.Percentile,
        "entropy": calibration.Entropy,
        "mse": calibration.Mse,
        "sqnr": calibration.Sqnr,
    }


@hookimpl
def register_criteria() -> Mapping[str, type[Criterion]]:
    """Offer the usual ways to tell what a channel is worth."""
    from .criteria import CRITERIA

    return CRITERIA
