"""Property tests of the folds: whatever they do to a random layer, onnxruntime computes the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt import pipeline
from graphopt.interfaces import Applied
from graphopt.testing import conformance, run, same_outputs, valid
from graphopt.text import from_text, to_text

CHECKED = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@dataclass
class Net:
    """Nodes in a chain, each with constants of its own, from ``x`` on."""

    rng: np.random.Generator
    dtype: type[np.floating[Any]]
    opset: int = 18

    def __post_init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.last = "x"

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, self.dtype), name))
        return name

    def random(self, *shape: int) -> np.ndarray[Any, Any]:
        return np.asarray(self.rng.uniform(0.5, 2, shape) * self.rng.choice([-1, 1], shape))

    def add(self, op_type: str, inputs: list[str], **attributes: Any) -> None:
        output = f"v{len(self.nodes)}"
        given = {name: value for name, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op_type, inputs, [output], **given))
        self.last = output

    def model(self, shape: tuple[int, ...]) -> ir.Model:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info(self.last, kind, None)],
            self.constants,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def outputs(model: ir.Model, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def folded(names: str, net: Net, shape: tuple[int, ...]) -> tuple[ir.Model, list[Applied], str]:
    """Fold, and hold the result to the original's numbers; return it, what was applied, and the reasons why not."""
    before = after = net.model(shape)
    applied: list[Applied] = []
    reasons = ""
    for name in names.split(","):
        (step,) = pipeline.parse(name).passes()
        after, entry, _ = run(step, after)
        applied += entry.applied
        reasons = "; ".join(d.reason for d in entry.declined)
    valid(after)
    x = net.rng.standard_normal(shape).astype(net.dtype)
    want, got = outputs(before, x), outputs(after, x)
    assert (want.shape, want.dtype) == (got.shape, got.dtype)
    largest = float(np.abs(want[np.isfinite(want)]).max(initial=0))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * largest)
    event(f"{len(applied)} applied{': ' * bool(reasons)}{reasons[:40]}")
    return after, applied, reasons


@st.composite
def windows(draw: st.DrawFn, spatial: int) -> dict[str, Any]:
    """Attributes of a convolution or pool, absent ones among them."""
    each = st.lists(st.integers(1, 2), min_size=spatial, max_size=spatial)
    kernel = draw(st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial))
    auto_pad = draw(st.sampled_from([None, None, "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    strides, dilations = draw(st.none() | each), draw(st.none() | each)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        strides = dilations = None  # onnxruntime refuses dilations, and strides above the kernel
    pads = None
    if auto_pad in (None, "NOTSET"):
        pads = draw(st.none() | st.tuples(*(st.integers(0, min(1, size - 1)) for size in kernel * 2)))
    window = {"kernel_shape": kernel, "strides": strides, "dilations": dilations}
    return window | {"pads": pads, "auto_pad": auto_pad}


def conv(draw: st.DrawFn, net: Net, op_type: str) -> tuple[tuple[int, ...], int, int]:
    """Add a convolution; return the shape of its input, and how many channels come in and go out."""
    spatial = draw(st.integers(1, 3))
    groups, wide, narrow = (draw(st.integers(1, 3)) for _ in range(3))
    window = draw(windows(spatial))
    i, o = groups * wide, groups * narrow
    shape = (o, wide) if op_type == "Conv" else (i, narrow)
    inputs = [net.last, net.constant(net.random(*shape, *window["kernel_shape"]))]
    if draw(st.booleans()):
        inputs.append(net.constant(net.random(o)))
    if op_type == "ConvTranspose" and window["strides"] and draw(st.booleans()):
        window["output_padding"] = [s - 1 for s in window["strides"]]
    if draw(st.booleans()):
        window["kernel_shape"] = None
    net.add(op_type, inputs, group=groups if groups > 1 else None, **window)
    return (2, i, *[7 if spatial < 3 else 5] * spatial), i, o


def gemm(draw: st.DrawFn, net: Net) -> tuple[tuple[int, ...], int, int]:
    """Add a Gemm, as ``conv`` does."""
    m, k, n = (draw(st.integers(1, 4)) for _ in range(3))
    ta, tb = (draw(st.sampled_from([None, 0, 1])) for _ in range(2))
    inputs = [net.last, net.constant(net.random(*((n, k) if tb else (k, n))))]
    bias = draw(st.sampled_from([None, (), (1,), (n,), (1, n), (m, n), (m, 1)]))
    if bias is not None:
        inputs.append(net.constant(net.random(*bias)))
    alpha, beta = (draw(st.sampled_from([None, 0.5, -2.0, 0.0])) for _ in range(2))
    net.add("Gemm", inputs, transA=ta, transB=tb, alpha=alpha, beta=beta)
    return ((k, m) if ta else (m, k)), (m if ta else k), n


def matmul(draw: st.DrawFn, net: Net) -> tuple[tuple[int, ...], int, int]:
    """Add a MatMul, as ``conv`` does; axis 1 is what a BatchNormalization beside it would take for channels."""
    m, k, n, batch = (draw(st.integers(1, 4)) for _ in range(4))
    left = draw(st.booleans())
    deep = draw(st.sampled_from([(), (batch,)]))
    w = net.constant(net.random(*draw(st.sampled_from([(), deep])), *((m, k) if left else (k, n))))
    net.add("MatMul", [w, net.last] if left else [net.last, w])
    shape = (*deep, k, n) if left else (*deep, m, k)
    return shape, shape[1], m if deep else n


@st.composite
def layers(draw: st.DrawFn, net: Net) -> tuple[tuple[int, ...], int, int]:
    op_type = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]))
    if op_type in ("Conv", "ConvTranspose"):
        return conv(draw, net, op_type)
    return gemm(draw, net) if op_type == "Gemm" else matmul(draw, net)


