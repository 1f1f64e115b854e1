"""Integers for floats: parameters as ONNX defines them, and rounding as onnxruntime does it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.backends import session as sessions
from graphopt.scheme import Scheme
from graphopt.text import from_text

NUMBERS = st.floats(-1e6, 1e6, width=32)


def test_limits() -> None:
    assert Scheme(ir.DataType.UINT8).limits == (0, 255)
    assert Scheme(ir.DataType.INT8).limits == (-128, 127)
    assert Scheme(ir.DataType.INT8, symmetric=True).limits == (-127, 127)
    assert Scheme(ir.DataType.UINT8, symmetric=True).limits == (1, 255)
    assert Scheme(ir.DataType.INT8, reduce_range=True).limits == (-64, 63)
    assert Scheme(ir.DataType.INT4, symmetric=True).limits == (-7, 7)
    assert Scheme(ir.DataType.UINT16).limits == (0, 65535)


def test_parameters() -> None:
    assert [float(x) for x in Scheme().parameters(-1.0, 3.0)] == [float(np.float32(4 / 255)), 64]
    assert [float(x) for x in Scheme().parameters(2.0, 255.0)] == [1.0, 0], "0 joins the range"
    assert [float(x) for x in Scheme(symmetric=True).parameters(-127.0, 50.0)] == [1.0, 128]
    scale, zero = Scheme(ir.DataType.INT8, symmetric=True).parameters(
        np.array([-254.0, 0]), np.array([1.0, 0])
    )
    assert (scale.tolist(), zero.tolist()) == ([2.0, 1.0], [0, 0])
    assert scale.dtype == np.float32
    assert Scheme().parameters(0.0, 1e-44)[0] == 1.0, "a scale below the normal numbers"


@pytest.mark.parametrize(
    "dtype", [ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT16, ir.DataType.INT16]
)
@given(x=st.lists(NUMBERS, min_size=1, max_size=40), low=NUMBERS, high=NUMBERS)
def test_rounding_is_that_of_onnxruntime(dtype: ir.DataType, x: list[float], low: float, high: float) -> None:
    scheme, array = Scheme(dtype), np.array(x, np.float32)
    scale, zero = scheme.parameters(min(low, high), max(low, high))
    kind = dtype.name.lower()
    model = from_text(f"""<ir_version: 10, opset_import: ["" : 21]>
        main (float[N] x, float s, {kind} z) => (float[N] y)
        {{ q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }}""")
    feeds = {"x": array, "s": np.asarray(scale), "z": np.asarray(zero, dtype.numpy())}
    want = sessions.run(sessions.create(model, optimize="none"), feeds)["y"]
    np.testing.assert_array_equal(scheme.dequantize(scheme.quantize(array, scale, zero), scale, zero), want)


@given(st.lists(NUMBERS, min_size=1, max_size=40))
def test_what_lies_in_the_range_moves_by_half_a_step_at_most(x: list[float]) -> None:
    array = np.array(x, np.float32)
    scale, _ = Scheme().parameters(array.min(), array.max())
    moved = np.abs(Scheme().rounded(array, array.min(), array.max()).astype(np.float64) - array)
    assert moved.max() <= float(scale) * (1 + 1e-4)
