"""What differs between two models, as text."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphopt import origin, plugins
from graphopt.differences import typed
from graphopt.structure import diff
from graphopt.testing import run
from graphopt.text import from_text

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
NET = """<ir_version: 10, opset_import: ["" : 20]>
net (float[N,2,4,4] x) => (float[N,2,4,4] y)
<float[2,2,1,1] w = {1,2,3,4}, float[2] s = {1,4}, float[2] b = {1,2}, float[2] m = {0,1}, float[2] v = {1,4}>
{
    [conv] c = Conv (x, w)
    [bn] n = BatchNormalization <epsilon = 0.0> (c, s, b, m, v)
    [act] r = Relu (n)
    [sum] y = Add (r, x)
}"""


def text_of(before: str, after: str, *, values: bool = False) -> str:
    return diff(from_text(before), from_text(after), values=values).text()


def with_scopes(model: ir.Model, scopes: dict[str, str]) -> ir.Model:
    for node in model.graph:
        if node.name in scopes:
            node.metadata_props[origin.SCOPE] = scopes[node.name]
    return model


def test_a_model_is_the_same_as_itself() -> None:
    found = diff(from_text(NET), from_text(NET))
    assert found.same
    assert found.text() == "nodes: 4 kept, 0 removed, 0 added, 0 changed\n"


def test_a_fold_is_told_by_origin() -> None:
    before = with_scopes(from_text(NET), {"conv": "stem.conv", "bn": "stem.bn", "act": "stem.act"})
    after, _, _ = run(plugins.get_pass("fold-batchnorm")(), before)
    assert (
        diff(before, after).text()
        == """\
nodes: 2 kept, 1 removed, 0 added, 1 changed

operators
  BatchNormalization     1 → 0    -1

weights (48 bytes → 24 bytes)
  ~ w: float[2,2,1,1] of other values
  + w_bias: float[2]
  - float[2] ×4 (s … v)

stem.bn
  - BatchNormalization bn: went into Conv bn

stem
  ~ Conv bn
      input 1: w float[2,2,1,1] of other values
      input 2: nothing → [1.0, 0.0]
      takes in BatchNormalization bn (fold-batchnorm)
