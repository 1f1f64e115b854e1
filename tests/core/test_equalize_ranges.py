"""What case files cannot show of equalizing: random chains, and that ranges really become equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt_passes.equalize_ranges import EqualizeRanges
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphopt.testing import conformance, run, same_outputs
from graphopt.text import from_text

GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,1,H,W] x) => (float[N,1,H,W] y)
<float[2,1,1,1] w = {4,1}, float[2] b = {2,2}, float[1,2,1,1] v = {1,4}>
{
   c = Conv (x, w, b)
   r = Relu (c)
   y = Conv (r, v)
}"""
ACTIVATIONS = ["Relu", "LeakyRelu", "Identity", "Sigmoid", "Clip"]


def chain(
    kinds: list[str], sizes: list[int], activations: list[str], seed: int, dtype: Any = np.float32
) -> ir.Model:
    """Return a chain of layers with weights whose channels lie up to a thousandfold apart."""
    number = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    rng = np.random.default_rng(seed)
    x = ir.Value(name="x", type=number, shape=ir.Shape([2, sizes[0], 4, 4]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="chain")
    value, channels = x, sizes[0]

    def constant(array: Any, name: str) -> ir.Value:
        made = ir.Value(name=name, const_value=ir.tensor(np.asarray(array, dtype), name=name))
        graph.register_initializer(made)
        return made

    for i, (kind, size, activation) in enumerate(zip(kinds, sizes[1:], activations, strict=False)):
        group = channels if kind == "depthwise" else 1
        out = channels if kind == "depthwise" else size
        spread = 10 ** rng.uniform(-1.5, 1.5, (out, 1, 1, 1))
        w = spread * rng.normal(size=(out, channels // group, 3, 3))
        if kind == "transposed":
            w, channels_out = np.swapaxes(w, 0, 1), out
            attributes: dict[str, Any] = {"pads": [1, 1, 1, 1]}
        else:
            channels_out, attributes = out, {"pads": [1, 1, 1, 1], "group": group}
        bias = constant(rng.normal(size=out), f"b{i}")
        layer = ir.node(
            "ConvTranspose" if kind == "transposed" else "Conv",
            [value, constant(w, f"w{i}"), bias],
            attributes,
        )
        operands = [layer.outputs[0]]
        if activation == "Clip":
            operands += [constant(0, f"zero{i}"), constant(6, f"six{i}")]
        behind = ir.node(activation, operands)
        graph.extend([layer, behind])
        layer.outputs[0].name, behind.outputs[0].name = f"c{i}", f"a{i}"
        value, channels = behind.outputs[0], channels_out
    value.type, value.shape = number, ir.Shape([2, channels, 4, 4])
    graph.outputs.append(value)
    return ir.Model(graph, ir_version=10)


@settings(max_examples=40, deadline=None)
@example(
    ["transposed", "transposed", "plain", "plain"], [2, 4, 3, 3, 1], ["Relu", "Relu", "Clip", "Sigmoid"], 47
)
@given(
    st.lists(st.sampled_from(["plain", "depthwise", "transposed"]), min_size=2, max_size=4),
    st.lists(st.integers(1, 4), min_size=5, max_size=5),
    st.lists(st.sampled_from(ACTIVATIONS), min_size=4, max_size=4),
    st.integers(0, 1000),
)
def test_a_random_chain_computes_the_same_and_a_second_run_finds_nothing(
    kinds: list[str], sizes: list[int], activations: list[str], seed: int
) -> None:
    """In double precision: what float32 rounds away may be all of a sum of large numbers in front of a Sigmoid."""
    model = chain(kinds, sizes, activations, seed, np.float64)
    after, _, _ = run(EqualizeRanges(), model)
    feed = {"x": np.random.default_rng(seed).normal(size=(2, sizes[0], 4, 4))}
    same_outputs(model, after, [feed])
    _, again, _ = run(EqualizeRanges(), after)
    assert again.applied == []


def test_ranges_on_both_sides_of_a_boundary_become_equal() -> None:
    model = chain(["plain", "depthwise", "plain"], [3, 4, 4, 2], ["Relu"] * 3, 0)
    after, entry, _ = run(EqualizeRanges(), model)
    w = [after.graph.initializers[f"w{i}"].const_value.numpy() for i in range(3)]
    first, narrow, last = (
        np.abs(w[0]).max((1, 2, 3)),
        np.abs(w[1]).max((1, 2, 3)),
        np.abs(w[2]).max((0, 2, 3)),
    )
    np.testing.assert_allclose(narrow, first, rtol=2e-3)
    np.testing.assert_allclose(last, narrow, rtol=2e-3)
    assert len(entry.applied) == 2


def test_it_conforms() -> None:
    conformance(
        EqualizeRanges, [GRAPH, chain(["plain", "depthwise", "plain"], [3, 4, 4, 2], ["Relu"] * 3, 1)]
    )


def test_what_is_included_alone_is_scaled() -> None:
    model = from_text(GRAPH)
    _, some, _ = run(EqualizeRanges(include=("c",)), model)
    _, none, _ = run(EqualizeRanges(include=("other",)), model)
    assert [a.detail for a in some.applied] == ["2 channels by 0.5 to 2"]
    assert [d.reason for d in none.declined] == ["what makes its input is not selected"]