def batchnorm(net: Net, channels: int) -> None:
    scale, bias, mean = (net.constant(net.random(channels)) for _ in range(3))
    var = net.constant(np.abs(net.random(channels)))
    net.add("BatchNormalization", [net.last, scale, bias, mean, var], epsilon=1e-3, momentum=0.5)


@st.composite
def arithmetic(draw: st.DrawFn, net: Net, channels: int, rank: int) -> None:
    shape = draw(
        st.sampled_from(
            [(), (1,), (1,) * rank, (channels, *[1] * (rank - 2)), (1, channels, *[1] * (rank - 2))]
        )
    )
    operands = [net.last, net.constant(net.random(*shape))]
    op_type = draw(st.sampled_from(["Mul", "Add", "Sub", "Div"]))
    swapped = op_type != "Div" and draw(st.booleans())  # k / x is as ill-conditioned as x is near 0
    net.add(op_type, operands[::-1] if swapped else operands)


def put_first(net: Net) -> None:
    """Move the node added last, which reads ``x``, before all others."""
    node = net.nodes.pop()
    node.output[0] = "first"
    for i, name in enumerate(net.nodes[0].input):
        if name == "x":
            net.nodes[0].input[i] = "first"
    net.nodes.insert(0, node)
    net.last = net.nodes[-1].output[0]


