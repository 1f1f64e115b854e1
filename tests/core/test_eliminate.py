"""What the case files of the passes that eliminate, inline and infer cannot express."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import PassReport, Shapes, all_nodes, compare, pipeline
from graphopt.context import Context
from graphopt.origin import SCOPE
from graphopt.testing import conformance, run
from graphopt.text import from_text, to_text


def make(text: str):
    (step,) = pipeline.parse(text).passes()
    return step


def main(body: str, opset: int = 20) -> ir.Model:
    return from_text(f'<ir_version: 10, opset_import: ["" : {opset}, "local" : 1]>\n{body}')


def declined(name: str, model: ir.Model) -> list[str]:
    after, entry, _ = run(make(name), model)
    assert to_text(after) == to_text(model)
    return [f"{d.op_type} {d.where}: {d.reason}" for d in entry.declined]


TWICE = """agraph (float[N,4] x) => (float[N,4] y, float[N,4] z) {
    one = Constant <value_float = 1.0> ()
    uno = Constant <value_float = 1.0> ()
    a = local.f (x)
    b = local.f (x)
    c = Mul (a, one)
    d = Mul (b, uno)
    e = Identity (d)
    y = Add (c, e)
    z = Relu (d)
    dead = Neg (z)
}
<domain: "local", opset_import: ["" : 20]>
f (x) => (y) {
    one = Constant <value_float = 1.0> ()
    uno = Constant <value_float = 1.0> ()
    a = Add (x, one)
    b = Add (uno, x)
    c = Identity (a)
    d = Neg (b)
    y = Sub (c, b)
}"""


@pytest.mark.parametrize(
    "name",
    [
        "eliminate-dead",
        "eliminate-common",
        "eliminate-no-ops",
        "deduplicate-constants",
        "inline-functions",
        "infer-shapes",
    ],
)
def test_it_conforms(name):
    conformance(make(name), [main(TWICE)])


# --- deduplicate-constants --------------------------------------------------------------------------------------------


def weights(*arrays: np.ndarray) -> ir.Model:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    values = [ir.Value(name=f"w{i}", const_value=ir.tensor(a)) for i, a in enumerate(arrays)]
    nodes = [ir.node("Add", [x, value], outputs=[ir.Value(name=f"y{i}")]) for i, value in enumerate(values)]
    for node in nodes:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=values, opset_imports={"": 20}, name="weights")
    return ir.Model(graph, ir_version=10)


class Unread(ir.Tensor):
    """A tensor that must not be read."""

    def numpy(self):
        raise AssertionError(f"{self.name} was read")


def test_a_weight_of_its_own_shape_is_not_read():
    model = weights(np.zeros(3, np.float32))
    model.graph.initializers["w0"].const_value = Unread(np.zeros(3, np.float32), name="w0")
    report = make("deduplicate-constants").run(model, Context(model))
    assert report.applied == []


def test_weights_that_differ_at_an_end_are_not_read_further(monkeypatch):
    def never(**_):
        raise AssertionError("a digest was made")

    monkeypatch.setattr(hashlib, "blake2b", never)
    first, last = (np.zeros(1000, np.float32) for _ in range(2))
    first[0] = last[-1] = 1
    model = weights(np.zeros(1000, np.float32), first, last)
    assert make("deduplicate-constants").run(model, Context(model)).applied == []


def test_weights_that_differ_in_the_middle_stay():
    middle = np.zeros(1_000_000, np.float32)
    middle[500_000] = 1
    model = weights(np.zeros_like(middle), middle, np.zeros_like(middle), middle.copy())
    after, entry, _ = run(make("deduplicate-constants"), model)
    assert [(a.where, a.detail) for a in entry.applied] == [("w2", "= w0"), ("w3", "= w1")]
    assert [node.inputs[1].name for node in after.graph] == ["w0", "w1", "w0", "w1"]


@pytest.mark.parametrize("dtype", [ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4])
def test_types_that_numpy_lacks(dtype):
    arrays = [np.array(a).astype(dtype.numpy()) for a in ([1, 2, 3], [1, 2, 3], [1, 2, 4])]
    model = weights(*arrays)
    report = make("deduplicate-constants").run(model, Context(model))
    assert [(a.where, a.detail) for a in report.applied] == [("w1", "= w0")]


# --- functions --------------------------------------------------------------------------------------------------------

OVERLOADS = """agraph (float[3] x) => (float[3] y) {
    a = local.f:exp (x)
    y = Neg (a)
}
<domain: "local", overload: "exp", opset_import: ["" : 20]>
f (x) => (y) { y = Exp (x) }
<domain: "local", overload: "abs", opset_import: ["" : 20]>
f (x) => (y) { y = Abs (x) }"""


def test_only_the_overload_that_is_called_stays():
    after, entry, _ = run(make("eliminate-dead"), main(OVERLOADS))
    assert list(after.functions) == [("local", "f", "exp")]
    assert [(a.where, a.detail) for a in entry.applied] == [("local::f:abs", "nothing calls it")]


def test_the_overload_that_is_called_is_inlined():
    model = main(OVERLOADS)
    after, _, _ = run(make("inline-functions"), model)
    assert [node.op_type for node in after.graph] == ["Exp", "Neg"]
    assert list(after.functions) == [("local", "f", "abs")]
    assert compare(model, after).ok


def test_a_function_that_calls_itself_is_left_alone():
    model = main("""agraph (float[3] x) => (float[3] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 20, "local" : 1]>
        f (x) => (y) { y = local.g (x) }
        <domain: "local", opset_import: ["" : 20, "local" : 1]>
        g (x) => (y) { y = local.f (x) }""")
    report = make("inline-functions").run(model, Context(model))
    assert report.applied == []
    assert [(d.op_type, d.reason) for d in report.declined] == [("f", "f calls itself")]


def test_a_function_of_an_opset_in_which_an_operator_changed():
    model = main("""agraph (float[2,2] x) => (float[2,1] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 17]>
        f (x) => (y) { y = ReduceMean <axes = [1]> (x) }""")
    assert declined("inline-functions", model) == [
        "f y: f is written for opset 17 and ReduceMean is not the same in 20"
    ]


def test_a_call_that_does_not_fit():
    model = main("""agraph (float[3] x) => (float[3] y) { y = local.f (x, x) }
        <domain: "local", opset_import: ["" : 20]>
        f (x) => (y) { y = Exp (x) }""")
    report = make("inline-functions").run(model, Context(model))
    assert [d.reason for d in report.declined] == ["it has 2 inputs and 1 outputs, f 1 and 1"]


def test_an_output_that_is_an_input_that_is_left_out():
    model = main("""agraph (float[3] x) => (float[3] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 20]>
        f (x, z) => (z) { y = Exp (x) }""")
    report = make("inline-functions").run(model, Context(model))
    assert [d.reason for d in report.declined] == ["f returns its input z, which the call leaves out"]


def test_a_graph_as_an_argument():
    model = main("""agraph (float[3] x, bool go) => (float[3] y) { y = local.f (go) }
        <domain: "local", opset_import: ["" : 20]>
        f <branch> (go) => (y) { y = If <then_branch: graph = @branch, else_branch: graph = @branch> (go) }""")
    branch = from_text(
        '<ir_version: 10, opset_import: ["" : 20]> g () => (float[1] z) { z = Constant <value_floats = [1.0]> () }'
    ).graph
    next(iter(model.graph)).attributes.add(ir.AttrGraph("branch", branch))
    report = make("inline-functions").run(model, Context(model))
    assert [d.reason for d in report.declined] == ["it passes a graph as branch"]


def test_inlined_nodes_come_from_where_the_call_came_from():
    model = main(TWICE)
    for node in model.graph:
        node.metadata_props[SCOPE] = f"layer.{node.outputs[0].name}"
    after, _, _ = run(make("inline-functions"), model)
    scopes = {node.outputs[0].name: node.metadata_props.get(SCOPE) for node in after.graph}
    assert scopes["a"] == scopes["a_c"] == "layer.a"
    assert scopes["b"] == scopes["b_c"] == "layer.b"


def test_symbols_of_a_function_do_not_leave_it():
    """The same symbol would stand for the sizes of ``x`` and of ``z``."""
    model = main("""agraph (float[2] x, float[3] z) => (float[2] y, float[3] u) {
            y = local.f (x)
            u = local.f (z)
        }
        <domain: "local", opset_import: ["" : 20]>
        f (x) => (y) {
            a = Exp (x)
            y = Neg (a)
        }""")
    for node in model.functions["local", "f", ""]:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(["N"])
    make("inline-functions").run(model, Context(model))
    assert {node.outputs[0].name: node.outputs[0].shape for node in model.graph} == {
        "y_a": None,
        "y": [2],
        "u_a": None,
        "u": [3],
    }


# --- opsets that neither onnx's evaluator nor onnxruntime runs --------------------------------------------------------


def test_dropout_before_opset_7_trains_unless_it_says_otherwise():
    graph = "agraph (float[2] x) => (float[2] y) {{ a = Dropout <ratio = 0.25{}> (x)\n y = Exp (a) }}"
    after, _, _ = run(make("eliminate-no-ops"), main(graph.format(", is_test = 1"), 6))
    assert [node.op_type for node in after.graph] == ["Exp"]
    _, entry, _ = run(make("eliminate-no-ops"), main(graph.format(""), 6))
    assert [d.reason for d in entry.declined] == ["it may run in training mode"]


def test_before_opset_7_only_the_second_input_is_broadcast():
    model = main(
        """agraph (float[2,3] x) => (float[2,3] y) <float[2] zeros = {0,0}, float[2,3] ones = {1,1,1,1,1,1}> {
            a = Add <broadcast = 1, axis = 0> (x, zeros)
            b = Mul <broadcast = 0> (ones, a)
            c = Mul <broadcast = 1> (ones, b)
            y = Exp (c)
        }""",
        6,
    )
    after, entry, _ = run(make("eliminate-no-ops"), model)
    assert [node.op_type for node in after.graph] == ["Mul", "Exp"]
    assert [d.reason for d in entry.declined] == ["ones may give the result a larger shape than x has"]


# --- infer-shapes -----------------------------------------------------------------------------------------------------


def test_what_a_bisection_leaves_out_is_not_inferred():
    model = main("agraph (float[N,4] x) => (float[N,4] y) { a = Exp (x)\n b = Neg (a)\n y = Abs (b) }")
    context = Context(model, limit=1)
    report: PassReport = make("infer-shapes").run(model, context)
    assert [(a.where, a.detail) for a in report.applied] == [("a", "a")]
    assert [node.outputs[0].shape for node in all_nodes(model)][:2] == [["N", 4], None]
    assert context.analysis(Shapes) is not None


def test_what_is_inferred_is_what_operators_give():
    """Every node test of onnx, its declared outputs taken away: each size that is inferred is that of the array."""
    from onnx.backend.test.case.node import collect_testcases

    wrong, known = [], 0
    for case in collect_testcases(None):
        model = ir.from_proto(case.model)
        for value in model.graph.outputs:
            value.type = value.shape = None
        make("infer-shapes").run(model, Context(model))
        for value, array in zip(model.graph.outputs, case.data_sets[0][1], strict=True):
            if isinstance(array, np.ndarray) and value.shape is not None:
                known += 1
                sizes = zip(value.shape, array.shape, strict=False)
                if len(value.shape) != array.ndim or any(isinstance(d, int) and d != n for d, n in sizes):
                    wrong.append(f"{case.name}: {value.shape} is {array.shape}")
    assert wrong == []
    assert known > 1700
