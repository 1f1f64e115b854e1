"""graphopt: optimize neural-network graphs, prove every rewrite, measure every claim."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Backend": "interfaces",
    "Context": "context",
    "Decline": "query",
    "Drift": "interfaces",
    "Effect": "interfaces",
    "Executable": "interfaces",
    "Frontend": "frontends",
    "FxPass": "interfaces",
    "GraphoptError": "errors",
    "InputError": "errors",
    "Level": "interfaces",
    "ModelError": "errors",
    "Names": "surgery",
    "NodeTime": "interfaces",
    "OnnxRuntime": "backends.onnxruntime",
    "OpInfo": "ops",
    "OptionError": "errors",
    "Pass": "interfaces",
    "PassError": "errors",
    "PassReport": "interfaces",
    "PipelineError": "errors",
    "PluginError": "errors",
    "Result": "optimizer",
    "Rewrite": "rewrite",
    "Shapes": "analysis.shapes",
    "Tape": "rewrite",
    "Timing": "racing",
    "UnavailableError": "errors",
    "UsageError": "errors",
    "VerificationError": "errors",
    "all_graphs": "query",
    "all_nodes": "query",
    "channel_groups": "analysis.channels",
    "clone": "model",
    "compare": "verify",
    "cost": "analysis.cost",
    "hookimpl": "hookspecs",
    "is_random": "ops",
    "load": "model",
    "measure": "measuring",
    "op_info": "ops",
    "optimize": "optimizer",
    "save": "model",
    "selected": "selection",
    "substitute": "surgery",
    "sweep": "surgery",
    "to_networkx": "graphs",
    "trace": "frontends.torch",
}
"""Each public name, and the module it is imported from when it is first used."""

__all__ = sorted([*_HOMES, "query"])

if TYPE_CHECKING:
    from . import query as query
    from .analysis.channels import channel_groups as channel_groups
    from .analysis.cost import cost as cost
    from .analysis.shapes import Shapes as Shapes
    from .backends.onnxruntime import OnnxRuntime as OnnxRuntime
    from .context import Context as Context
    from .errors import GraphoptError as GraphoptError
    from .errors import InputError as InputError
    from .errors import ModelError as ModelError
    from .errors import OptionError as OptionError
    from .errors import PassError as PassError
    from .errors import PipelineError as PipelineError
    from .errors import PluginError as PluginError
    from .errors import UnavailableError as UnavailableError
    from .errors import UsageError as UsageError
    from .errors import VerificationError as VerificationError
    from .frontends import Frontend as Frontend
    from .frontends.torch import trace as trace
    from .graphs import to_networkx as to_networkx
    from .hookspecs import hookimpl as hookimpl
    from .interfaces import Backend as Backend
    from .interfaces import Drift as Drift
    from .interfaces import Effect as Effect
    from .interfaces import Executable as Executable
    from .interfaces import FxPass as FxPass
    from .interfaces import Level as Level
    from .interfaces import NodeTime as NodeTime
    from .interfaces import Pass as Pass
    from .interfaces import PassReport as PassReport
    from .measuring import measure as measure
    from .model import clone as clone
    from .model import load as load
    from .model import save as save
    from .ops import OpInfo as OpInfo
    from .ops import is_random as is_random
    from .ops import op_info as op_info
    from .optimizer import Result as Result
    from .optimizer import optimize as optimize
    from .query import Decline as Decline
    from .query import all_graphs as all_graphs
    from .query import all_nodes as all_nodes
    from .racing import Timing as Timing
    from .rewrite import Rewrite as Rewrite
    from .rewrite import Tape as Tape
    from .selection import selected as selected
    from .surgery import Names as Names
    from .surgery import substitute as substitute
    from .surgery import sweep as sweep
    from .verify import compare as compare


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import graphopt`` stays fast."""
    if name == "query":
        return importlib.import_module(".query", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
