"""ONNX in: files, and models in memory."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from ..errors import UsageError
from ..model import from_proto, load
from . import Frontend


class OnnxFrontend(Frontend):
    """Reads ``.onnx`` files, ``onnx_ir.Model`` (which stays the caller's own) and ``onnx.ModelProto``."""

    name = "onnx"

    def accepts(self, source: object) -> bool:
        """Return whether ``source`` is one of these."""
        if isinstance(source, (str, Path)):
            return Path(source).suffix.lower() == ".onnx"
        return isinstance(source, (ir.Model, onnx.ModelProto))

    def read(self, source: object) -> ir.Model:
        """Return the model; weights stay in the file that they are in."""
        if isinstance(source, (str, Path)):
            return load(source)
        if isinstance(source, onnx.ModelProto):
            return from_proto(source)
        if isinstance(source, ir.Model):
            return source
        raise UsageError(f"{source!r}: no ONNX model")
