"""Each invariant is seen where it is broken, and nothing is seen where none is."""

# ruff: noqa: E501 - a row of a table is one line

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from graphopt.invariants import CHECKS, Problem, problems
from graphopt.model import from_proto

TEXT = """
<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
main (float[N] x, bool c) => (float[N] y) <float[1] w = {2}> {
  [m] t = Mul (x, w)
  k = Constant <value = float[1] {1}> ()
  [f] u = local.twice (t)
  [i] v = If (c) <
    then_branch = yes () => (float[N] r) <float[1] b = {5}> { [a] r = Add (u, b) },
    else_branch = no () => (float[N] q) { [s] q = Sub (u, k) }>
  [e] y = Relu (v)
}
<domain: "local", opset_import: ["" : 20]>
twice (a) => (o) { [d] o = Add (a, a) }
"""


@pytest.fixture
def model() -> ir.Model:
    return from_proto(parser.parse_model(TEXT))


def node(model: ir.Model, name: str) -> ir.Node:
    nodes = [*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes())]
    return next(n for n in nodes if n.name == name)


def branch(model: ir.Model) -> ir.Graph:
    return node(model, "i").attributes["then_branch"].as_graph()


def tensor(kind: type = np.float32, size: int = 1) -> ir.Tensor:
    return ir.tensor(np.zeros(size, kind))


def move_before(model: ir.Model, name: str, other: str) -> None:
    moved = node(model, name)
    model.graph.remove(moved)
    model.graph.insert_before(node(model, other), moved)


def rename(value: ir.Value, name: str) -> None:
    value.name = name


def remove_maker(model: ir.Model) -> None:
    model.graph.remove(node(model, "m"))


def add_initializer(graph: ir.Graph | ir.Function) -> None:
    value = ir.Value(name="late", const_value=tensor())
    (graph if isinstance(graph, ir.Graph) else graph.graph).initializers.add(value)


def undeclare(model: ir.Model) -> None:
    del model.graph.opset_imports["local"]


def recurse(model: ir.Model) -> None:
    function = next(iter(model.functions.values()))
    function.opset_imports["local"] = 1
    node(model, "d").domain, node(model, "d").op_type = "local", "twice"


def foreign(model: ir.Model) -> None:
    other = from_proto(parser.parse_model(TEXT))
    node(model, "e").replace_input_with(0, other.graph.inputs[0])


def nobody(model: ir.Model) -> None:
    node(model, "e").replace_input_with(0, ir.Value(name="z"))


def inner(model: ir.Model) -> None:
    node(model, "e").replace_input_with(0, node(model, "a").outputs[0])


def output_from_outside(model: ir.Model) -> None:
    branch(model).outputs[0] = node(model, "f").outputs[0]


