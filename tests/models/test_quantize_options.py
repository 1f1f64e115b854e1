"""Every option of the passes that quantize, on real models: what it means in the graph, and how near float it stays.

Weights leave a bit unused throughout, so that the numbers are the same on processors whose sums saturate. Each result
is proved (``strict``); a floor lies 0.1 dB under what was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import data
import numpy as np
import onnx_ir as ir
import pytest
import zoo
from conftest import need

import graphopt
from graphopt import Result, all_nodes

BEGINNING = 'include=["_conv_stem.*","_blocks.[0-4].*"],reduce_range=true'
"""Of EfficientNet-Lite0, whose first 15 convolutions take little time."""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spend no time on measuring the speed, of which nothing is asked here."""
    monkeypatch.setattr("graphopt_passes.speed.SECONDS", 0.1)


@pytest.fixture(scope="module")
def efficientnet() -> Callable[..., Result]:
    """Return a function that runs a pass on EfficientNet-Lite0, calibrated on four crops."""
    need("efficientnet-lite0")
    model = graphopt.optimize(zoo.onnx_path("efficientnet-lite0"), "speed", verify=False).model
    crops, tests = data.calibration("efficientnet-lite0")[:4], data.test("efficientnet-lite0")[:2]
    return lambda text, **settings: graphopt.optimize(
        model, text, inputs=tests, calibration=crops, strict=True, **settings
    )


@pytest.fixture(scope="module")
def minilm() -> Callable[..., Result]:
    """Return a function that runs a pass on MiniLM, without calibration data, tested on eight sentences."""
    need("minilm")
    model = graphopt.optimize(zoo.onnx_path("minilm"), "simplify", verify=False).model
    tests = [
        {name: array[i : i + 1, : feeds["attention_mask"][i].sum()] for name, array in feeds.items()}
        for feeds in data.test("minilm")[:2]
        for i in range(len(feeds["input_ids"]))
    ]
    return lambda text: graphopt.optimize(model, text, inputs=tests, strict=True)


def sqnr(result: Result) -> float:
    """Return how far the first output is from float, on the inputs that the result was proved on."""
    against = [check.against for check in result.report.checks if check.ok]
    assert any(each.endswith("without the loss") or each.startswith("reference") for each in against)
    return graphopt.compare(result.original, result.model, result.samples).outputs[0].sqnr_db


def array(value: ir.Value | None) -> Any:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


class Pairs:
    """What lies around a quantized model's nodes."""

    def __init__(self, model: ir.Model) -> None:
        self.quantize = [node for node in model.graph if node.op_type == "QuantizeLinear"]
        self.weights = [
            node
            for node in model.graph
            if node.op_type == "DequantizeLinear"
            and node.inputs[0] is not None
            and node.inputs[0].const_value
        ]
        self.kernels = [node for node in self.weights if len(array(node.inputs[0]).shape) > 1]
        self.readers = Counter(
            use.node.op_type
            for node in model.graph
            if node.op_type == "DequantizeLinear"
            for use in node.outputs[0].uses()
        )

    @property
    def activations(self) -> set[str]:
        """The types of activations."""
        return {array(node.inputs[2]).dtype.name for node in self.quantize}

    @property
    def zero_points(self) -> set[int]:
        return {int(array(node.inputs[2])) for node in self.quantize}

    @property
    def largest(self) -> int:
        """The largest integer of a weight."""
        return max(int(np.abs(array(node.inputs[0]).astype(np.int64)).max()) for node in self.kernels)


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "activations", "floor"),
    [
        ("activations=uint8", "uint8", 27.1),
        ("activations=int8", "int8", 27.1),
        ("activations=uint16", "uint16", 29.4),
        ("activations=int16", "int16", 29.4),
    ],
)
def test_activations_are_of_the_type(efficientnet: Any, options: str, activations: str, floor: float) -> None:
    result = efficientnet(f"insert-qdq{{{options},{BEGINNING}}}")
    pairs = Pairs(result.model)
    assert pairs.activations == {activations} and len(pairs.kernels) == 15
    assert sqnr(result) > floor


def test_weights_have_four_bits(efficientnet: Any) -> None:
    result = efficientnet('insert-qdq{weights=int4,reduce_range=false,include=["_blocks.0.*"]}')
    pairs = Pairs(result.model)
    assert {node.inputs[0].dtype for node in pairs.kernels} == {ir.DataType.INT4} and pairs.largest == 7
    assert sqnr(result) > 15.6


@pytest.mark.parametrize(("per_channel", "ranks", "floor"), [("true", {1}, 18.1), ("false", {0}, 0.0)])
def test_scales_are_for_channels_or_for_all(
    efficientnet: Any, per_channel: str, ranks: set[int], floor: float
) -> None:
    result = efficientnet(f"insert-qdq{{per_channel={per_channel},rounding=nearest,{BEGINNING}}}")
    assert {array(node.inputs[1]).ndim for node in Pairs(result.model).kernels} == ranks
    assert sqnr(result) > floor


def test_symmetric_activations_have_their_zero_in_the_middle(efficientnet: Any) -> None:
    result = efficientnet(f"insert-qdq{{symmetric=true,{BEGINNING}}}")
    assert Pairs(result.model).zero_points == {128}
    assert sqnr(result) > 24.6


@pytest.mark.parametrize(
    ("calibrator", "floor"),
    [
        ("minmax", 26.6),
        ("moving-average", 27.2),
        ("percentile", 27.1),
        ("entropy", 26.1),
        ("mse", 27.1),
        ("sqnr", 27.2),
    ],
)
def test_each_calibrator_finds_ranges(efficientnet: Any, calibrator: str, floor: float) -> None:
    result = efficientnet(f"insert-qdq{{calibrator={calibrator},{BEGINNING}}}")
    assert len(Pairs(result.model).kernels) == 15
    assert sqnr(result) > floor


