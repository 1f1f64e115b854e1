"""What case files of simplify-branches cannot express: random chains of Ifs on ranks and sizes, run at many shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from graphopt_passes.simplify_branches import SimplifyBranches
from graphopt_passes.simplify_branches.world import LIMIT
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.backends import session as sessions
from graphopt.errors import GraphoptError
from graphopt.testing import conformance
from graphopt.text import from_text

PIPELINE = "fixpoint(fold-constants,simplify-branches,eliminate-no-ops,eliminate-dead)"
LAST = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,T] x) => (float[a,b] y)
<int64[1] last = {-1}, int64[1] one = {1}>
{
   s = Shape (x)
   t = Gather (s, last)
   go = Greater (t, one)
   a = If (go) <
      then_branch = g () => (float[i] p) { p = Squeeze (x, last) },
      else_branch = f () => (float[i,j] q) { q = Neg (x) }
   >
   y = Transpose <perm = [1, 0]> (a)
}"""


def test_it_conforms() -> None:
    static = LAST.replace("float[N,T] x", "float[N,1] x")
    conformance(SimplifyBranches, [static])


class Chain:
    """Nodes one after the other, from ``x`` of rank 3 on; branches do to the last value what ``steps`` say."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.conditions: list[str] = []
        self.last = "x"
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def constant(self, *elements: int, scalar: bool = False) -> str:
        name = self.name("c")
        array = np.array(elements[0] if scalar else elements, np.int64)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        output = self.name("v")
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def apply(self, step: tuple[str, int]) -> onnx.NodeProto:
        kind, axis = step
        inputs = [self.last] if kind in ("Identity", "Neg") else [self.last, self.constant(axis)]
        return helper.make_node(kind, inputs, [self.name("v")])

    def branch(self, step: tuple[str, int]) -> onnx.GraphProto:
        made = self.apply(step)
        value = helper.make_tensor_value_info(made.output[0], TensorProto.FLOAT, None)
        return helper.make_graph([made], self.name("g"), [], [value])

    def condition(self, about: tuple[str, int, int]) -> str:
        kind, index, against = about
        if kind == "again" and self.conditions:
            return self.conditions[index % len(self.conditions)]
        shape = self.node("Shape", self.last)
        if kind == "size":
            asked = self.node("Gather", shape, self.constant(index % 2))
            found = self.node("Equal", asked, self.constant(1))
        else:
            found = self.node("Equal", self.node("Size", shape), self.constant(against, scalar=True))
        self.conditions.append(found if index % 3 else self.node("Not", found))
        return self.conditions[-1]

    def choose(self, about: tuple[str, int, int], then: tuple[str, int], otherwise: tuple[str, int]) -> None:
        condition = self.condition(about)
        self.last = self.node(
            "If", condition, then_branch=self.branch(then), else_branch=self.branch(otherwise)
        )

    def model(self, rank: int) -> onnx.ModelProto:
        turned = self.node("Transpose", self.last, perm=list(reversed(range(rank))))
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["A", "B", "C"])],
            [helper.make_tensor_value_info(turned, TensorProto.FLOAT, None)],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


STEPS = st.sampled_from(
    [("Identity", 0), ("Neg", 0), *((kind, axis) for kind in ("Squeeze", "Unsqueeze") for axis in (0, 1, -1))]
)
ABOUT = st.tuples(st.sampled_from(["size", "rank", "again"]), st.integers(0, 5), st.integers(1, 4))
SHAPES = [(1, 1, 1), (2, 1, 1), (1, 3, 1), (1, 1, 2), (2, 3, 1), (1, 3, 2), (2, 1, 3), (2, 3, 4), (2, 0, 1)]
FOUND = {"resolved": 0}


def started(model: ir.Model) -> Any:
    """Return a session, or ``None`` where onnxruntime sees beforehand that no run gets through."""
    try:
        return sessions.create(model, optimize="none", threads=1)
    except GraphoptError:
        return None


def outcome(session: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    if session is None:
        return None
    try:
        (made,) = sessions.run(session, {"x": x}).values()
    except GraphoptError:
        return None
    return np.asarray(made)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(ABOUT, STEPS, STEPS), min_size=1, max_size=4), st.integers(1, 5))
def chains(links: list[tuple[tuple[str, int, int], tuple[str, int], tuple[str, int]]], rank: int) -> None:
    chain = Chain()
    for about, then, otherwise in links:
        chain.choose(about, then, otherwise)
    proto = chain.model(rank)
    before = started(ir.from_proto(proto))
    result = graphopt.optimize(proto, PIPELINE, verify=False)
    ran = [entry for entry in result.report.passes if entry.name == "simplify-branches" and entry.applied]
    after = started(result.model)
    for shape in SHAPES:
        x = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
        want = outcome(before, x)
        if want is not None:
            FOUND["resolved"] += bool(ran)
            got = outcome(after, x)
            assert got is not None
            np.testing.assert_array_equal(got, want)


def test_chains_of_branches_compute_the_same_wherever_the_original_runs() -> None:
    chains()
    assert FOUND["resolved"] > 20


def test_a_run_that_the_original_stops_is_the_only_one_that_may_differ() -> None:
    result = graphopt.optimize(
        from_text(LAST), "simplify-branches", inputs={"x": np.ones((2, 1), np.float32)}
    )
    assert result.report.verified
    assert [node.op_type for node in result.model.graph] == ["Neg", "Transpose"]
    before, after = (sessions.create(m, optimize="none") for m in (from_text(LAST), result.model))
    x = np.ones((2, 3), np.float32)
    assert outcome(before, x) is None
    assert outcome(after, x) is not None


def test_where_the_end_is_too_far_to_see_both_branches_stay() -> None:
    relus = " ".join(f"r{i + 1} = Relu (r{i})" for i in range(LIMIT))
    far = LAST.replace("float[N,T] x", "float[N,1] x").replace(
        "Transpose <perm = [1, 0]> (a)", "Transpose <perm = [1, 0]> (last_one)"
    )
    model = from_text(far.replace("   y =", f"   r0 = Abs (a) {relus} last_one = Abs (r{LIMIT})\n   y ="))
    report = graphopt.optimize(model, "simplify-branches").report
    assert [declined.reason for declined in report.passes[0].declined] == ["either branch may run"]
