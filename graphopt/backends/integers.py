"""What a processor's integer instructions are: which 8-bit types its matrix products are fast and exact in."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

from ..interfaces import IntegerSupport

PATHS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "i8mm": "Arm i8mm",
    "asimddp": "Arm dot product",
}
"""Flags of processors that sum products of bytes in 32 bits, the fastest first."""


@functools.cache
def processor() -> IntegerSupport:
    """Return what this machine's processor is best at; of an unknown one, what is right on every processor."""
    return support(_flags(), platform.machine())


def support(flags: frozenset[str], machine: str) -> IntegerSupport:
    """Return what a processor with these flags is best at.

    Source: onnxruntime, "Quantize ONNX models", Method selection and When and why to use U8U8; AVX2's VPMADDUBSW adds
    two products of uint8 and int8 in 16 bits and saturates, so weights there leave one bit unused.
    """
    found = next((name for flag, name in PATHS.items() if flag in flags), None)
    arm = machine.lower() in ("aarch64", "arm64")
    if found is None and arm:
        return IntegerSupport("Arm NEON", "int8", "int8", reduce_range=False)
    if found is None:
        return IntegerSupport(
            "AVX2" if "avx2" in flags else "no integer products", "uint8", "int8", reduce_range=True
        )
    return IntegerSupport(found, "int8" if arm else "uint8", "int8", reduce_range=False)


def _flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())