@pytest.mark.parametrize(("reduce_range", "largest"), [("true", 63), ("false", 127)])
def test_weights_leave_a_bit_unused(efficientnet: Any, reduce_range: str, largest: int) -> None:
    options = f'reduce_range={reduce_range},rounding=nearest,include=["_blocks.0.*"]'
    verify = reduce_range == "true"  # else the proof finds the sums that saturate where the processor's do
    assert Pairs(efficientnet(f"insert-qdq{{{options}}}", verify=verify).model).largest == largest


def test_operators_choose(efficientnet: Any) -> None:
    result = efficientnet(f"insert-qdq{{operators=[Conv],{BEGINNING}}}")
    assert Pairs(result.model).readers.keys() == {"Conv", "Add"}
    gemm = efficientnet("insert-qdq{operators=[Gemm],reduce_range=true}")
    assert Pairs(gemm.model).readers == {"Gemm": 3}
    assert sqnr(gemm) > 35.0


def test_patterns_leave_out(efficientnet: Any) -> None:
    options = 'exclude=["_blocks.1[0-9].*","_blocks.[5-9].*",_conv_head.weight,Gemm,Add],rounding=nearest'
    result = efficientnet(f"insert-qdq{{{options},reduce_range=true}}")
    assert len(Pairs(result.model).kernels) == 15
    reasons = Counter(declined.reason for declined in result.report.passes[0].declined)
    assert reasons == {"it is excluded": 37}


@pytest.mark.parametrize(
    ("rounding", "floor"), [("nearest", 15.3), pytest.param("feedback", 21.4, marks=pytest.mark.slow)]
)
def test_the_whole_network_by_its_other_name(efficientnet: Any, rounding: str, floor: float) -> None:
    result = efficientnet(f"quantize-static{{rounding={rounding},reduce_range=true}}")
    assert len(Pairs(result.model).kernels) == 50
    assert sqnr(result) > floor


# --- at run time ------------------------------------------------------------------------------------------------------


def kinds(result: Result) -> Counter[str]:
    """Return how many products of integers there are."""
    return Counter(node.op_type for node in all_nodes(result.model) if node.domain == "com.microsoft")


@pytest.mark.parametrize(
    ("options", "made", "floor"),
    [
        ("reduce_range=true", {"MatMulIntegerToFloat": 18, "DynamicQuantizeMatMul": 18}, 16.2),
        ("weights=uint8", {"MatMulIntegerToFloat": 18, "DynamicQuantizeMatMul": 18}, 17.1),
        (
            "per_channel=false,reduce_range=true",
            {"MatMulIntegerToFloat": 18, "DynamicQuantizeMatMul": 10},
            17.7,
        ),
        (
            'include=["encoder.layer.0.*"],reduce_range=true',
            {"MatMulIntegerToFloat": 3, "DynamicQuantizeMatMul": 3},
            22.3,
        ),
        (
            'exclude=["encoder.layer.*.attention.*"],reduce_range=true,operators=[MatMul]',
            {"DynamicQuantizeMatMul": 12},
            17.0,
        ),
        ("at_least=200000,reduce_range=true", {"DynamicQuantizeMatMul": 12}, 17.0),
    ],
)
def test_minilm_multiplies_integers_made_at_run_time(
    minilm: Any, options: str, made: dict[str, int], floor: float
) -> None:
    result = minilm(f"quantize-dynamic{{measured=false,{options}}}")
    assert kinds(result) == made
    assert sqnr(result) > floor


def test_convolutions_stay_in_floats(efficientnet: Any) -> None:
    result = efficientnet("quantize-dynamic{exclude=[Gemm]}")
    assert Counter(declined.reason for declined in result.report.passes[0].declined) == {
        "onnxruntime's ConvInteger is many times slower than Conv on processors; quantize-static is for it": 49,
        "it is excluded": 1,
    }
    asked = efficientnet(
        'quantize-dynamic{operators=[Conv],include=["_blocks.0.*"],at_least=1,measured=false}'
    )
    assert Counter(node.op_type for node in asked.model.graph)["ConvInteger"] == 2
    assert sqnr(asked) > 32.9


# --- weights alone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "bits", "floor"),
    [
        ("method=rtn", {4: 36}, 11.9),
        ("method=hqq", {4: 36}, 12.6),
        ("symmetric=false", {4: 36}, 13.6),
        ("block_size=128", {4: 36}, 11.3),
        ("activations=int8", {4: 36}, 12.6),
        ("bits=8,block_size=64", {8: 36}, 35.1),
        ("bits=1,at_least=500000", {2: 12}, -2.0),
        ('include=["encoder.layer.0.*"]', {4: 6}, 22.8),
        ('exclude=["encoder.layer.[1-5].*"],bits=2', {2: 6}, 10.8),
    ],
)
def test_minilm_keeps_its_matrices_in_few_bits(
    minilm: Any, options: str, bits: dict[int, int], floor: float
) -> None:
    text = options if options.startswith(("exclude", "include")) else f"{options},exclude=[Gather]"
    text = text.replace('"]', '",Gather]') if text.startswith("exclude") else text
    result = minilm(f"quantize-weights{{{text}}}")
    nodes = [node for node in all_nodes(result.model) if node.op_type == "MatMulNBits"]
    assert Counter(node.attributes["bits"].as_int() for node in nodes) == bits
    levels = {
        node.attributes["accuracy_level"].as_int() for node in nodes if "accuracy_level" in node.attributes
    }
    assert levels == ({4} if "activations=int8" in options or 4 not in bits else set())
    assert sqnr(result) > floor
