"""Half precision: what may be cast, what must not, how many casts it takes, and that all of it can be taken back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt
from graphopt import Backend, Context, PassReport, clone, pipeline
from graphopt.testing import conformance, same_outputs, valid
from graphopt.text import from_text

FLOAT16, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


class AnyKernel(Backend):
    """A target with a kernel of everything but a few operators, which cannot run here."""

    name = "any"

    def __init__(self, *without: str) -> None:
        self.without = without

    def unavailable(self) -> str | None:
        return "it is made up"

    def compile(self, model: ir.Model, **settings: Any) -> Any:
        raise NotImplementedError

    def profile(self, model: ir.Model, inputs: Any, runs: int = 10) -> Any:
        raise NotImplementedError

    def supports(self, domain: str, op_type: str, dtype: ir.DataType | None = None) -> bool:
        return op_type not in self.without


def cast(
    model: ir.Model, options: str = "", *without: str, calibration: Iterable[Any] | None = None
) -> tuple[ir.Model, PassReport]:
    """Run the pass for a target without some kernels; check that it can be taken back."""
    (step,) = pipeline.parse(f"cast-float{{{options}}}").passes()
    copy = clone(model)
    context = Context(copy, target=AnyKernel(*without), calibration=calibration)
    context.step = step.name
    report = step.run(copy, context)
    valid(copy)
    assert [v.dtype for v in copy.graph.inputs] == [v.dtype for v in model.graph.inputs]
    assert [(v.name, v.dtype) for v in copy.graph.outputs] == [(v.name, v.dtype) for v in model.graph.outputs]
    if report.applied:
        assert report.restored is not None
        valid(report.restored)
        same_outputs(model, report.restored)
    return copy, report


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


CHAIN = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,4] x) => (float[N,4] y)
<float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}, float[4] b = {1,2,3,4}>
{
    a = MatMul (x, w)
    c = Add (a, b)
    d = Relu (c)
    e = MatMul (d, w)
    y = Softmax (e)
}"""


def test_a_chain_takes_a_cast_at_either_end() -> None:
    made, report = cast(from_text(CHAIN))
    assert operators(made) == ["Cast", "MatMul", "Add", "Relu", "MatMul", "Softmax", "Cast"]
    assert [value.dtype for value in made.graph.initializers.values()] == [FLOAT16, FLOAT16]
    assert report.notes == [
        "no calibration data were given: whether activations overflow was not looked at",
        "5 nodes in float16, 2 casts; 0.00 MB of weights became half",
    ]
    assert graphopt.compare(from_text(CHAIN), made).outputs[0].sqnr_db > 50


def test_bfloat16() -> None:
    made, report = cast(from_text(CHAIN), "to=bfloat16")
    assert [value.dtype for value in made.graph.initializers.values()] == [ir.DataType.BFLOAT16] * 2
    assert report.notes == ["5 nodes in bfloat16, 2 casts; 0.00 MB of weights became half"]


def test_what_lies_between_two_nodes_in_float_stays_in_float() -> None:
    made, report = cast(from_text(CHAIN), "", "Add", "MatMul")
    assert operators(made) == operators(from_text(CHAIN)) and not report.applied
    assert report.notes[-1] == "any has no float16 kernels of what stays in float: 2 MatMul, 1 Add"


def test_a_node_in_float_takes_a_cast_on_either_side() -> None:
    made, _ = cast(from_text(CHAIN), "", "Relu")
    assert operators(made) == ["Cast", "MatMul", "Add", "Cast", "Relu", "Cast", "MatMul", "Softmax", "Cast"]


def test_kept_nodes_next_to_each_other_take_no_casts_between_them() -> None:
    made, report = cast(from_text(CHAIN), "keep=[Add,Relu]")
    assert operators(made) == ["Cast", "MatMul", "Cast", "Add", "Relu", "Cast", "MatMul", "Softmax", "Cast"]
    assert [d.reason for d in report.declined] == ["it is to be kept"] * 2


def test_activations_that_reach_far_stay_in_float() -> None:
    feeds = [{"x": np.array([[1, 2, 3, scale]], np.float32)} for scale in (4, 8000)]
    made, report = cast(from_text(CHAIN), calibration=feeds)
    assert [d.reason for d in report.declined] == [
        "a reaches 5.6e+04, and float16 ends at 65504",
        "a reaches 5.6e+04, and float16 ends at 65504",
        "c reaches 5.6e+04, and float16 ends at 65504",
        "d reaches 5.6e+04, and float16 ends at 65504",
        "e reaches 9.85e+05, and float16 ends at 65504",
    ]
    assert operators(made) == operators(from_text(CHAIN))
    _, report = cast(from_text(CHAIN), calibration=feeds[:1])
    assert len(report.applied) == 5


