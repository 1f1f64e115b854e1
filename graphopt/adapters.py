"""Passes that were written for other drivers, made to stand in a pipeline as they are."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr

from .errors import PassError, PipelineError
from .interfaces import FxPass, Pass, PassReport

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from .context import Context


class Call(Pass):
    """Run a pass that was written for another driver: an ``onnx_ir`` pass or an ``onnxscript`` rule set.

    The whole run counts as one rewrite. A class is called without arguments to make the pass.
    """

    target: str = Field(description="where the pass is found, as package.module:name")

    _object: Any = PrivateAttr(default=None)

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Run the foreign pass on ``model``."""
        report = PassReport()
        if context.admit(report, self.target):
            foreign = self._object if self._object is not None else find(self.target)
            changed = _run_foreign(foreign, model, self.target)
            if not changed:
                report.applied.clear()
        return report


class CallFx(FxPass):
    """Run a ``torch.fx.GraphModule -> GraphModule`` function on the exported program, before it is lowered.

    A function that changes the module in place may return nothing, and a pass of ``torch.fx`` its ``PassResult``.
    """

    target: str = Field(description="where the function is found, as package.module:name")

    _object: Any = PrivateAttr(default=None)

    def transform(self, module: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Call the function."""
        returned = (self._object if self._object is not None else find(self.target))(module)
        return module if returned is None else getattr(returned, "graph_module", returned)


def find(target: str) -> Any:
    """Return the object called ``package.module:name``, made by calling it where it is a class.

    Raises:
        PipelineError: there is no such object.
    """
    module_name, _, qualified = target.partition(":")
    if not qualified:
        raise PipelineError(f"{target!r} is no place of a pass; write package.module:name")
    try:
        found = functools.reduce(getattr, qualified.split("."), importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise PipelineError(f"{target!r} is not to be found: {error}") from error
    return found() if isinstance(found, type) else found


def adapt(foreign: object) -> Pass:
    """Return a pass that runs ``foreign``: an ``onnx_ir`` pass, a rule set, or a function of a ``GraphModule``.

    Raises:
        PipelineError: it is none of these.
    """
    cls: type[Call] | type[CallFx]
    if _is_onnx_pass(foreign):
        cls = Call
    elif callable(foreign):
        cls = CallFx
    else:
        raise PipelineError(
            f"a step is a pass, pipeline text, an onnx_ir pass, an onnxscript rule set or a GraphModule function, "
            f"got {foreign!r}"
        )
    made = cls(target=_address(foreign))
    made._object = foreign
    return made


def _is_onnx_pass(foreign: object) -> bool:
    import onnx_ir as ir

    return isinstance(foreign, ir.passes.PassBase) or hasattr(foreign, "apply_to_model")


def _address(foreign: Any) -> str:
    named = foreign if hasattr(foreign, "__qualname__") else type(foreign)
    return f"{named.__module__}:{named.__qualname__}"


def _run_foreign(foreign: Any, model: ir.Model, target: str) -> bool:
    """Run ``foreign`` on ``model`` in place; return whether it changed anything."""
    import onnx_ir as ir

    if isinstance(foreign, ir.passes.PassBase):
        result = foreign(model)
        if result.model is not model:
            raise PassError(f"{target}: it makes a new model; graphopt takes passes that work in place")
        return bool(result.modified)
    if hasattr(foreign, "apply_to_model"):
        return bool(foreign.apply_to_model(model))
    raise PassError(f"{target}: it is no onnx_ir pass and no onnxscript rule set, got {foreign!r}")
