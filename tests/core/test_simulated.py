"""The target's integer kernels against the rounding that the pairs ask for, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import Backend, Executable, NodeTime, hookimpl, plugins
from graphopt.errors import VerificationError
from graphopt.interfaces import IntegerSupport
from graphopt.report import SIMULATED
from graphopt.simulated import Layer, compare_integers, cut
from graphopt.text import from_text

CPU = plugins.get_backend("onnxruntime:cpu")
NET = """<ir_version: 10, opset_import: ["" : 21]>
main (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float s = {0.125}, uint8 z = {128}, float t = {0.0625}, int8 n = {0}, int8[2,2,1,1] w = {1, -2, 3, 4}>
{
   xq = QuantizeLinear (x, s, z)
   xd = DequantizeLinear (xq, s, z)
   wd = DequantizeLinear (w, t, n)
   a = Conv (xd, wd)
   aq = QuantizeLinear (a, s, z)
   ad = DequantizeLinear (aq, s, z)
   b = Conv (ad, wd)
   bq = QuantizeLinear (b, s, z)
   bd = DequantizeLinear (bq, s, z)
   y = Sin (bd)
}"""
PLACED = "insert-qdq{include=[Conv]}"
"""Whether it pays to run so little on integers is not asked."""
FLOATS = """<ir_version: 10, opset_import: ["" : 21]>
main (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float[2,2,1,1] w = {1, -2, 3, 4}, float[2] c = {0, 1}>
{
   a = Conv (x, w, c)
   s = Sin (a)
   b = Conv (s, w, c)
   y = Sin (b)
}"""


def feeds(count: int = 2) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [{"x": draw.normal(size=(1, 2, 4, 4)).astype(np.float32)} for _ in range(count)]


class Off(Executable):
    """An executable one of whose outputs is wrong in one element."""

    def __init__(self, right: Executable, wrong: Mapping[str, int]) -> None:
        self.right, self.wrong = right, wrong
        self.input_names, self.output_names = right.input_names, right.output_names

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = self.right.run(inputs)
        for name, by in self.wrong.items():
            if name in found:
                array = found[name].copy()
                array.flat[3] = array.flat[3] + by if array.flat[3] < 128 else array.flat[3] - by
                found[name] = array
        return found

    def bind(self, inputs: Mapping[str, Any]) -> None:
        self.right.bind(inputs)

    def step(self) -> None:
        self.right.step()

    def close(self) -> None:
        self.right.close()


class Target(Backend):
    """onnxruntime, except that what it makes of some values is wrong by so many quanta."""

    name = "mine"

    def __init__(self, **wrong: int) -> None:
        self.wrong, self.compiled = wrong, list[list[str]]()

    def unavailable(self) -> str | None:
        return None

    def compile(self, model: ir.Model, **settings: Any) -> Executable:
        self.compiled.append([value.name or "" for value in model.graph.outputs])
        return Off(CPU.compile(model, **settings), self.wrong)

    def profile(self, model: ir.Model, inputs: Mapping[str, Any], runs: int = 10) -> list[NodeTime]:
        return []

    def integers(self) -> IntegerSupport | None:
        return CPU.integers()

    def supports(self, domain: str, op_type: str, dtype: ir.DataType | None = None) -> bool:
        return CPU.supports(domain, op_type, dtype)


@pytest.fixture
def mine() -> Iterator[Target]:
    """A registered target."""
    target = Target()
    plugins.register(SimpleNamespace(register_backends=hookimpl(lambda: [target])), "stranger")
    yield target
    plugins.unregister("stranger")


def test_kernels_that_round_as_the_pairs_say() -> None:
    """All scales are powers of two, so that nothing is rounded but what the pairs round."""
    found = compare_integers(from_text(NET), CPU, feeds())
    assert found is not None and found.ok
    assert found.layers == [
        Layer("xq", (), 0, 0, 64),
        Layer("a", ("a",), 0, 0, 64),
        Layer("b", ("b",), 0, 0, 64),
    ]
    assert [output.name for output in found.outputs] == ["y"]
    assert found.text() == "3 layers on integers equal the simulated rounding"


def test_one_quantum_is_rounding() -> None:
    found = compare_integers(from_text(NET), Target(aq=1), feeds())
    assert found is not None and found.ok
    assert found.layers[1] == Layer("a", ("a",), 1, 2, 64)
    assert found.text() == (
        "3 layers on integers within one quantum of the simulated rounding, which 1 % of elements miss, in a 3.1 %"
    )


def test_two_quanta_are_a_wrong_kernel() -> None:
    """The layer behind it gets the right integers, and is right."""
    found = compare_integers(from_text(NET), Target(aq=2), feeds())
    assert found is not None and not found.ok
    assert [(layer.name, layer.largest) for layer in found.layers] == [("xq", 0), ("a", 2), ("b", 0)]
    assert found.text() == (
        "layer a: the integers of the target's kernel are up to 2 quanta from the simulated rounding, 1 is allowed; "
        "3.1 % of them differ"
    )


def test_the_worst_layer_is_named_first() -> None:
    found = compare_integers(from_text(NET), Target(aq=2, bq=50), feeds(1))
    assert found is not None
    assert found.text() == (
        "layer b: the integers of the target's kernel are up to 50 quanta from the simulated rounding, 1 is allowed; "
        "3.1 % of them differ; 2 of 3 layers are off"
    )


def test_a_float_output_behind_right_integers() -> None:
    found = compare_integers(from_text(NET), Target(y=1), feeds(1))
    assert found is not None and not found.ok and not found.wrong
    assert found.text() == (
        "output 'y' at [0, 0, 0, 3]: 0 became 1, 8 of its largest element (rounding does at most 5e-05), behind "
        "integers that are those of the simulated rounding"
    )


def test_memory_is_bounded_by_groups() -> None:
    """Of the 32 bytes of each value two fit: the third comes with the graph output."""
    target = Target(aq=2)
    found = compare_integers(from_text(NET), target, feeds(), budget_bytes=64)
    assert target.compiled == [["xq", "aq"], ["bq", "y"]]
    assert found is not None
    assert [(layer.name, layer.largest, layer.elements) for layer in found.layers] == [
        ("xq", 0, 64),
        ("a", 2, 64),
        ("b", 0, 64),
    ]


def test_a_part_takes_what_it_reads() -> None:
    parts, given = cut(from_text(NET), ["bq"])
    assert given == {"aq": "aq_given"}
    assert [value.name for value in parts.graph.inputs] == ["aq_given"]
    assert parts.graph.inputs[0].dtype == ir.DataType.UINT8
    assert [node.op_type for node in parts.graph] == [
        "DequantizeLinear",
        "DequantizeLinear",
        "Conv",
        "QuantizeLinear",
    ]


def test_nothing_to_compare() -> None:
    assert compare_integers(from_text(FLOATS), CPU, feeds()) is None
    noise = NET.replace("y = Sin (bd)", "r = RandomNormalLike (bd) y = Add (bd, r)")
    assert compare_integers(from_text(noise), CPU, feeds()) is None


# --- in a run ---------------------------------------------------------------------------------------------------------


def test_a_run_proves_the_kernels_of_its_target() -> None:
    result = graphopt.optimize(from_text(FLOATS), PLACED, inputs=feeds(), calibration=feeds(8))
    original, integers = result.report.checks
    assert original.ok and integers.ok
    assert (integers.after, integers.against) == ("insert-qdq", SIMULATED)
    assert result.report.verdict() == (
        f"verified against the {original.against}: {original.text}; {integers.text}"
    )
    assert result.report.remarks[-1] == (
        "2 of 2 products run on integers; 4 QuantizeLinear and DequantizeLinear stay (graphopt explain MODEL names "
        "them)"
    )


def test_a_wrong_kernel_is_left_out(mine: Target) -> None:
    """The product that the target computes wrongly stays in floats; the other runs on integers."""
    mine.wrong = {"b_quantized": 2}
    result = graphopt.optimize(
        from_text(FLOATS), PLACED, inputs=feeds(), calibration=feeds(8), target="mine", reproducers=None
    )
    (blame,) = result.report.blamed
    assert (blame.number, blame.pass_name, blame.where, blame.checks) == (2, "insert-qdq", "b", 1)
    assert blame.reason == (
        "layer b: the integers of the target's kernel are up to 2 quanta from the simulated rounding, 1 is allowed; "
        "3.1 % of them differ"
    )
    assert result.report.verified
    assert [a.where for a in result.report.passes[0].applied] == ["a"]


def test_a_wrong_kernel_is_an_error_where_one_is_strict(mine: Target) -> None:
    mine.wrong = {"b_quantized": 3}
    with pytest.raises(VerificationError) as caught:
        graphopt.optimize(
            from_text(FLOATS),
            PLACED,
            inputs=feeds(),
            calibration=feeds(8),
            target="mine",
            reproducers=None,
            strict=True,
        )
    assert str(caught.value) == (
        "insert-qdq: rewrite 2, at b, changed what the model computes: layer b: the integers of the target's kernel "
        "are up to 3 quanta from the simulated rounding, 1 is allowed; 3.1 % of them differ"
    )


def test_a_fault_that_belongs_to_no_rewrite_leaves_the_pass_out(mine: Target) -> None:
    mine.wrong = {"x_quantized": 2}
    result = graphopt.optimize(
        from_text(FLOATS), PLACED, inputs=feeds(), calibration=feeds(8), target="mine", reproducers=None
    )
    why = (
        "layer x_quantized: the integers of the target's kernel are up to 2 quanta from the simulated rounding, 1 is "
        "allowed; 3.1 % of them differ"
    )
    assert result.report.passes[0].rolled_back == why
    assert f"insert-qdq was left out as a whole: {why}" in result.report.remarks
    assert result.report.verified


def test_a_bias_stays_within_32_bits() -> None:
    """A channel whose weights are next to nothing would get a scale by which its bias overflows."""
    model = from_text(FLOATS)
    w = model.graph.initializers["w"]
    w.const_value = ir.tensor(np.array([1, -2, 3e-9, 4e-9], np.float32).reshape(2, 2, 1, 1), name="w")
    model.graph.initializers["c"].const_value = ir.tensor(np.array([0, -0.6], np.float32), name="c")
    result = graphopt.optimize(
        model, "insert-qdq{include=[Conv],rounding=nearest}", inputs=feeds(), calibration=feeds(8)
    )
    assert result.report.verified and not result.report.blamed
    (integers,) = [
        value.const_value.numpy()
        for value in result.model.graph.initializers.values()
        if value.const_value is not None and value.dtype == ir.DataType.INT32 and value.name == "c_quantized"
    ]
    assert int(integers[1]) == pytest.approx(-(2**30), rel=1e-6)
