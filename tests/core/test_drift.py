"""How far a quantized model is from the float one, in the report and on the command line."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from graphopt_passes.quantize.drift import drifts, told

import graphopt
from graphopt import Drift
from graphopt.cli.optimize import show_report
from graphopt.report import PassEntry, Report, Size
from graphopt.text import from_text

NET = """<ir_version: 10, opset_import: ["" : 21]>
main (float[N,2] x) => (float[N,2] y, float[N,2] b) <float[2,2] w = {1, 2, 3, 4}> {
   a = MatMul (x, w)
   s = Sin (a)
   b = MatMul (s, w)
   y = MatMul (b, w)
}"""
FOUND = [Drift("y", "", 23.61), Drift("b", "b", 20.0, 0.0124), Drift("a", "a", math.inf, 0.0)]


def entry(count: int = 1) -> PassEntry:
    layers = [replace(FOUND[1], value=f"v{i}") for i in range(count)]
    return PassEntry("shrink", "shrink", drift=[FOUND[0], *layers, FOUND[2]], notes=told(FOUND))


def report(count: int = 1) -> Report:
    size = Size(1, 4, {"Sin": 1})
    return Report("m.onnx", "shrink", size, size, [entry(count)])


def test_layers_are_sorted_by_the_noise_that_they_add() -> None:
    """``y`` has more noise than ``b`` and adds less; ``s`` is no layer, and hands on what came in."""
    net = from_text(NET)
    found = {"a": 30.0, "b": 10.0, "y": 9.0}
    got = drifts(net, {"a": "a", "b": "middle", "y": "y"}, found)
    assert [(d.value, d.node, d.sqnr_db) for d in got] == [
        ("y", "", 9.0),
        ("b", "", 10.0),
        ("b", "middle", 10.0),
        ("y", "y", 9.0),
        ("a", "a", 30.0),
    ]
    assert [d.added for d in got[2:]] == pytest.approx([0.1 - 0.001, 10**-0.9 - 0.1, 0.001], rel=1e-12)
    assert told(got) == [
        "output y is 9.0 dB from float",
        "output b is 10.0 dB from float",
        "to lose less, try exclude=[middle,y,a]",
    ]


def test_a_layer_that_adds_nothing_is_not_to_be_excluded() -> None:
    net = from_text(NET)
    got = drifts(net, {"a": "a", "b": "b"}, {"a": 10.0, "b": 20.0})
    assert got[1:] == [Drift("a", "a", 10.0, 0.1), Drift("b", "b", 20.0, 0.0)]
    assert told(got[1:]) == ["to lose less, try exclude=[a]"]


def test_products_that_give_floats_are_layers_too() -> None:
    """The kernels of the MatMuls give floats: what they make has no pair behind it, and is compared as it is."""
    draw = np.random.default_rng(0)
    data = [{"x": draw.normal(size=(4, 2)).astype(np.float32)} for _ in range(4)]
    result = graphopt.optimize(from_text(NET), "insert-qdq", inputs=data[0], calibration=data)
    (found,) = result.report.passes
    assert [(d.value, d.node) for d in found.drift[:2]] == [("y", ""), ("b", "")]
    assert {d.node for d in found.drift[2:]} == {"a", "b", "y"}
    assert all(20 < d.sqnr_db < 60 for d in found.drift)


def test_the_report_has_all_values() -> None:
    text = report(12).markdown()
    assert "Output y is 23.6 dB from float.  \nTo lose less, try exclude=[b].  \n" in text
    assert (
        "| moved | value | SQNR | noise added |\n| --- | --- | --- | --- |\n| graph output | y | 23.6 dB |  |\n"
        "| b | v0 | 20.0 dB | 1.2 % |\n"
    ) in text
    assert "| b | v11 | 20.0 dB | 1.2 % |\n| a | a | equal | 0 % |\n" in text


def test_equal_values_are_null_in_json() -> None:
    (found,) = report().to_json()["passes"]
    assert [each["sqnr_db"] for each in found["drift"]] == [23.61, 20.0, None]
    assert found["drift"][1] == {"value": "v0", "node": "b", "sqnr_db": 20.0, "added": 0.0124}


def test_the_command_line_shows_the_worst_ten(capsys: pytest.CaptureFixture[str]) -> None:
    show_report(report(12))
    out = capsys.readouterr().out
    table = out[out.index("shrink, against") : out.index("\n\nnodes")]
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == "shrink, against what it was given".split()
    assert lines[3] == ["graph", "output", "y", "23.6", "dB"]
    assert [line[1] for line in lines[4:-1]] == [f"v{i}" for i in range(9)]
    assert table.splitlines()[-1] == "… 4 more in the report"
    assert "note     shrink: to lose less, try exclude=[b]\n" in out
