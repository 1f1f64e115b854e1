"""Dropping layers: which go, what makes up for them, and that the result is what the reference says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.prune.joint import cosines
from graphopt_passes.prune.residual import blocks, chains, layers

import graphopt
from graphopt.context import Context
from graphopt.interfaces import PassReport
from graphopt.text import from_text

HEAD = '<ir_version: 10, opset_import: ["" : 20]>'
CONVOLUTIONS = f"""{HEAD}
main (float[N,6,8,8] x) => (float[N,6,8,8] y)
{{
   a = Conv <pads = [1,1,1,1]> (x, w0, b0)
   ra = Relu (a)
   c = Conv <pads = [1,1,1,1]> (ra, w1, b1)
   d = Add (ra, c)
   rd = Relu (d)
   e = Conv <pads = [1,1,1,1]> (rd, w2, b2)
   f = Add (rd, e)
   y = Relu (f)
}}"""
KERNELS = {"w0": (6, 6, 3, 3), "b0": (6,), "w1": (6, 6, 3, 3), "b1": (6,), "w2": (6, 6, 3, 3), "b2": (6,)}
FORWARD = f"""{HEAD}
main (float[N,8] x) => (float[N,8] y)
{{
   n = LayerNormalization (x, g, h)
   a = MatMul (n, w0)
   ra = Relu (a)
   b = MatMul (ra, w1)
   c = Add (b, b1)
   d = Add (c, n)
   e = LayerNormalization (d, g1, h1)
   i = MatMul (e, w2)
   ri = Relu (i)
   j = MatMul (ri, w3)
   k = Add (j, b3)
   l = Add (k, e)
   y = LayerNormalization (l, g2, h2)
}}"""
FLAT = f"""{HEAD}
main (float[2,32,8] x) => (float[2,32,8] y)
<int64[2] flat = {{64, 8}}, int64[3] deep = {{2, 32, 8}}>
{{
   v = Reshape (x, flat)
   a = Gemm (v, w2, b1)
   ra = Relu (a)
   b = Reshape (ra, deep)
   e = MatMul (b, w3)
   c = Add (x, e)
   n = Reshape (c, flat)
   i = Gemm <transB = 1> (n, q0, g)
   j = Reshape (i, deep)
   k = Add (c, j)
   m = MatMul (k, w0)
   r = Relu (m)
   o = MatMul (r, w1)
   y = Add (o, k)
}}"""
FLAT_SHAPES = {"w2": (8, 8), "b1": (8,), "w3": (8, 8), "q0": (8, 8), "g": (8,), "w0": (8, 16), "w1": (16, 8)}
VECTORS = ("g", "h", "b1", "g1", "h1", "b3", "g2", "h2")
MATRICES = {"w0": (8, 16), "w1": (16, 8), "w2": (8, 16), "w3": (16, 8), **dict.fromkeys(VECTORS, (8,))}
GAINS = ("g", "g1", "g2")


def model(text: str, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> ir.Model:
    """Return the graph with weights drawn for it."""
    rng = np.random.default_rng(seed)
    made = from_text(text)
    free = {value.name: value for node in made.graph for value in node.inputs if value is not None}
    for name, shape in shapes.items():
        array = rng.normal(size=shape) * 0.6 / np.sqrt(max(np.prod(shape[1:]), 1))
        array = (array + (name in GAINS)).astype(np.float32)
        free[name].const_value = ir.tensor(array, name=name)
        free[name].type, free[name].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        made.graph.register_initializer(free[name])
    return made


def feeds(seed: int, *shape: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(8)]


@pytest.mark.parametrize(
    ("text", "shapes", "size", "dropped"),
    [
        (CONVOLUTIONS, KERNELS, (2, 6, 8, 8), "y"),
        (FORWARD, MATRICES, (64, 8), "y"),
        (FLAT, FLAT_SHAPES, (2, 32, 8), "y"),
    ],
    ids=["convolutions", "normalizations", "reshapes"],
)
def test_what_is_before_makes_up_for_a_dropped_block(
    text: str, shapes: dict[str, Any], size: tuple[int, ...], dropped: str
) -> None:
    original, errors = model(text, shapes), []
    for how in ("none", "least-squares"):
        result = graphopt.optimize(
            original,
            f"drop-layers{{unit=block,include=[{dropped}],compensate={how}}}",
            inputs=feeds(2, *size)[:2],
            calibration=feeds(0, *size),
            strict=True,
        )
        assert result.report.verified
        assert len(result.model.graph) < len(original.graph) - 2
        errors.append(1 - graphopt.compare(original, result.model, feeds(1, *size)).outputs[0].cosine)
    assert errors[1] < 0.8 * errors[0], errors


def test_nothing_is_added_to_the_graph() -> None:
    result = graphopt.optimize(
        model(CONVOLUTIONS, KERNELS), "drop-layers{include=[y]}", calibration=feeds(0, 2, 6, 8, 8)
    )
    assert [node.op_type for node in result.model.graph] == ["Conv", "Relu", "Conv", "Add", "Relu"]


def test_two_blocks_in_a_row_go_one_after_the_other() -> None:
    result = graphopt.optimize(
        model(FORWARD, MATRICES),
        "drop-layers{count=2}",
        inputs=feeds(2, 64, 8)[:2],
        calibration=feeds(0, 64, 8),
        strict=True,
    )
    assert result.report.verified
    assert [node.op_type for node in result.model.graph] == ["LayerNormalization"]


def test_a_share_of_the_blocks_goes() -> None:
    result = graphopt.optimize(
        model(FORWARD, MATRICES), "drop-layers{ratio=0.5,unit=block}", calibration=feeds(0, 64, 8)
    )
    assert len(result.report.passes[0].applied) == 1


def test_without_calibration_data_the_sample_inputs_serve() -> None:
    result = graphopt.optimize(model(FORWARD, MATRICES), "drop-layers", inputs=feeds(0, 64, 8))
    (entry,) = result.report.passes
    assert entry.notes[0] == (
        "the influence was measured on the given sample inputs; give --calibration to choose better"
    )
    assert entry.notes[1].startswith("influence of each block, from front to back: 0.")
    assert not any("makes up" in note for note in entry.notes)


def test_least_squares_ask_for_data() -> None:
    with pytest.raises(graphopt.InputError) as error:
        graphopt.optimize(model(FORWARD, MATRICES), "drop-layers{compensate=least-squares}")
    assert str(error.value) == (
        "drop-layers: compensate=least-squares needs calibration data and got none; give --calibration"
    )


def test_count_and_ratio_exclude_each_other() -> None:
    with pytest.raises(graphopt.OptionError, match="give either count or ratio, not both"):
        graphopt.optimize(model(FORWARD, MATRICES), "drop-layers{count=1,ratio=0.5}")


def test_blocks_of_one_structure_make_layers() -> None:
    """a b a b a: two whole layers, and a block that is part of none."""
    lines, last = [], "x"
    for i, kind in enumerate("ababa"):
        lines.append(f"   m{i} = MatMul ({last}, {kind})")
        lines += [f"   r{i} = Relu (m{i})"] * (kind == "b")
        lines.append(f"   s{i} = Add ({last}, {f'r{i}' if kind == 'b' else f'm{i}'})")
        last = f"s{i}"
    text = f"{HEAD}\nmain (float[N,4] x) => (float[N,4] {last})\n{{\n" + "\n".join(lines) + "\n}"
    made = model(text, {"a": (4, 4), "b": (4, 4)})
    (chain,) = chains(blocks(made, Context(made).analysis(graphopt.Shapes), PassReport()))
    assert [[block.y.name for block in unit.blocks] for unit in layers(chain)] == [["s0", "s1"], ["s2", "s3"]]


def test_the_cosine_of_zeros_to_zeros_is_one() -> None:
    a, b = np.array([[0.0, 0], [1, 0], [1, 0], [0, 0]]), np.array([[0.0, 0], [2, 0], [0, 3], [1, 0]])
    np.testing.assert_array_equal(cosines(a, b), [1, 1, 0, 0])
