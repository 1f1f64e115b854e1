"""What models cost, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.backend.test.case.node import collect_testcases

from graphopt import UsageError, cost
from graphopt.text import from_text, to_text

HEAD = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>\n'


def model(signature: str, body: str, output: str = "float[?]") -> ir.Model:
    return from_text(f"{HEAD}main ({signature}) => ({output} y) {{ {body} }}")


FORMULAS = {
    # name: (inputs, body, MACs and how they come about)
    "conv": (
        "float[2,4,8,8] x, float[6,4,3,3] w",
        "y = Conv (x, w)",
        2 * 6 * 6 * 6 * (4 * 3 * 3),
    ),
    "conv with groups, padding, strides": (
        "float[1,4,8,8] x, float[6,2,3,3] w, float[6] b",
        "y = Conv <group = 2, pads = [1,1,1,1], strides = [2,2]> (x, w, b)",
        6 * 4 * 4 * (2 * 3 * 3),
    ),
    "depthwise conv, one dimension, dilated": (
        "float[1,5,10] x, float[5,1,3] w",
        "y = Conv <group = 5, dilations = [2]> (x, w)",
        5 * 6 * 3,
    ),
    "conv of integers": (
        "uint8[1,3,5,5] x, uint8[2,3,2,2] w",
        "y = ConvInteger (x, w)",
        2 * 4 * 4 * (3 * 2 * 2),
    ),
    "quantized conv": (
        "uint8[1,3,5,5] x, float s, uint8 z, uint8[2,3,2,2] w",
        "y = QLinearConv (x, s, z, w, s, z, s, z)",
        2 * 4 * 4 * (3 * 2 * 2),
    ),
    "transposed conv": (
        "float[1,4,5,5] x, float[4,3,2,2] w",
        "y = ConvTranspose <group = 2, strides = [2,2]> (x, w)",
        4 * 5 * 5 * (3 * 2 * 2),
    ),
    "gemm": ("float[3,4] a, float[4,5] b", "y = Gemm (a, b)", 3 * 4 * 5),
    "gemm, both transposed": (
        "float[4,3] a, float[5,4] b, float[5] c",
        "y = Gemm <transA = 1, transB = 1, alpha = 0.5> (a, b, c)",
        3 * 4 * 5,
    ),
    "matmul": ("float[3,4] a, float[4,5] b", "y = MatMul (a, b)", 3 * 4 * 5),
    "matmul of broadcast batches": (
        "float[7,1,3,4] a, float[2,4,5] b",
        "y = MatMul (a, b)",
        7 * 2 * 3 * 4 * 5,
    ),
    "matmul of two vectors": ("float[4] a, float[4] b", "y = MatMul (a, b)", 4),
    "matmul of a matrix and a vector": ("float[3,4] a, float[4] b", "y = MatMul (a, b)", 3 * 4),
    "matmul of integers": ("uint8[3,4] a, int8[4,5] b", "y = MatMulInteger (a, b)", 3 * 4 * 5),
    "quantized matmul": (
        "uint8[2,3,4] a, float s, uint8 z, uint8[4,5] b",
        "y = QLinearMatMul (a, s, z, b, s, z, s, z)",
        2 * 3 * 4 * 5,
    ),
    "attention, four dimensions, grouped heads": (
        "float[2,8,5,4] q, float[2,2,7,4] k, float[2,2,7,3] v",
        "y = Attention (q, k, v)",
        2 * 8 * 5 * 7 * (4 + 3),
    ),
    "attention, three dimensions": (
        "float[2,5,32] q, float[2,7,8] k, float[2,7,6] v",
        "y = Attention <q_num_heads = 8, kv_num_heads = 2> (q, k, v)",
        2 * 8 * 5 * 7 * (4 + 3),
    ),
    "attention with a past": (
        "float[1,2,1,4] q, float[1,2,1,4] k, float[1,2,1,4] v, float[1,2,9,4] pk, float[1,2,9,4] pv",
        'y, ok, ov = Attention (q, k, v, "", pk, pv)',
        2 * 1 * 10 * (4 + 4),
    ),
    "lstm": (
        "float[7,2,3] x, float[2,20,3] w, float[2,20,5] r",
        'y = LSTM <hidden_size = 5, direction = "bidirectional"> (x, w, r)',
        7 * 2 * (2 * 4 * 5 * 3 + 2 * 4 * 5 * 5),
    ),
    "gru": (
        "float[7,2,3] x, float[1,15,3] w, float[1,15,5] r",
        "y = GRU <hidden_size = 5> (x, w, r)",
        7 * 2 * 3 * 5 * (3 + 5),
    ),
    "rnn": (
        "float[7,2,3] x, float[1,5,3] w, float[1,5,5] r",
        "y = RNN <hidden_size = 5> (x, w, r)",
        7 * 2 * 5 * (3 + 5),
    ),
    "einsum of two": (
        "float[2,3,4] a, float[4,5] b",
        'y = Einsum <equation = "bij, jk -> bik"> (a, b)',
        2 * 3 * 4 * 5,
    ),
    "einsum, implicit output": ("float[3,4] a, float[4,5] b", 'y = Einsum <equation = "ij,jk"> (a, b)', 60),
    "einsum with an ellipsis": (
        "float[7,2,3,4] a, float[2,4,5] b",
        'y = Einsum <equation = "...ij,...jk->...ik"> (a, b)',
        7 * 2 * 3 * 4 * 5,
    ),
    "einsum of three, from left to right": (
        "float[2,3] a, float[3,4] b, float[4,5] c",
        'y = Einsum <equation = "ij,jk,kl->il"> (a, b, c)',
        2 * 3 * 4 + 2 * 4 * 5,
    ),
    "einsum of one": ("float[2,3] a", 'y = Einsum <equation = "ij->ji"> (a)', 0),
    "matmul of packed weights": (
        "float[2,3,64] a, uint8[5,2,16] b, float[10] s",
        "y = com.microsoft.MatMulNBits <K = 64, N = 5, bits = 4, block_size = 32> (a, b, s)",
        2 * 3 * 64 * 5,
    ),
    "multi-head attention": (
        "float[2,5,8] q, float[2,7,8] k, float[2,7,6] v",
        "y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v)",
        2 * 5 * 7 * (8 + 6),
    ),
    "elementwise": ("float[1000] a, float[1000] b", "c = Mul (a, b) y = Relu (c)", 0),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula(name: str) -> None:
    inputs, body, want = FORMULAS[name]
    assert cost(model(inputs, body)).macs == want


def test_fused_operators_count_like_those_they_are_made_of() -> None:
    fused = model(
        "float[1,4,8,8] x, float[6,4,3,3] w", "y = com.microsoft.FusedConv (x, w)", "float[1,6,6,6]"
    )
    assert cost(fused).macs == 6 * 6 * 6 * 36
    turned = model(
        "float[2,4,3] a, float[4,5] b", "y = com.microsoft.FusedMatMul <transA = 1> (a, b)", "float[2,3,5]"
    )
    assert cost(turned).macs == 2 * 3 * 4 * 5
    assert [n.op_type for n in cost(turned).nodes] == ["com.microsoft::FusedMatMul"]


NET = f"""{HEAD}
net (float[batch,4,8,8] x, float[6,3] d) => (float[batch,3] y)
<int64[2] shape = {{0, -1}}>
{{
    c = Conv (x, w, b)
    g = GlobalAveragePool (c)
    f = Reshape (g, shape)
    h = Cast <to = 1> (head)
    k = Add (h, d)
    y = MatMul (f, k)
}}"""


def with_weights() -> ir.Model:
    """Return the net with the weights that its text leaves open."""
    found = from_text(NET)
    graph = found.graph
    for name, shape, dtype in (
        ("w", (6, 4, 3, 3), "float32"),
        ("b", (6,), "float32"),
        ("head", (6, 3), "float16"),
    ):
        value = ir.Value(name=name, const_value=ir.tensor(np.zeros(shape, dtype), name=name))
        for node in graph:
            for i, read in enumerate(node.inputs):
                if read is not None and read.name == name:
                    node.replace_input_with(i, value)
        graph.register_initializer(value)
    return found


def test_parameters_bytes_and_rows() -> None:
    found = cost(with_weights())
    assert found.parameters == 6 * 4 * 9 + 6 + 18
    assert found.bytes == 4 * (216 + 6) + 2 * 18 + 8 * 2
    assert found.assumed == {"batch": 1}
    assert found.unknown == []
    assert found.macs == 6 * 6 * 6 * 36 + 6 * 3
    assert [
        (n.place, n.op_type, n.macs, n.parameters, n.weight_bytes, n.output_bytes) for n in found.nodes
    ] == [
        ("c", "Conv", 7776, 222, 888, 4 * 6 * 36),
        ("g", "GlobalAveragePool", 0, 0, 0, 24),
        ("f", "Reshape", 0, 0, 16, 24),
        ("h", "Cast", 0, 18, 36, 72),
        ("k", "Add", 0, 0, 0, 72),
        ("y", "MatMul", 18, 0, 0, 12),
    ]
    assert found.by_operator() == {
        "Conv": (1, 7776, 222, 888),
        "MatMul": (1, 18, 0, 0),
        "Cast": (1, 0, 18, 36),
        "Add": (1, 0, 0, 0),
        "GlobalAveragePool": (1, 0, 0, 0),
        "Reshape": (1, 0, 0, 16),
    }


def test_dimensions_can_be_given() -> None:
    found = cost(with_weights(), dims={"batch": 5})
    assert found.macs == 5 * (7776 + 18)
    assert found.assumed == {}


def test_stored_shapes_are_enough_and_symbols_are_computed() -> None:
    found = model("float[N,M,4] a, float[4,5] b", "z = Foo (a) y = MatMul (z, b)")
    node = next(n for n in found.graph if n.op_type == "MatMul")
    node.inputs[0].shape = ir.Shape(["N", "2*M + 1", 4])
    node.outputs[0].shape = ir.Shape(["N", "2*M + 1", 5])
    assert cost(found, dims={"N": 3, "M": 7}).macs == 3 * 15 * 4 * 5


def test_an_unnamed_dimension_is_called_by_its_place() -> None:
    text = model("float[?,4] a, float[4,5] b", "y = MatMul (a, b)")
    assert cost(text).assumed == {"a[0]": 1}
    assert cost(text, dims={"a[0]": 3}).macs == 60


def test_a_dimension_of_the_data_counts_as_one_and_is_told() -> None:
    found = cost(
        model(
            "float[8] a, float[1,5] b",
            "i = NonZero (a) c = Cast <to = 1> (i) t = Transpose (c) y = MatMul (t, b)",
        )
    )
    assert found.macs == 1 * 1 * 5
    assert len(found.assumed) == 1


def test_what_is_unknown_is_listed() -> None:
    found = cost(model("float[4,4] a", "z = my.domain.Op (a) u = MatMul (z, a) y = MatMul (a, a)"))
    assert found.unknown == ["u"]
    assert found.macs == 64
    assert [n.macs for n in found.nodes] == [0, None, 64]
    assert [n.output_bytes for n in found.nodes] == [None, None, 64]


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"n": 2}, "dims: no input has a dimension called 'n'; those there are: N"),
        ({"N": 0}, "dims: the size of N must be a positive integer, got 0"),
    ],
)
def test_dimensions_that_make_no_sense(dims: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        cost(model("float[N,4] a", "y = MatMul (a, a)"), dims=dims)
    assert str(caught.value) == message


def test_functions_count_where_they_are_called() -> None:
    found = from_text("""<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
    main (float[2,3] x, float[3,3] w, float[4,3] x2) => (float[2,3] y, float[4,3] z) {
        y = local.twice (x, w)
        z = local.twice (x2, w)
    }
    <domain: "local", opset_import: ["" : 20]>
    twice (a, w) => (c) { b = MatMul (a, w) c = MatMul (b, w) }""")
    text = to_text(found)
    spent = cost(found)
    assert spent.macs == 2 * (2 * 9) + 2 * (4 * 9)
    assert [n.macs for n in spent.nodes] == [18, 18, 36, 36]
    assert to_text(found) == text


def test_of_two_branches_the_dearer_counts() -> None:
    found = model(
        "float[2,4] x, bool go, float[4,4] w",
        """y = If (go) <
            then_branch = a () => (p) { p = MatMul (x, w) },
            else_branch = b () => (q) { r = MatMul (x, w) q = MatMul (r, w) }
        >""",
    )
    assert cost(found).macs == 64


def test_a_scan_counts_its_body_for_each_slice() -> None:
    found = model(
        "float[2,4] h, float[5,2,4] xs, float[4,4] w",
        """last, all = Scan <num_scan_inputs = 1, body = step (hi, xi) => (ho, yo) {
            a = MatMul (hi, w) ho = Add (a, xi) yo = Identity (ho) }> (h, xs)
        y = MatMul (all, w)""",
    )
    assert cost(found).macs == 5 * 2 * 16 + 5 * 2 * 16


LOOP = """y = Loop (m, go, h) <body = step (int64 i, bool c, hi) => (c2, ho) {
    c2 = Identity (c) ho = MatMul (hi, w) }>"""


def test_a_loop_counts_its_limit() -> None:
    found = from_text(
        f"{HEAD}main (bool go, float[2,4] h, float[4,4] w) => (float[?] y) <int64 m = {{3}}> {{ {LOOP} }}"
    )
    assert (cost(found).macs, cost(found).assumed) == (3 * 2 * 16, {})


def test_a_loop_of_unknown_length_counts_once_and_says_so() -> None:
    found = model("int64 m, bool go, float[2,4] h, float[4,4] w", LOOP)
    assert (cost(found).macs, cost(found).assumed) == (2 * 16, {"runs of y": 1})


def test_a_shape_that_the_graph_computes() -> None:
    found = model(
        "float[3,4] a, float[5,2] b",
        """n = Shape <start = 1> (a) m = Shape <end = 1> (b) s = Concat <axis = 0> (n, m)
        zeros = ConstantOfShape (s) c = MatMul (zeros, b) y = MatMul (a, c)""",
    )
    assert cost(found).macs == 4 * 5 * 2 + 3 * 4 * 2


def test_a_weight_that_is_read_twice_counts_once() -> None:
    found = from_text(
        f"{HEAD}m (float[2,2] x) => (float[2,2] y) <float[2,2] w = {{1,2,3,4}}> "
        "{ [a] a = Add (w, w) [b] b = MatMul (x, w) [c] y = Mul (a, b) }"
    )
    assert [(n.place, n.parameters) for n in cost(found).nodes] == [("a", 0), ("b", 4), ("c", 0)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_operator_of_onnx_can_be_counted() -> None:
    unknown = []
    for case in collect_testcases(None):
        found = cost(ir.from_proto(case.model))
        assert found.macs >= 0
        unknown += [case.name] * bool(found.unknown)
    assert [name for name in unknown if not name.startswith("test_affine_grid")] == []


def test_the_model_is_untouched() -> None:
    found = with_weights()
    text = to_text(found)
    cost(found)
    assert to_text(found) == text
