"""The table of which numeric type holds which, against every value of every small type."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.merge_casts import holds

NUMERIC = [d for d in ir.DataType if d == ir.DataType.BOOL or d.is_integer() or d.is_floating_point()]
SMALL = [d for d in NUMERIC if d.bitwidth <= 16]


def values(dtype: ir.DataType) -> np.ndarray:
    if dtype == ir.DataType.BOOL:
        return np.array([0.0, 1.0])
    if dtype.is_integer():
        return np.arange(dtype.min, int(dtype.max) + 1).astype(np.float64)
    codes = np.arange(2**dtype.bitwidth, dtype=np.uint16 if dtype.bitwidth == 16 else np.uint8)
    with np.errstate(invalid="ignore"):
        return codes.view(dtype.numpy()).astype(np.float64)


def survives(array: np.ndarray, dtype: ir.DataType) -> bool:
    """Return whether a cast to ``dtype`` and back changes nothing, the sign of zero and NaN included."""
    if dtype.is_integer() or dtype == ir.DataType.BOOL:
        low, high = (0, 1) if dtype == ir.DataType.BOOL else (int(dtype.min), int(dtype.max))
        whole = np.isfinite(array) & (array >= low) & (array <= high) & (array == np.trunc(array))
        return bool(whole.all() and not (np.signbit(array) & (array == 0)).any())
    with np.errstate(all="ignore"):
        back = array.astype(dtype.numpy()).astype(np.float64)
    return bool(
        np.array_equal(back, array, equal_nan=True)
        and (np.signbit(back) == np.signbit(array))[array == 0].all()
    )


@pytest.mark.parametrize("inner", SMALL, ids=str)
def test_holds(inner: ir.DataType) -> None:
    array = values(inner)
    wrong = [outer for outer in NUMERIC if holds(outer, inner) != survives(array, outer)]
    assert not wrong


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("DOUBLE", "INT32", True),
        ("DOUBLE", "UINT32", True),
        ("DOUBLE", "INT64", False),
        ("FLOAT", "INT32", False),
        ("DOUBLE", "FLOAT", True),
        ("FLOAT", "DOUBLE", False),
        ("INT64", "UINT32", True),
        ("INT64", "UINT64", False),
        ("UINT64", "INT64", False),
    ],
)
def test_wide_types(outer: str, inner: str, expected: bool) -> None:
    assert holds(ir.DataType[outer], ir.DataType[inner]) is expected


def test_nothing_holds_text_or_complex_numbers() -> None:
    others = [ir.DataType.STRING, ir.DataType.COMPLEX64]
    assert not any(holds(a, b) or holds(b, a) for a, b in itertools.product(others, NUMERIC))