def test_weights_that_reach_too_far_stay_in_float() -> None:
    model = from_text(CHAIN.replace("b = {1,", "b = {70000,"))
    made, report = cast(model)
    assert [(d.where, d.reason) for d in report.declined] == [("c", "b holds 7e+04, beyond 65504")]
    assert operators(made).count("Cast") == 4
    _, report = cast(model, "to=bfloat16")
    assert not report.declined


def test_an_input_that_onnx_wants_in_float_stays_so() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["" : 19]>
    main (float[1,1,2,2] x) => (float[1,1,4,4] y) <float[1,1,1,1] w = {2}, float[4] scales = {1,1,2,2}>
    { a = Conv (x, w) y = Resize (a, "", scales) }""")
    made, _ = cast(model)
    assert operators(made) == ["Cast", "Conv", "Resize", "Cast"]
    assert {name: value.dtype for name, value in made.graph.initializers.items()} == {
        "scales": FLOAT,
        "w/float16": FLOAT16,
    }


def test_statistics_of_a_normalization_stay_in_float() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["" : 20]>
    main (float[N,4] x) => (float[N,4] y, float[N,1] mean)
    <float[4] s = {1,2,3,4}, float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>
    { a = MatMul (x, w) y, mean = LayerNormalization (a, s) }""")
    made, _ = cast(model)
    assert [(node.op_type, [v.dtype for v in node.outputs]) for node in made.graph][-2:] == [
        ("LayerNormalization", [FLOAT16, FLOAT]),
        ("Cast", [FLOAT]),
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("h = QuantizeLinear (a, s) y = DequantizeLinear (h, s)", "its numbers need the longer type"),
        ("i = Cast <to = 7> (a) y = Cast <to = 1> (i)", "what it makes depends on all digits"),
        ("y = own.thing (a)", "own::thing is not defined for float16"),
    ],
)
def test_what_is_never_cast(body: str, reason: str) -> None:
    model = from_text(f"""<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
    main (float[4,4] x) => (float[4,4] y) <float s = {{0.5}}> {{ a = MatMul (x, x) {body} }}""")
    if "own" in body:
        model.graph.node(1).outputs[0].type = ir.TensorType(FLOAT)
        (step,) = pipeline.parse("cast-float").passes()
        report = step.run(model, Context(model, target=AnyKernel()))
    else:
        _, report = cast(model)
    assert reason in {d.reason for d in report.declined}


def test_it_conforms() -> None:
    (step,) = pipeline.parse("cast-float").passes()
    conformance(
        step,
        [
            """<ir_version: 10, opset_import: ["" : 23]>
            main (float[1,2,4] q, float[1,2,4] k) => (float[1,2,4] y)
            { a = Attention <q_num_heads = 1, kv_num_heads = 1> (q, k, k)
              b = Clip (a) c = Add (b, k) y = Attention <q_num_heads = 1, kv_num_heads = 1> (c, c, b) }"""
        ],
    )


UNARY = ["Relu", "Tanh", "Neg", "Sqrt", "Round", "Identity"]
KEPT = st.lists(st.sampled_from([*UNARY, "Add", "MatMul"]), max_size=3)


@settings(deadline=None, max_examples=40)
@given(st.data(), KEPT)
def test_any_graph_can_be_taken_back_and_takes_no_needless_casts(data: Any, without: list[str]) -> None:
    lines, names = [], ["x"]
    for i in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from([*UNARY, "Add", "MatMul"]))
        picked = [data.draw(st.sampled_from(names)) for _ in range(2 if kind in ("Add", "MatMul") else 1)]
        lines.append(f"v{i} = {kind} ({', '.join(picked)})")
        names.append(f"v{i}")
    outputs = sorted({data.draw(st.sampled_from(names[1:])) for _ in range(2)})
    declared = ", ".join(f"float[2,2] {name}" for name in outputs)
    model = from_text(
        f'<ir_version: 10, opset_import: ["" : 20]> main (float[2,2] x) => ({declared}) {{ {" ".join(lines)} }}'
    )
    made, _ = cast(model, "", *without)
    casts = [node for node in made.graph if node.op_type == "Cast"]
    assert len({(node.inputs[0], node.attributes["to"].as_int()) for node in casts}) == len(casts)
    for node in casts:
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert before is None or before.op_type != "Cast", "a cast of a cast"
        assert node.outputs[0].uses() or node.outputs[0].is_graph_output()


def test_the_processor_says_what_it_lacks() -> None:
    result = graphopt.optimize(from_text(CHAIN), "cast-float", strict=True)
    assert result.report.passes[0].notes[-1] == (
        "onnxruntime:cpu has no float16 kernels of what stays in float: 2 MatMul, 1 Add, 1 Relu, 1 Softmax"
    )


def test_a_target_that_is_not_here_is_proved_by_what_is() -> None:
    result = graphopt.optimize(from_text(CHAIN), "cast-float", target="onnxruntime:tensorrt", strict=True)
    assert len(result.report.passes[0].applied) == 5
    assert [(c.against, c.ok) for c in result.report.checks] == [("original, without the loss", True)]
