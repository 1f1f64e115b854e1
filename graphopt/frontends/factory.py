"""Models by the name of what makes them: ``package.module:callable``."""

from __future__ import annotations

from .. import addresses
from ..errors import GraphoptError, ModelError

SOURCES = "(module, args[, kwargs[, dynamic_shapes]]), an ExportedProgram or an onnx_ir.Model"
"""What a callable may return."""


def call(address: str) -> object:
    """Return what the callable at ``address`` returns.

    Raises:
        ModelError: it cannot be imported, is no callable, raises, or returns nothing.
    """
    function = addresses.function(address, f"a function that returns {SOURCES}", ModelError)
    try:
        made: object = function()
    except GraphoptError:
        raise
    except Exception as error:  # a stranger's code
        raise ModelError(f"{address}: it raised {type(error).__name__}: {error}") from error
    if made is None:
        raise ModelError(f"{address}: it returned nothing; return {SOURCES}")
    return made
