"""Quantize for integer kernels, with ranges from calibration data."""

from __future__ import annotations

from .insert_qdq import InsertQdq


class QuantizeStatic(InsertQdq):
    """Find ranges on calibration data, then put Q/DQ pairs in: ``insert-qdq`` by the name that other tools give it.

    Run it behind ``speed`` (``--pipeline speed,quantize-static``), which folds what would stand between pairs.

    Lossy: without its pairs, and with the float weights in place of the integers, the result must be what it was.
    Source: ONNX QuantizeLinear-10 to 25; Jacob et al. 2018 (arXiv:1712.05877), section 2.
    """
