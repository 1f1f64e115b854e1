"""Statistics estimated anew: they are those of the data, layer by layer, and the structure stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.calibration import ChannelStatistics, observe
from graphopt.context import Context
from graphopt.text import from_text

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[4] s = {1,2,3,4}, float[4] b = {0,1,0,1}, float[4] m = {0,0,0,0}, float[4] v = {1,1,1,1}>
{
   c = Conv <pads = [1,1,1,1]> (x, w0)
   n = BatchNormalization (c, s, b, m, v)
   r = Relu (n)
   d = Conv <pads = [1,1,1,1]> (r, w1)
   y = BatchNormalization (d, s, b, m, v)
}"""


def network() -> ir.Model:
    rng = np.random.default_rng(0)
    model = from_text(TEXT)
    free = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, shape in {"w0": (4, 3, 3, 3), "w1": (4, 4, 3, 3)}.items():
        free[name].const_value = ir.tensor(rng.normal(size=shape).astype(np.float32), name=name)
        free[name].type, free[name].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        model.graph.register_initializer(free[name])
    return model


def pictures(seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.uniform(-1, 2, size=(2, 3, 8, 8)).astype(np.float32)} for _ in range(8)]


def test_what_each_one_makes_has_the_means_and_deviations_that_it_was_given() -> None:
    result = graphopt.optimize(
        network(), "reestimate-batchnorm", inputs=pictures(1)[:2], calibration=pictures(0), strict=True
    )
    assert result.report.verified
    seen = {name: ChannelStatistics(1) for name in ("n", "y")}
    observe(result.model, seen, Context(result.model, calibration=pictures(0)))
    for each in seen.values():
        np.testing.assert_allclose(each.mean, [0, 1, 0, 1], atol=1e-4)
        np.testing.assert_allclose(each.second_moment - each.mean**2, [1, 4, 9, 16], rtol=1e-3)


def test_it_asks_for_data() -> None:
    with pytest.raises(
        graphopt.InputError, match=r"^reestimate-batchnorm: it needs calibration data and got none"
    ):
        graphopt.optimize(network(), "reestimate-batchnorm")