def padded(node: onnx.NodeProto) -> bool:
    """Return whether zeros beside the input may take part in a Conv's output."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return any(given.get("pads", [])) or given.get("auto_pad", b"").startswith(b"SAME")


@CHECKED
@given(st.data(), st.integers(0, 999))
def test_a_batchnorm_behind_a_layer_folds(data: st.DataObject, seed: int) -> None:
    net = Net(np.random.default_rng(seed), np.float32)
    shape, _, channels = data.draw(layers(net))
    batchnorm(net, channels)
    after, applied, reasons = folded("fold-batchnorm", net, shape)
    if net.nodes[0].op_type in ("Conv", "ConvTranspose"):
        assert applied and len(after.graph) == 1, reasons


@CHECKED
@given(st.data(), st.integers(0, 999))
def test_a_batchnorm_before_a_layer_folds(data: st.DataObject, seed: int) -> None:
    net = Net(np.random.default_rng(seed), np.float32)
    shape, channels, _ = data.draw(layers(net))
    net.last = "x"
    batchnorm(net, channels)
    put_first(net)
    after, applied, reasons = folded("fold-batchnorm", net, shape)
    layer = net.nodes[1]
    if layer.op_type == "Conv" and not padded(layer):
        assert applied and len(after.graph) == 1, reasons
    if layer.op_type == "ConvTranspose":
        assert not applied


@CHECKED
@given(st.data(), st.integers(0, 999))
def test_arithmetic_behind_a_layer_folds(data: st.DataObject, seed: int) -> None:
    net = Net(np.random.default_rng(seed), np.float32)
    shape, _, channels = data.draw(layers(net))
    if net.nodes[0].op_type in ("Gemm", "MatMul"):
        net.dtype = data.draw(st.sampled_from([np.float32, np.float64]))
        net.constants = [
            numpy_helper.from_array(numpy_helper.to_array(c).astype(net.dtype), c.name) for c in net.constants
        ]
    for _ in range(data.draw(st.integers(1, 3))):
        data.draw(arithmetic(net, channels, len(shape)))
    after, applied, reasons = folded("fold-affine", net, shape)
    if net.nodes[0].op_type in ("Conv", "ConvTranspose"):
        assert applied and len(after.graph) == 1, reasons


@CHECKED
@given(st.data(), st.integers(0, 999))
def test_arithmetic_before_a_layer_folds(data: st.DataObject, seed: int) -> None:
    net = Net(np.random.default_rng(seed), np.float32)
    shape, channels, _ = data.draw(layers(net))
    net.last = "x"
    data.draw(arithmetic(net, channels, len(shape)))
    put_first(net)
    after, applied, reasons = folded("fold-affine", net, shape)
    first, layer = net.nodes
    shift = first.op_type in ("Add", "Sub")
    if layer.op_type == "Conv" and not (shift and padded(layer)):
        assert applied and len(after.graph) == 1, reasons


@CHECKED
@given(st.data(), st.integers(0, 999))
def test_a_pad_before_a_window_folds(data: st.DataObject, seed: int) -> None:
    net = Net(np.random.default_rng(seed), np.float32, data.draw(st.sampled_from([10, 13, 18, 19, 22])))
    op_type = data.draw(st.sampled_from(["Conv", "MaxPool", "AveragePool", "LpPool"]))
    spatial = data.draw(st.integers(1, 3))
    window = data.draw(windows(spatial))
    relu = data.draw(st.booleans())
    if relu:
        net.add("Relu", [net.last])
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * spatial, max_size=2 * spatial))
    value = data.draw(st.sampled_from([None, 0.0, -1.0, -np.inf]))
    axes = data.draw(st.booleans())
    full = [0, 0, *pads[:spatial], 0, 0, *pads[spatial:]]
    if net.opset < 11:
        net.add("Pad", [net.last], pads=full, value=value)
    else:
        inputs = [net.last, "amounts", "" if value is None else net.constant(np.array(value))]
        if net.opset >= 18 and axes:
            net.constants.append(numpy_helper.from_array(np.arange(-spatial, 0), "axes"))
            inputs.append("axes")
        net.constants.append(numpy_helper.from_array(np.array(pads if len(inputs) == 4 else full), "amounts"))
        net.add("Pad", inputs)
    inputs = [net.last]
    if op_type == "Conv":
        inputs.append(net.constant(net.random(3, 2, *window["kernel_shape"])))
    else:
        if op_type == "AveragePool":
            window["count_include_pad"] = data.draw(st.sampled_from([None, 0, 1]))
            window["dilations"] = window["dilations"] if net.opset >= 19 else None
        elif op_type == "LpPool":
            window["p"] = data.draw(st.sampled_from([None, 1, 2, 3]))
            window["dilations"] = window["dilations"] if net.opset >= 18 else None
        if op_type != "LpPool" or net.opset >= 18:
            window["ceil_mode"] = data.draw(st.sampled_from([None, 0, 1])) if net.opset >= 10 else None
    net.add(op_type, inputs, **window)
    _, applied, reasons = folded("fold-pad", net, (2, 2, *[6] * spatial))
    if op_type == "Conv" and value in (None, 0.0) and window["auto_pad"] not in ("SAME_UPPER", "SAME_LOWER"):
        assert applied, reasons


def described(name: str, text: str) -> tuple[str, list[str]]:
    """Return the nodes that are left, as text, and the reasons for the rest."""
    (step,) = pipeline.parse(name).passes()
    after, entry, _ = run(step, from_text(text))
    valid(after)
    printed = to_text(after)
    nodes = [line.strip() for line in printed.splitlines() if line.startswith("   ") and " = " in line]
    return "\n".join(n for n in nodes if not n.startswith("<")), [d.reason for d in entry.declined]


BN = """<ir_version: 8, opset_import: ["" : {opset}]>
main (float[1,1,2,2] x) => (float[1,2,2,2] y)
<float[2,1,1,1] w = {{1,2}}, float[2] s = {{2,4}}, float[2] h = {{0,1}}, float[2] m = {{1,0}}, float[2] v = {{1,4}}>
{{
   c = Conv (x, w)
   y = BatchNormalization <{attributes}> (c, s, h, m, v)
}}"""


@pytest.mark.parametrize(
    ("opset", "attributes", "reason"),
    [
        (1, "consumed_inputs = [0, 0, 0, 1, 1], epsilon = 0.0, is_test = 1", None),
        (1, "consumed_inputs = [0, 0, 0, 1, 1]", "y is normalized in training mode"),
        (6, "momentum = 0.5, epsilon = 0.0", "y is normalized in training mode"),
        (6, "is_test = 1, spatial = 0", "y is normalized for each element (spatial is 0)"),
        (7, "epsilon = 0.0, momentum = 0.5, spatial = 1", None),
        (8, "spatial = 0", "y is normalized for each element (spatial is 0)"),
    ],
)
def test_a_batchnorm_of_an_old_opset(opset: int, attributes: str, reason: str | None) -> None:
    nodes, reasons = described("fold-batchnorm", BN.format(opset=opset, attributes=attributes))
    assert reasons == ([reason] if reason else [])
    assert nodes == "y = Conv (x, w, w_bias)" or reason


MUL = """<ir_version: 8, opset_import: ["" : 6]>
main (float[1,1,2,2] x) => (float[1,2,2,2] y)
<float[2,1,1,1] w = {{1,2}}, {constant}>
{{
   c = Conv (x, w)
   y = Mul <{attributes}> (c, k)
}}"""


@pytest.mark.parametrize(
    ("constant", "attributes", "reason"),
    [
        ("float[2] k = {2,3}", "axis = 1, broadcast = 1", None),
        ("float[2] k = {2,3}", "axis = -3, broadcast = 1", None),
        ("float[2,1] k = {2,3}", "axis = 1, broadcast = 1", None),
        ("float k = {2}", "broadcast = 1", None),
        ("float[1,1] k = {2}", "axis = 0, broadcast = 1", None),
        (
            "float[2] k = {2,3}",
            "broadcast = 1",
            "shape [2] is not one number for each of the 2 channels of c",
        ),
        (
            "float[2] k = {2,3}",
            "axis = 2, broadcast = 1",
            "shape [2, 1] is not one number for each of the 2 channels of c",
        ),
    ],
)
def test_arithmetic_of_an_old_opset_says_where_its_operand_lies(
    constant: str, attributes: str, reason: str | None
) -> None:
    nodes, reasons = described("fold-affine", MUL.format(constant=constant, attributes=attributes))
    assert reasons == ([reason] if reason else [])
    assert nodes == "y = Conv (x, w)" or reason


def test_a_pad_of_opset_1_calls_its_amounts_paddings() -> None:
    nodes, reasons = described(
        "fold-pad",
        """<ir_version: 8, opset_import: ["" : 1]>
        main (float[1,1,2,2] x) => (float[1,1,4,3] y) <float[1,1,1,1] w = {2}>
        {
           c = Pad <mode = "constant", paddings = [0, 0, 1, 0, 0, 0, 1, 1], value = 0.0> (x)
           y = Conv (c, w)
        }""",
    )
    assert (nodes, reasons) == ("y = Conv <pads: ints = [1, 0, 1, 1]> (x, w)", [])


def test_bfloat16_is_computed_in_double_and_rounded_once() -> None:
    (step,) = pipeline.parse("fold-affine").passes()
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 22]>
        main (bfloat16[N,1,H,W] x) => (bfloat16[N,2,H,W] y)
        <bfloat16[2,1,1,1] w = {16448,16257}, bfloat16 k = {16299}>
        {
           c = Conv (x, w)
           d = Mul (c, k)
           y = Add (d, k)
        }"""
    )
    w, k = (model.graph.initializers[name].const_value.numpy() for name in "wk")
    after, entry, _ = run(step, model)
    assert len(entry.applied) == 2
    product = (w.astype(np.float64) * float(k)).astype(w.dtype)
    np.testing.assert_array_equal(after.graph.initializers["w"].const_value.numpy(), product)
    np.testing.assert_array_equal(after.graph.initializers["w_bias"].const_value.numpy(), [k, k])


