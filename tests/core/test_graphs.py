"""Graphs for networkx, and pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import networkx
import onnx_ir as ir
import pytest
from onnx.backend.test.case.node import collect_testcases

from graphopt import UnavailableError, UsageError, dot, origin, to_networkx
from graphopt.graphs import to_dot
from graphopt.structure import diff
from graphopt.text import from_text

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
NET = f"""{HEAD}net (float[N,2,4,4] x) => (float[N,2,4,4] y)
<float[2,2,3,3] w = {{1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}}>
{{
    [conv] c = Conv <pads = [1,1,1,1]> (x, w)
    [act] r = Relu (c)
    [sum] y = Add (r, x)
}}"""
BRANCHES = f"""{HEAD}m (bool go, float[2] x) => (float[2] y) {{
    [abs] a = Abs (x)
    [one] k = Constant <value_float = 1.0> ()
    [if] y = If (go) <
        then_branch = t () => (p) {{ [inner] p = Add (a, k) }},
        else_branch = e () => (q) {{ [inner] q = Neg (a) }}
    >
}}"""


def chain(length: int, scopes: int = 0) -> ir.Model:
    """Return Relus one after the other, in ``scopes`` modules of equal size."""
    body = " ".join(f"[n{i}] v{i + 1} = Relu (v{i})" for i in range(length))
    model = from_text(f"{HEAD}chain (float[4] v0) => (float[4] v{length}) {{ {body} }}")
    for i, node in enumerate(model.graph):
        if scopes:
            node.metadata_props[origin.SCOPE] = f"layer.{i * scopes // length}.act"
    return model


def test_nodes_and_edges() -> None:
    graph = to_networkx(from_text(NET), initializers=True)
    assert {key: data["kind"] for key, data in graph.nodes(data=True)} == {
        "x": "input",
        "w": "initializer",
        "conv": "node",
        "act": "node",
        "sum": "node",
        "y": "output",
    }
    facts = dict(graph.nodes["conv"])
    assert facts.pop("node").op_type == "Conv"
    assert facts == {
        "kind": "node",
        "op_type": "Conv",
        "domain": "",
        "name": "conv",
        "scope": "",
        "attributes": {"pads": (1, 1, 1, 1)},
        "parent": None,
    }
    assert [(a, b, d) for a, b, d in graph.edges(data=True) if "x" in (a, b)] == [
        ("x", "conv", {"value": "x", "shape": ("N", 2, 4, 4), "dtype": "FLOAT", "output": None, "input": 0}),
        ("x", "sum", {"value": "x", "shape": ("N", 2, 4, 4), "dtype": "FLOAT", "output": None, "input": 1}),
    ]
    assert graph.edges["w", "conv", 0]["input"] == 1
    assert graph.edges["sum", "y", 0] == {
        "value": "y", "shape": ("N", 2, 4, 4), "dtype": "FLOAT", "output": 0, "input": 0
    }  # fmt: skip


def test_only_nodes_where_nothing_else_is_wanted() -> None:
    graph = to_networkx(from_text(NET), inputs=False, outputs=False)
    assert list(graph.edges()) == [("conv", "act"), ("act", "sum")]


def test_subgraphs_are_part_of_the_graph_and_feed_the_node_that_carries_them() -> None:
    graph = to_networkx(from_text(BRANCHES), initializers=True)
    assert sorted(graph.edges()) == [
        ("abs", "inner"),
        ("abs", "inner#2"),
        ("go", "if"),
        ("if", "y"),
        ("inner", "if"),
        ("inner#2", "if"),
        ("k", "inner"),
        ("x", "abs"),
    ]
    assert graph.nodes["inner"]["parent"] == "if"
    assert networkx.is_directed_acyclic_graph(graph)


def test_a_value_read_twice_is_two_edges() -> None:
    graph = to_networkx(from_text(f"{HEAD}m (float[2] x) => (float[2] y) {{ [sq] y = Mul (x, x) }}"))
    assert graph.number_of_edges("x", "sq") == 2


def test_dot_of_a_small_net() -> None:
    model = from_text(NET)
    for node, scope in zip(model.graph, ("block.conv", "block.act", "block"), strict=True):
        node.metadata_props[origin.SCOPE] = scope
    text = to_dot(model)
    assert text.split("\n")[4:] == [
        "  subgraph cluster_0 {",
        '    label="block";',
        '    n2 [label="Add" tooltip="sum" fillcolor="#ffffff"];',
        '    n0 [label="Conv\\n2×2×3×3\\nblock.conv" tooltip="conv" fillcolor="#cfe2f3"];',
        '    n1 [label="Relu\\nblock.act" tooltip="act" fillcolor="#fff2cc"];',
        "  }",
        '  i0 [label="x\\nfloat[N,2,4,4]" shape=cds style=filled fillcolor="#dde7ee"];',
        "  i0 -> n0;",
        "  i0 -> n2;",
        '  o0 [label="y\\nfloat[N,2,4,4]" shape=cds style=filled fillcolor="#dde7ee"];',
        "  n2 -> o0;",
        "  n0 -> n1;",
        "  n1 -> n2;",
        '  legend [shape=plain style="" fontsize=9 label=<<table border="1" color="#bbbbbb" cellborder="0" '
        'cellspacing="2">'
        '<tr><td bgcolor="#cfe2f3" width="18"></td><td align="left">matrix products</td></tr>'
        '<tr><td bgcolor="#fff2cc" width="18"></td><td align="left">activations</td></tr></table>>];',
        "}",
        "",
    ]


def test_differences_are_coloured_and_what_went_is_noted() -> None:
    before = from_text(NET)
    after = from_text(NET.replace("[act] r = Relu (c)", "").replace("(r, x)", "(c, x)"))
    text = to_dot(after, changed=diff(before, after))
    assert 'n1 [label="Add" tooltip="sum" fillcolor="#ffe08a" color="#bf8700" penwidth=2.5];' in text
    assert 'n0 [label="Conv\\n2×2×3×3" tooltip="conv" fillcolor="#f6f6f6"];' in text
    assert '[label="removed: Relu" style="rounded,dashed,filled"' in text
    assert '<td align="left">changed</td>' in text
    assert '<td align="left">removed</td>' in text
    assert "activations" not in text


def test_a_large_graph_is_collapsed_by_scope() -> None:
    text = to_dot(chain(500, scopes=5), limit=20)
    boxes = [line.strip() for line in text.split("\n") if "box3d" in line]
    first = ", ".join(f"n{i}" for i in range(20))
    assert boxes[0] == (
        f'n0 [label="layer.0.act\\n100 nodes\\nRelu ×100" tooltip="{first}" '
        'fillcolor="#f6f6f6" shape=box3d style="filled"];'
    )
    assert len(boxes) == 5
    assert "500 nodes; scopes are collapsed at depth 3" in text


def test_a_depth_can_be_asked_for() -> None:
    text = to_dot(chain(500, scopes=5), depth=1)
    assert 'label="layer\\n500 nodes\\nRelu ×500"' in text


def test_without_scopes_chains_become_one_box() -> None:
    text = to_dot(chain(500), limit=20)
    assert 'n0 [label="Relu\\nRelu\\nRelu\\nRelu\\nRelu\\nRelu\\n… 494 more"' in text
    assert "500 nodes; chains are one box" in text


def test_what_is_still_too_large_is_cut_and_says_so() -> None:
    body = " ".join(f"y{i} = Relu (x)" for i in range(50))
    outputs = ", ".join(f"float[4] y{i}" for i in range(50))
    text = to_dot(from_text(f"{HEAD}wide (float[4] x) => ({outputs}) {{ {body} }}"), limit=20)
    assert "50 nodes; chains are one box; the first 20 of 50 boxes are drawn" in text
    assert 'n19 [label="Relu"' in text
    assert "n20" not in text


def test_what_goes_to_many_boxes_is_pale() -> None:
    body = "a = Abs (x) " + " ".join(f"y{i} = Relu (a)" for i in range(5))
    text = to_dot(
        from_text(f"{HEAD}m (float[4] x) => ({', '.join(f'float[4] y{i}' for i in range(5))}) {{ {body} }}")
    )
    assert '  n0 -> n1 [color="#d0d0d0" style=dashed arrowsize=0.4];' in text


def test_names_that_dot_would_misread_are_quoted() -> None:
    model = chain(1)
    node = next(iter(model.graph))
    node.name = 'a "b" \\ <c>\nd'
    assert 'tooltip="a \\"b\\" \\\\ <c>\\nd"' in to_dot(model)


def test_a_subgraph_is_inside_the_box_of_its_node() -> None:
    text = to_dot(from_text(BRANCHES))
    assert [line for line in text.split("\n") if "->" in line] == [
        "  i0 -> n1;",
        "  i1 -> n0;",
        "  n1 -> o0;",
        "  n0 -> n1;",
    ]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_operator_of_onnx_can_be_drawn_and_compared() -> None:
    for case in collect_testcases(None):
        model = ir.from_proto(case.model)
        assert networkx.is_directed_acyclic_graph(to_networkx(model, initializers=True)), case.name
        assert to_dot(model, changed=diff(model, model)).endswith("}\n"), case.name
        assert diff(model, model).same, case.name


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@pytest.mark.parametrize(
    "model", [from_text(NET), from_text(BRANCHES), chain(500, scopes=7)], ids=["net", "if", "deep"]
)
def test_graphviz_draws_it(model: ir.Model, tmp_path: Path) -> None:
    dot.draw(to_dot(model), tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [tmp_path / "picture.svg"]


def test_without_graphviz_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(UnavailableError) as caught:
        dot.draw("digraph {}", tmp_path / "a.svg")
    assert str(caught.value) == (
        f"{tmp_path / 'a.svg'}: pictures need Graphviz, whose program dot is not on PATH; install it "
        "(apt install graphviz, brew install graphviz), or write DOT text with --dot"
    )
    assert caught.value.exit_code == 3


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        dot.write(tmp_path / "no" / "a.dot", b"")
    assert str(caught.value) == (
        f"{tmp_path / 'no' / 'a.dot'}: cannot be written: No such file or directory; choose another file"
    )
