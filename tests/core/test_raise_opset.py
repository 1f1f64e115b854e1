"""Raising the opset: what a case file cannot say."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import all_graphs, optimize, pipeline
from graphopt.backends import session
from graphopt.testing import conformance, run, same_outputs, valid
from graphopt.text import from_text

OPERATORS = {
    "axes": "y = ReduceL2 <axes = [1]> (x)",
    "noop": "y = ReduceSum <keepdims = 0> (x)",
    "split": "y, b = Split <axis = -1> (x)",
    "dropout": "y = Dropout (x)",
    "pad": "y = Pad <mode = 'reflect'> (x, pads)",
    "pool": "y = AveragePool <kernel_shape = [2], strides = [2], ceil_mode = 1, count_include_pad = 1> (x)",
    "resize": "y = Resize <mode = 'linear'> (x, , scales)",
    "cast": "h = Cast <to = 10> (x) y = Cast <to = 1> (h)",
    "quantize": "h = QuantizeLinear (x, step, zero) y = DequantizeLinear (h, step, zero)",
    "spectrum": "y = DFT <axis = 1> (z)",
}
"""Writings at opset 17, of which most have a newer form."""


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("to", [18, 19, 20, 21, 23, 25])
def test_an_operator_computes_the_same_in_every_opset(name: str, to: int) -> None:
    body = OPERATORS[name].replace("'", '"')
    before = from_text(
        '<ir_version: 8, opset_import: ["" : 17]> main (float[2,3,6] x, float[2,6,1] z) => (float y)'
        "<int64[6] pads = {0,0,1,0,0,1}, float[3] scales = {1,1,2}, float step = {0.5}, uint8 zero = {3}>"
        f"{{ {body} }}"
    )
    before.graph.outputs[0].shape = ir.Shape([None] * (0 if name == "noop" else 3))
    (step,) = pipeline.parse(f"raise-opset{{to={to}}}").passes()
    after, report, _ = run(step, before)
    assert len(report.applied) == 1, report
    assert after.opset_imports[""] == to
    valid(after)
    same_outputs(before, after)


def test_the_meaning_of_a_scale_is_not_lost() -> None:
    x, scale, bias = (
        ir.val(name, ir.DataType.FLOAT, shape) for name, shape in (("x", [1, 4, 2]), ("s", [2]), ("b", [2]))
    )
    node = ir.node("GroupNormalization", [x, scale, bias], {"num_groups": 2})
    graph = ir.Graph([x, scale, bias], node.outputs, nodes=[node], opset_imports={"": 18})
    model = ir.Model(graph, ir_version=8)
    (step,) = pipeline.parse("raise-opset").passes()
    after, report, _ = run(step, model)
    assert [d.reason for d in report.declined] == [
        "its scale counts groups before opset 21, and channels from then on"
    ]
    assert after.opset_imports[""] == 18


def test_operators_of_newer_opsets_can_be_made() -> None:
    before = from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        main (float[2,4] x) => (float[2,4] y)
        <float epsilon = {1e-6}, float two = {2}, float one = {1}, float[4] scale = {1,2,3,4}>
        {
            square = Pow (x, two)
            mean = ReduceMean <axes = [-1]> (square)
            above = Add (mean, epsilon)
            root = Sqrt (above)
            inverse = Div (one, root)
            n = Mul (x, inverse)
            y = Mul (n, scale)
        }"""
    )
    result = optimize(before, "raise-opset,simplify,fuse-layer-norm{dialect=standard}", strict=True)
    assert result.report.verified
    assert [node.op_type for node in result.model.graph] == ["RMSNormalization"]
    x = np.array([[1, 2, 3, 4], [0, 0, 0, 0]], np.float32)
    (y,) = session.run(session.create(result.model), {"x": x}).values()
    np.testing.assert_allclose(y[0], x[0] * [1, 2, 3, 4] / np.sqrt(7.5), 1e-5)


def test_it_conforms() -> None:
    (step,) = pipeline.parse("raise-opset").passes()
    conformance(
        step,
        [
            """<ir_version: 8, opset_import: ["" : 17]>
            main (float[N,4] x) => (float[N,1] y) { y = ReduceMean <axes = [1]> (x) }"""
        ],
    )


@pytest.mark.parametrize("called", [False, True])
def test_types_need_not_be_known(called: bool) -> None:
    body = "s = Shape (x) t = Identity (s) y = Reshape (x, t)"
    text = f'<ir_version: 8, opset_import: ["" : 17, "local" : 1]> main (float[2,3] x) => (float[2,3] y) {{ {body} }}'
    if called:
        text = text.replace(body, "y = local.same (x)")
        text += f'<domain: "local", opset_import: ["" : 17]> same (x) => (y) {{ {body} }}'
    before = from_text(text)
    result = optimize(before, "raise-opset", strict=True)
    assert result.model.opset_imports[""] == 23
    assert result.report.verified
    assert all(graph.opset_imports[""] == 23 for graph in all_graphs(result.model))