BROKEN: list[tuple[str, Callable[[ir.Model], object], str]] = [
    ("initializers_have_data", lambda m: setattr(m.graph.initializers["w"], "const_value", None), "initializer w has no data"),
    ("initializers_have_data", lambda m: add_initializer(next(iter(m.functions.values()))), "late is an initializer in function local::twice, where only Constant nodes may hold data"),
    ("values_are_defined", lambda m: move_before(m, "e", "i"), "Relu e reads v, which If i makes only after it"),
    ("values_are_defined", lambda m: node(m, "e").replace_input_with(0, node(m, "e").outputs[0]), "Relu e reads y, which Relu e makes only after it"),
    ("values_are_defined", lambda m: node(m, "a").replace_input_with(0, node(m, "e").outputs[0]), "Add a reads y, which Relu e makes where it cannot be seen"),
    ("values_are_defined", lambda m: node(m, "a").replace_input_with(0, node(m, "i").outputs[0]), "Add a reads v, which If i makes where it cannot be seen"),
    ("values_are_defined", lambda m: node(m, "a").replace_input_with(0, node(m, "s").outputs[0]), "Add a reads q, which Sub s makes where it cannot be seen"),
    ("values_are_defined", inner, "Relu e reads r, which Add a makes where it cannot be seen"),
    ("values_are_defined", remove_maker, "t, which twice f reads, is made by Mul m, which was removed"),
    ("values_are_defined", nobody, "z, which Relu e reads, is made by nothing"),
    ("values_are_defined", foreign, "x, which Relu e reads, is made by nothing"),
    ("values_are_defined", lambda m: node(m, "e").replace_input_with(0, node(m, "d").outputs[0]), "o, which Relu e reads, is made in another graph"),
    ("values_are_defined", output_from_outside, "u, an output of subgraph yes, is made by nothing in it"),
    ("values_are_defined", lambda m: m.graph.outputs.append(ir.Value(name="z")), "z, an output of the graph, is made by nothing in it"),
    ("names_are_unique", lambda m: rename(node(m, "f").outputs[0], "t"), "t is the name of two values: an output of Mul m and an output of twice f"),
    ("names_are_unique", lambda m: rename(node(m, "f").outputs[0], "x"), "x is the name of two values: an input and an output of twice f"),
    ("names_are_unique", lambda m: rename(node(m, "a").outputs[0], "w"), "w is the name of two values: an initializer and an output of Add a"),
    ("names_are_unique", lambda m: rename(branch(m).initializers["b"], "t"), "t is the name of two values: an output of Mul m and an initializer"),
    ("names_are_unique", lambda m: rename(node(m, "f").outputs[0], ""), "a value in the graph has no name: an output of twice f"),
    ("names_are_unique", lambda m: rename(m.graph.inputs[0], ""), "a value in the graph has no name: an input"),
    ("opsets_are_imported", undeclare, "the graph has twice f, and imports no operator set local"),
    ("data_have_declared_types", lambda m: setattr(m.graph.initializers["w"], "const_value", tensor(np.int8)), "w is declared FLOAT, and its data are INT8"),
    ("data_have_declared_types", lambda m: setattr(m.graph.initializers["w"], "const_value", tensor(size=3)), "w is declared with shape [1], and its data have [3]"),
    ("data_have_declared_types", lambda m: setattr(m.graph[1].outputs[0], "type", ir.TensorType(ir.DataType.INT64)), "k is declared INT64, and its data are FLOAT"),
    ("operators_are_used_as_defined", lambda m: node(m, "e").resize_inputs(2), "Relu e has 2 inputs, and takes 1"),
    ("operators_are_used_as_defined", lambda m: node(m, "i").attributes.pop("else_branch"), "If i lacks the attribute else_branch"),
    ("operators_are_used_as_defined", lambda m: m.graph[1].attributes.add(ir.AttrInt64("value", 1)), "Constant k has value as INT, and takes TENSOR"),
    ("operators_get_their_types", lambda m: setattr(m.graph.outputs[0], "dtype", ir.DataType.BFLOAT16), "Relu e wants one type for v and y, which are FLOAT and BFLOAT16"),
    ("no_recursion", recurse, "function local::twice calls itself, or functions that do"),
]  # fmt: skip


def test_a_sound_graph_has_no_problem(model: ir.Model) -> None:
    assert problems(model) == []


@pytest.mark.parametrize(("invariant", "edit", "text"), BROKEN, ids=[text for _, _, text in BROKEN])
def test_each_invariant(
    model: ir.Model, invariant: str, edit: Callable[[ir.Model], object], text: str
) -> None:
    if "FLOAT and BFLOAT16" in text:
        node(model, "i").outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    edit(model)
    assert problems(model)[:1] == [Problem(invariant, text)]
    assert str(problems(model)[0]) == text


def test_each_invariant_is_tested() -> None:
    assert {name for name, _, _ in BROKEN} == {check.__name__ for check in CHECKS} | {"no_recursion"}


def test_omitted_outputs_and_repeated_names_in_branches_are_sound() -> None:
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]> g (bool c, float[4] x) => (float[2] y, float[4] z) {
          y, _ = Split <num_outputs = 2> (x)
          z = If (c) <then_branch = a () => (float[4] r) { r = Neg (x) }, else_branch = b () => (float[4] r) { r = Abs (x) }>
        }"""
    )
    proto.graph.node[0].output[1] = ""
    assert problems(from_proto(proto)) == []