"""
    )


CHANGES = {
    "an attribute": (
        ("epsilon = 0.0", "epsilon = 0.5"),
        "(top level)\n  ~ BatchNormalization bn: epsilon: 0.0 → 0.5\n",
    ),
    "an operator": (
        ("[act] r = Relu (n)", "[act] r = Tanh (n)"),
        "operators\n  Relu     1 → 0    -1\n  Tanh     0 → 1    +1\n\n"
        "(top level)\n  - Relu act: went into Tanh act\n  + Tanh act: made of Relu act\n",
    ),
    "another source": (
        ("Add (r, x)", "Add (r, c)"),
        "(top level)\n  ~ Add sum: input 1: x → Conv conv\n",
    ),
    "a small weight's value": (
        ("w = {1,2,3,4}", "w = {1,2,3,5}"),
        "weights (48 bytes → 48 bytes)\n  ~ w: float[2,2,1,1] of other values\n\n"
        "(top level)\n  ~ Conv conv: input 1: w float[2,2,1,1] of other values\n",
    ),
    "an input's shape": (
        ("float[N,2,4,4] x", "float[M,2,4,4] x"),
        "interface\n  ~ input x: float[N,2,4,4] → float[M,2,4,4]\n",
    ),
    "an output's name": (
        ("float[N,2,4,4] y)", "float[N,2,4,4] r)"),
        "interface\n  - output y: float[N,2,4,4]\n  + output r: float[N,2,4,4]\n",
    ),
    "the opset and the IR version": (
        ('10, opset_import: ["" : 20]', '11, opset_import: ["" : 21, "local" : 1]'),
        "interface\n  ~ opset ai.onnx: 20 → 21\n  + opset local: 1\n  ~ IR version: 10 → 11\n",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of(what: str) -> None:
    (old, new), want = CHANGES[what]
    assert old in NET
    assert text_of(NET, NET.replace(old, new)).partition("\n\n")[2] == want


def test_new_names_alone_change_nothing() -> None:
    renamed = (
        NET.replace("[conv] c", "[p] cc")
        .replace("(c,", "(cc,")
        .replace("[bn] n", "[q] nn")
        .replace("(n)", "(nn)")
    )
    renamed = renamed.replace("float[2,2,1,1] w", "float[2,2,1,1] kernel").replace("(x, w)", "(x, kernel)")
    assert diff(from_text(NET), from_text(renamed)).same


def test_nodes_without_names_are_matched_by_their_neighbours() -> None:
    before = HEAD + "m (float[4] x) => (float[4] y) { a = Relu (x) b = Neg (a) c = Exp (b) y = Abs (c) }"
    after = before.replace("b = Neg (a) c = Exp (b)", "p = Sin (a) q = Exp (p)").replace("Abs (c)", "Abs (q)")
    assert text_of(before, after).partition("\n\n(top level)\n")[2] == (
        "  - Neg b\n  + Sin p\n  ~ Exp q: input 0: Neg b → Sin p\n"
    )


def test_large_weights_are_compared_by_value_where_asked_for() -> None:
    def model(last: int) -> ir.Model:
        found = from_text(HEAD + "m (float[2000] x, float[2000] w) => (float[2000] y) { y = Add (x, w) }")
        data = ir.tensor([0.0] * 1999 + [float(last)], name="w")
        weight = found.graph.inputs[1]
        weight.const_value = data
        found.graph.inputs.pop()
        found.graph.register_initializer(weight)
        return found

    assert diff(model(0), model(1)).same
    assert diff(model(0), model(1), values=True).weights == [("~", "w", "float[2000] of other values")]


def test_a_constant_node_and_an_initializer_are_one_kind_of_weight() -> None:
    node = """<ir_version: 10, opset_import: ["" : 20]>
    m (float[2] x) => (float[2] y) { k = Constant <value_floats = [1.0, 2.0]> () y = Add (x, k) }"""
    weight = """<ir_version: 10, opset_import: ["" : 20]>
    m (float[2] x) => (float[2] y) <float[2] k = {1, 2}> { y = Add (x, k) }"""
    assert text_of(node, weight) == (
        "nodes: 1 kept, 0 removed, 0 added, 0 changed\n\noperators\n  Constant     1 → 0    -1\n"
    )


def test_what_repeats_is_told_once() -> None:
    body = " ".join(f"[n{i}] v{i} = Neg (v{i - 1}) [e{i}] w{i} = Exp (x)" for i in range(1, 7))
    before = from_text(HEAD + f"m (float[4] x) => (float[4] y) {{ v0 = Abs (x) {body} y = Relu (v6) }}")
    after = from_text(HEAD + "m (float[4] x) => (float[4] y) { v0 = Abs (x) y = Relu (v0) }")
    scopes = {f"{kind}{i}": f"layer.{i}" if kind == "n" else "other" for i in range(1, 7) for kind in "ne"}
    assert (
        diff(with_scopes(before, scopes), after).text().partition("\n\n(top")[2]
        == """ level)
  ~ Relu y: input 0: Neg n6 → Abs v0

layer.1, and 5 alike: layer.2 … layer.6
  - Neg n1

other
  - Exp ×6, as e1
"""
    )


def test_nodes_in_subgraphs_are_compared() -> None:
    before = """<ir_version: 10, opset_import: ["" : 20]>
    m (bool go, float[2] x) => (float[2] y) {
        y = If (go) <then_branch = a () => (p) { p = Elu <alpha = 1.0> (x) }, else_branch = b () => (q) { q = Neg (x) }>
    }"""
    assert text_of(before, before.replace("alpha = 1.0", "alpha = 2.0")) == (
        "nodes: 2 kept, 0 removed, 0 added, 1 changed\n\n(top level)\n  ~ Elu p: alpha: 1.0 → 2.0\n"
    )


@pytest.mark.parametrize(
    ("name", "props", "want"),
    [
        ("/layer1/layer1.0/conv1/Conv", {}, "layer1.0.conv1"),
        ("/encoder/layer.0/attention/MatMul", {}, "encoder.layer.0.attention"),
        ("Conv_3", {}, ""),
        ("n", {"pkg.torch.onnx.name_scopes": "['', 'a', 'a.0', 'conv2d']"}, "a.0"),
        ("n", {"pkg.torch.onnx.name_scopes": "['', 'relu']"}, ""),
        ("/a/b/Conv", {"graphopt.scope": "known.better"}, "known.better"),
    ],
)
def test_the_scope_of_a_node(name: str, props: dict[str, str], want: str) -> None:
    assert origin.scope(ir.Node("", "Relu", [], name=name, metadata_props=props)) == want


def test_types_as_text() -> None:
    assert typed(None) == "nothing"
    assert typed(ir.Value(name="v")) == "?[?]"
    assert typed(ir.val("v", ir.DataType.FLOAT16, ["N", None, 3])) == "float16[N,?,3]"
    assert typed(ir.val("v", ir.DataType.INT64, [])) == "int64"
