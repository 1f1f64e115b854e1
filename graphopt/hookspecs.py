"""The plugin contract: all that a plugin may implement, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import onnx_ir as ir

    from .calibration import Calibrator
    from .context import Context
    from .criteria import Criterion
    from .frontends import Frontend
    from .interfaces import Backend, Pass, PassReport
    from .ops import OpInfo

hookspec = pluggy.HookspecMarker("graphopt")
hookimpl = pluggy.HookimplMarker("graphopt")


@hookspec
def register_passes() -> Iterable[type[Pass]]:  # type: ignore[empty-body]
    """Offer pass classes.

    Called once, when the registry is built. Two plugins that offer one name are an error that names both.

    .. versionadded:: 0.1
    """


@hookspec
def register_presets() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Offer named pipelines: name to pipeline text.

    Called once, when the registry is built. A preset may name passes and presets of any plugin. An entry
    ``name{measured=true}`` beside ``name`` is what the preset stands for when it may measure, and so try more.

    .. versionadded:: 0.1
    """


@hookspec
def register_frontends() -> Iterable[Frontend]:  # type: ignore[empty-body]
    """Offer readers of model files and objects.

    Called once. The first frontend whose ``accepts`` says yes reads the source.

    .. versionadded:: 0.1
    """


@hookspec
def register_backends() -> Iterable[Backend]:  # type: ignore[empty-body]
    """Offer targets that models can be compiled for.

    Called once. A backend that cannot run here is offered all the same, and says why in ``unavailable``.

    .. versionadded:: 0.1
    """


@hookspec
def register_operators() -> Mapping[tuple[str, str], OpInfo]:  # type: ignore[empty-body]
    """Offer knowledge of operators: ``(domain, op_type)`` to what it does to a graph.

    Called once. A plugin's entry for an operator that the core knows already replaces the core's.

    .. versionadded:: 0.1
    """


@hookspec
def register_calibrators() -> Mapping[str, type[Calibrator]]:  # type: ignore[empty-body]
    """Offer ways to find the range that integers stand for: name to class.

    Called once. Two plugins that offer one name are an error that names both.

    .. versionadded:: 0.1
    """


@hookspec
def register_criteria() -> Mapping[str, type[Criterion]]:  # type: ignore[empty-body]
    """Offer ways to tell what a channel is worth, for pruning: name to class.

    Called once. Two plugins that offer one name are an error that names both.

    .. versionadded:: 0.1
    """


@hookspec
def before_pass(step: Pass, model: ir.Model, context: Context) -> None:
    """Observe the model before a pass runs; it must not be changed.

    .. versionadded:: 0.1
    """


@hookspec
def after_pass(step: Pass, model: ir.Model, context: Context, report: PassReport) -> None:
    """Observe the model after a pass ran; it must not be changed.

    .. versionadded:: 0.1
    """
