"""Wrong rewrites and slow ones that were found once, at the sizes that tell."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.context import Context
from graphopt.testing import same_outputs
from graphopt.text import from_text

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
LAST = -(2**62)


class Needy(graphopt.Pass):
    """Fails where the rewrite before it was not done."""

    def run(self, model: ir.Model, context: Context) -> graphopt.PassReport:
        if any(node.op_type == "Relu" for node in model.graph):
            raise RuntimeError("there is a Relu left")
        return graphopt.PassReport()


class Wreck(graphopt.Rewrite):
    """Replaces Relu by Neg: wrong."""

    anchor = "Relu"

    def replace(self, node: ir.Node, tape: graphopt.Tape) -> ir.Value:
        return tape.op("Neg", node.inputs)


def test_a_pass_that_fails_without_the_rewrites_before_it_does_not_end_the_search_for_the_wrong_one() -> None:
    model = from_text(
        f"{HEAD}main (float[4] x) => (float[4] y) {{ a = Relu (x)  b = Exp (a)  y = Relu (b) }}"
    )
    result = graphopt.optimize(model, [Wreck(), Needy()], reproducers=None)
    assert {blame.pass_name for blame in result.report.blamed} == {"wreck"}
    assert [node.op_type for node in result.model.graph] == ["Relu", "Exp", "Relu"]


def simplified(model: ir.Model) -> ir.Model:
    return graphopt.optimize(model, "simplify", verify=False, strict=True, reproducers=None).model


def rows(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("body", "sizes"),
    [
        pytest.param(
            """(float[N] a, float[M] b) => (float[P] y) {
                s = Shape (b)  t = Add (a, b)  u = Shape (t)  e = Expand (a, u)  y = Neg (e) }""",
            [(1, 5), (5, 1), (4, 4)],
            id="one of two sizes may be 1",
        ),
        pytest.param(
            """(float[N] a) => (int64[1] y) <int64[1] zero = {0}, int64[1] five = {5}> {
                t = Slice (a, zero, five)  y = Shape (t) }""",
            [(0,), (3,), (5,), (9,)],
            id="a slice may end beyond its axis",
        ),
        pytest.param(
            f"""(float[N,3] a) => (int64[Q] y)
               <int64[1] back = {{-1}}, int64[1] end = {{{LAST}}}, int64[1] zero = {{0}}> {{
                s = Shape (a)  y = Slice (s, back, end, zero, back) }}""",
            [(1, 3), (4, 3)],
            id="a slice of sizes runs backwards to the first",
        ),
        pytest.param(
            """(float[N,300] a) => (int64[2] y) { s = Shape (a)  b = Cast <to = 3> (s)  y = Cast <to = 7> (b) }""",
            [(1, 300), (300, 300)],
            id="a cast of sizes wraps",
        ),
        pytest.param(
            """(float[N] a, float[M] b) => (float[P] y)
               <int64[1] zero = {0}, int64[1] one = {1}, int64[1] open = {9223372036854775807}> {
                c = Concat <axis = 0> (a, b, a)  y = Slice (c, one, open, zero) }""",
            [(3, 4), (1, 1)],
            id="the first part is the last one too",
        ),
    ],
)
def test_what_holds_at_some_sizes_is_not_taken_to_hold_at_all(
    body: str, sizes: Sequence[tuple[int, ...]]
) -> None:
    model = from_text(f"{HEAD}main {body}")
    after = simplified(model)
    names = [value.name for value in model.graph.inputs]
    for size in sizes:
        arrays = [rows(*size)] if len(names) == 1 else [rows(n) for n in size]
        same_outputs(model, after, [dict(zip(names, arrays, strict=True))])


@pytest.mark.parametrize("name", ["batch size", "N+", "(N", "N/0", "f(N)"])
def test_a_dimension_may_have_any_name(name: str) -> None:
    model = from_text(f"{HEAD}main (float[N,4] x) => (float[N,4] y) {{ y = Relu (x) }}")
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape([name, 4])
    assert graphopt.optimize(model, "simplify", strict=True, reproducers=None).report.verified


def chain_of_functions(length: int) -> ir.Model:
    functions = []
    for i in range(length):
        x = ir.Value(name="x")
        nodes = [ir.node("Neg", [x])]
        if i + 1 < length:
            nodes.append(ir.node(f"f{i + 1}", nodes[0].outputs, domain="local"))
        for node, name in zip(nodes, "ab", strict=False):
            node.outputs[0].name = name
        graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, opset_imports={"": 20, "local": 1})
        functions.append(ir.Function("local", f"f{i}", "", graph=graph, attributes=[]))
    return model_of([node := ir.node("f0", [source()], domain="local")], node, functions)


def chain_of_concats(length: int) -> ir.Model:
    value = x = source()
    nodes: list[ir.Node] = []
    for i in range(length):
        nodes.append(ir.node("Concat", [value, x], {"axis": 0}))
        value = nodes[-1].outputs[0]
        value.name = f"v{i}"
    return model_of(nodes, nodes[-1], [])


def source() -> ir.Value:
    return ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))


def model_of(nodes: Sequence[ir.Node], last: ir.Node, functions: Sequence[ir.Function]) -> ir.Model:
    x = next(v for v in nodes[0].inputs if v is not None)
    (y,) = last.outputs
    y.name, y.type = "y", x.type
    graph = ir.Graph([x], [y], nodes=nodes, opset_imports={"": 20, "local": 1}, name="main")
    return ir.Model(graph, ir_version=10, functions=functions)


@pytest.mark.parametrize("make", [chain_of_functions, chain_of_concats])
def test_a_long_chain_takes_time_in_proportion(make) -> None:
    start = time.perf_counter()
    simplified(make(1000))
    assert time.perf_counter() - start < 10, "twice as long takes four times as long"


def test_a_name_within_a_branch_is_not_taken_by_a_value_around_it() -> None:
    model = from_text(
        HEAD
        + """main (float[3] x, bool c) => (float[3] y, float[3] z) <bool t = {1}> {
            y = If (t) <
                then_branch = g () => (float[3] a) {
                    a = If (c) <then_branch = g1 () => (float[3] a1) { n = Neg (x)  a1 = Abs (n) },
                                else_branch = g2 () => (float[3] a2) { a2 = Abs (x) }>
                },
                else_branch = h () => (float[3] b) { b = Abs (x) }>
            z = If (t) <
                then_branch = k () => (float[3] d) { n = Neg (x)  m = Exp (n)  d = Sqrt (m) },
                else_branch = l () => (float[3] e) { e = Abs (x) }>
        }"""
    )
    after = simplified(model)
    assert [node.op_type for node in after.graph] == ["If", "Neg", "Exp", "Sqrt"]
    same_outputs(model, after)


def test_an_output_keeps_the_names_of_its_sizes_and_its_notes() -> None:
    model = from_text(f"{HEAD}main (float[N,4] x) => (float[batch,4] y) {{ a = Relu (x)  y = Identity (a) }}")
    model.graph.outputs[0].doc_string = "scores"
    model.graph.outputs[0].metadata_props["unit"] = "logit"
    (y,) = simplified(model).graph.outputs
    assert (str(y.shape), y.doc_string, y.metadata_props["unit"]) == ("[batch,4]", "scores", "logit")


@pytest.mark.parametrize(
    "body",
    [
        "(float[a] y) <int64 n = {300000000}> { y = HannWindow (n) }",
        """(float[a,b,c,d] y) <float[1,1,1,1] x = {1}, float[1,1,1,1] w = {1}> {
            y = Conv <pads = [9000, 9000, 9000, 9000]> (x, w) }""",
        "(float[a,b,c] y) <float[1,2,1] x = {1, 2}, int64 n = {100000000}> { y = DFT <axis = 1> (x, n) }",
    ],
)
def test_nothing_is_computed_that_is_too_large_to_be_kept(body: str) -> None:
    start = time.perf_counter()
    assert len(simplified(from_text(f"{HEAD}main () => {body}")).graph) == 1
    assert time.perf_counter() - start < 2, "it was computed, and then thrown away"
