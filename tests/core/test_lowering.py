"""What a target made of a quantized model, read back and explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from graphopt import Backend, Executable, NodeTime, UnavailableError, plugins
from graphopt.lowering import Kernel, explain_integers, lowering
from graphopt.text import from_text

CPU = plugins.get_backend("onnxruntime:cpu")
PAIRS = """<ir_version: 10, opset_import: ["" : 21]>
main (float[1,4,6,6] x) => (float[1,4,6,6] y)
<float s = {0.125}, uint8 z = {128}, float t = {0.0625}, uint8 o = {0}, int8 n = {0}, int8[4,4,1,1] w = {
    1, -2, 3, 4, 5, 6, -7, 8, 9, 1, 2, 3, -4, 5, 6, 7}>
{
   xq = QuantizeLinear (x, s, z)
   xd = DequantizeLinear (xq, s, z)
   wd = DequantizeLinear (w, t, n)
   a = Conv (xd, wd)
   b = Relu (a)
   bq = QuantizeLinear (b, s, o)
   bd = DequantizeLinear (bq, s, o)
   c = MIDDLE (bd)
   cq = QuantizeLinear (c, s, z)
   cd = DequantizeLinear (cq, s, z)
   d = Conv (cd, wd)
   dq = QuantizeLinear (d, s, z)
   y = DequantizeLinear (dq, s, z)
}"""
"""Two convolutions, and something between them."""


def model(middle: str) -> ir.Model:
    return from_text(PAIRS.replace("MIDDLE", middle))


def left(found: Any) -> list[tuple[str, str, bool]]:
    return [(kernel.name, kernel.reason, kernel.stranded) for kernel in found.of("conversion")]


def operators(found: Any) -> list[tuple[str, str, int]]:
    return [each[:3] for each in found.operators()]


class Target(Backend):
    """A target that runs graphs as they are, and has the integer kernels that it is given."""

    name = "mine"

    def __init__(self, *kernels: str, tells: bool = True) -> None:
        self.kernels, self.tells = kernels, tells

    def unavailable(self) -> str | None:
        return None

    def compile(self, model: ir.Model, **settings: Any) -> Executable:
        return CPU.compile(model, **settings)

    def profile(self, model: ir.Model, inputs: Mapping[str, Any], runs: int = 10) -> list[NodeTime]:
        return []

    def lowered(self, model: ir.Model, **settings: Any) -> ir.Model | None:
        return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model))) if self.tells else None

    def supports(self, domain: str, op_type: str, dtype: ir.DataType | None = None) -> bool:
        return dtype is None and op_type in self.kernels


def test_what_onnxruntime_makes_of_pairs() -> None:
    """A Sin has no integer kernel, so that the pairs beside it stay."""
    found = lowering(model("Sin"), CPU)
    assert found is not None
    assert sorted(operators(found)) == [
        ("conversion", "DequantizeLinear", 2),
        ("conversion", "QuantizeLinear", 2),
        ("floats", "Sin", 1),
        ("integers", "QLinearConv", 2),
        ("integers", "Transpose", 2),
    ]
    assert found.products == (2, 2)
    assert left(found) == [
        ("xq", "it quantizes graph input x", False),
        ("bd", "Sin c, which reads it, has no integer kernel", False),
        ("cq", "Sin c, which makes what it reads, has no integer kernel", False),
        ("y", "it gives graph output y in floats", False),
    ]
    assert found.text() == (
        "2 of 2 products run on integers; 4 QuantizeLinear and DequantizeLinear stay "
        "(graphopt explain MODEL names them)"
    )


def test_a_pair_that_stands_for_nothing() -> None:
    """The target has a kernel for what lies between the pairs, and leaves it in floats."""
    found = lowering(model("Sigmoid"), Target("QLinearSigmoid", "QLinearConv"))
    assert found is not None
    why = "computes in floats between pairs: the target has an integer kernel and did not take it"
    assert left(found) == [
        ("xq", "it quantizes graph input x", False),
        ("xd", f"Conv a, which reads it, {A_FLOAT}", False),
        ("wd", f"Conv a, which reads these weights, {A_FLOAT}", False),
        ("bq", "Relu b, which makes what it reads, has no integer kernel", False),
        ("bd", f"Sigmoid c, which reads it, {why}", True),
        ("cq", f"Sigmoid c, which makes what it reads, {why}", True),
        ("cd", f"Conv d, which reads it, {why}", True),
        ("dq", f"Conv d, which makes what it reads, {why}", True),
        ("y", "it gives graph output y in floats", False),
    ]
    assert found.text() == (
        "0 of 2 products run on integers; 9 QuantizeLinear and DequantizeLinear stay, 4 of them between integer "
        "kernels (graphopt explain MODEL names them)"
    )


A_FLOAT = "computes in floats: Relu b reads its result in floats"


def test_conversions_back_to_back() -> None:
    graph = from_text("""<ir_version: 10, opset_import: ["" : 21]>
        main (uint8[4] q) => (uint8[4] r, float[4] z) <float s = {0.5}, float t = {0.25}, uint8 o = {0},
        float[4] k = {1, 2, 3, 4}> {
            x = DequantizeLinear (q, s, o)
            r = QuantizeLinear (x, t, o)
            kq = QuantizeLinear (k, t, o)
            kd = DequantizeLinear (kq, t, o)
            unread = DequantizeLinear (q, t, o)
            z = Add (kd, k)
        }""")
    found = lowering(graph, Target("QLinearAdd"))
    assert found is not None
    assert left(found) == [
        ("x", "it and r behind it do nothing but change the scale", True),
        ("r", "it and x before it do nothing but change the scale", True),
        ("kq", "it quantizes constant k", False),
        ("kd", "Add z, which reads it, computes in floats: it reads k in floats", False),
        ("unread", "nothing reads unread", True),
    ]


def test_why_a_product_with_a_kernel_stays_in_floats() -> None:
    graph = from_text("""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        main (uint8[2,2] q, float[2,2] f) => (float[2,2] y, float[2,2] u) <float s = {0.5}, uint8 o = {0},
        uint8[2,2] w = {1, 2, 3, 4}> {
            x = DequantizeLinear (q, s, o)
            y = MatMul (x, x)
            v = com.microsoft.MatMulIntegerToFloat (q, w, s, s)
            vq = QuantizeLinear (v, s, o)
            vd = DequantizeLinear (vq, s, o)
            g = com.microsoft.FusedMatMul (vd, f)
            u = Sin (g)
        }""")
    found = lowering(graph, Target("QLinearMatMul"))
    assert found is not None
    assert left(found) == [
        ("x", "MatMul y, which reads it, computes in floats: it makes graph output y", False),
        (
            "vq",
            "MatMulIntegerToFloat v, which makes what it reads, has an integer kernel that gives floats",
            False,
        ),
        ("vd", "FusedMatMul g, which reads it, computes in floats: it reads f in floats", False),
    ]
    assert found.products == (1, 3)


@pytest.mark.parametrize(("dtype", "zero"), [("uint16", 0), ("int4", 0)])
def test_integers_that_no_kernel_reads(dtype: str, zero: int) -> None:
    """The kernel of the operator takes 8 bits: a pair of others is not stranded."""
    graph = from_text(f"""<ir_version: 10, opset_import: ["" : 21]>
        main ({dtype}[4] q, uint8[4] p) => (uint8[4] r)
        <float s = {{0.5}}, {dtype} o = {{{zero}}}, uint8 z = {{0}}> {{
            a = DequantizeLinear (q, s, o)
            b = DequantizeLinear (p, s, z)
            c = Add (a, b)
            r = QuantizeLinear (c, s, z)
        }}""")
    found = lowering(graph, Target("QLinearAdd"))
    assert found is not None
    why = f"has no integer kernel that reads {dtype}"
    assert left(found) == [
        ("a", f"Add c, which reads it, {why}", False),
        ("b", f"Add c, which reads it, {why}", False),
        ("r", f"Add c, which makes what it reads, {why}", False),
    ]


def test_time_is_told_by_node() -> None:
    times = [("xq", "QuantizeLinear", 0.5), ("c", "Sin", 2.0), ("c", "Cos", 9.0)]
    found = lowering(model("Sin"), Target(), times)
    assert found is not None
    assert [(k.name, k.milliseconds) for k in found.kernels if k.milliseconds] == [("xq", 0.5), ("c", 2.0)]
    assert found.operators()[0] == ("floats", "Sin", 1, 2.0)


def test_sizes_are_neither() -> None:
    graph = from_text("""<ir_version: 10, opset_import: ["" : 21]>
        main (float[N] x) => (int64[1] n, uint8[N] c, float[N] y) {
            n = Shape (x)
            c = Cast <to = 2> (x)
            y = Sin (x)
        }""")
    found = lowering(graph, Target())
    assert found is not None
    assert found.kernels == (
        Kernel("n", "Shape", "other", 0.0),
        Kernel("c", "Cast", "floats", 0.0),
        Kernel("y", "Sin", "floats", 0.0),
    )
    assert found.to_json()["integer_products"] == 0


def test_explaining_takes_any_source_and_measures() -> None:
    found = explain_integers(model("Sin"), runs=2)
    assert found.target == "onnxruntime:cpu"
    assert found.products == (2, 2)
    assert {kernel.name for kernel in found.kernels if kernel.op_type == "Sin"} == {"c"}


def test_a_target_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "get_backend", lambda name: Target(tells=False))
    with pytest.raises(UnavailableError) as caught:
        explain_integers(model("Sin"), "mine")
    assert str(caught.value) == "mine: it does not tell which kernels it runs; use another target"


def test_the_graph_read_back_has_names_and_types() -> None:
    """Weights are not written: only the larger ones would be, and nobody reads them."""
    graph = CPU.lowered(model("Sin"))
    assert graph is not None
    convs = [node for node in graph.graph if node.op_type == "QLinearConv"]
    assert [node.name for node in convs] == ["a", "d"]
    assert {value.dtype for node in convs for value in node.outputs} == {ir.DataType.UINT8}
    assert all(value.dtype is not None for node in graph.graph for value in node.outputs)