CHAIN = """<ir_version: 10, opset_import: ["" : 20]>
chain (float[N, 2, 6, 6] x) => (float[N, 3, 6, 6] y, float[N, 3, 3, 3] z)
<int64[8] p = {0,0,1,1,0,0,1,1}, float[2, 1, 1] k = {1,2}, float[3, 2, 3, 3] w = {
  1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9},
 float[3] s = {1,2,3}, float[3] h = {0,1,0}, float[3] m = {1,0,1}, float[3] v = {1,4,9}, float half = {0.5}>
{
    a = Mul (x, k)
    b = Pad (a, p)
    c = Conv (b, w)
    n = BatchNormalization (c, s, h, m, v)
    d = Mul (n, half)
    y = Relu (d)
    q = Pad (y, p)
    z = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (q)
}"""


@pytest.mark.parametrize("name", ["fold-batchnorm", "fold-affine", "fold-pad"])
def test_the_folds_conform(name: str) -> None:
    (step,) = pipeline.parse(name).passes()
    second = "n = Mul (c, half)" if name == "fold-affine" else "n = BatchNormalization (c, s, h, m, v)"
    conformance(step, [CHAIN.replace("n = BatchNormalization (c, s, h, m, v)", second)])


def test_the_folds_together_leave_layers_alone() -> None:
    model, number = from_text(CHAIN), 0
    for _ in range(2):
        for name in ("fold-batchnorm", "fold-affine", "fold-pad"):
            (step,) = pipeline.parse(name).passes()
            model, entry, _ = run(step, model)
            number += len(entry.applied)
    same_outputs(from_text(CHAIN), model)
    assert number == 5
    assert [node.op_type for node in model.graph] == ["Conv", "Relu", "MaxPool"]


def test_weights_that_a_fold_adds_raise_ir_version_3_to_4() -> None:
    (step,) = pipeline.parse("fold-affine").passes()
    model = from_text(
        """<ir_version: 3, opset_import: ["" : 9]>
        main (float[1,1,2,2] x) => (float[1,2,2,2] y)
        {
           w = Constant <value = float[2,1,1,1] {1,2}> ()
           k = Constant <value = float[2,1,1] {2,3}> ()
           c = Conv (x, w)
           y = Mul (c, k)
        }"""
    )
    after, _, _ = run(step, model)
    valid(after)
    assert (model.ir_version, after.ir_version, len(after.graph)) == (3, 4, 1)
