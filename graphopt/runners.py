"""The two ways to run a model for the sake of its numbers: onnxruntime as it is written, and onnx's own evaluator."""

from __future__ import annotations

import abc
from typing import Any

import onnx_ir as ir

from .context import Feeds
from .errors import ModelError

_EVALUATOR_FAULTS = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
    *(ImportError, MemoryError),
)
"""What onnx's evaluator may raise on operators, types and sizes that it does not know."""


class Runner(abc.ABC):
    """A model that can be run; a context manager."""

    @abc.abstractmethod
    def __init__(self, model: ir.Model) -> None:
        """Prepare to run.

        Raises:
            ModelError: the model is refused.
        """

    @abc.abstractmethod
    def run(self, feed: Feeds) -> dict[str, Any]:
        """Return the outputs by name.

        Raises:
            InputError: the inputs do not fit.
            ModelError: an operator fails.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Free what running takes."""

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class OnnxRuntime(Runner):
    """onnxruntime with its own optimizations off: it runs the graph that is there."""

    def __init__(self, model: ir.Model) -> None:
        from .backends.session import create

        self._session: Any = create(model, optimize="none", prepack=False)

    def run(self, feed: Feeds) -> dict[str, Any]:
        """Return the outputs by name."""
        from .backends.session import run

        return run(self._session, {name: given for name, given in feed.items() if given is not None})

    def close(self) -> None:
        """Free the session."""
        self._session = None


class Evaluator(Runner):
    """onnx's reference evaluator: slow, and knows operators and types that onnxruntime does not."""

    def __init__(self, model: ir.Model) -> None:
        from onnx.reference import ReferenceEvaluator

        self._names = [value.name or "" for value in model.graph.outputs]
        try:
            self._evaluator: Any = ReferenceEvaluator(ir.to_proto(model))
        except _EVALUATOR_FAULTS as error:
            raise ModelError(f"onnx's evaluator refuses the model: {_line(error)}") from error

    def run(self, feed: Feeds) -> dict[str, Any]:
        """Return the outputs by name."""
        try:
            return dict(zip(self._names, self._evaluator.run(None, dict(feed)), strict=True))
        except _EVALUATOR_FAULTS as error:
            raise ModelError(f"onnx's evaluator fails to run the model: {_line(error)}") from error

    def close(self) -> None:
        """Free the evaluator's copy of the weights."""
        self._evaluator = None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
