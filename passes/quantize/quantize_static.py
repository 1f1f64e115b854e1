"""Quantize for integer kernels, with ranges from calibration data."""

from __future__ import annotations

from .insert_qdq import InsertQdq


class QuantizeStatic(InsertQdq):
    """Find ranges on calibration data, then put Q/DQ pairs in: ``insert-qdq`` by the name that other tools give it.

    Run it behind ``speed`` (``--pipeline speed,quantize-static``), which folds what would stand between pairs.
    """
