from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import graphopt
from graphopt import measuring, plugins
from graphopt.cli import main
from graphopt.racing import Timing
from graphopt.text import from_text

MODEL = '<ir_version: 10, opset_import: ["": 20]> m (float[2] x) => (float[2] y) { y = Neg (x) }'


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graphopt.save(from_text(MODEL), "m.onnx")
    return "m.onnx"


@pytest.fixture
def figures(monkeypatch):
    """Answers in place of a clock, and the arguments that were asked with."""
    asked = []

    def measure(sources, feeds, **options):
        asked.append((sources, feeds, options))
        timings = (
            Timing("m.onnx", 2.0, 0.01, 1.0, 1.0, 1.0, ""),
            Timing("n.onnx", 1.0, 0.02, 0.5, 0.49, 0.51, "faster"),
        )
        return measuring.Measurement(timings, "lab", {"version": "1"}, {"x": "float32[2]"}, 40, 3.0)

    def profile(sources, feeds, **options):
        return {
            "m.onnx": [measuring.NodeShare(f"n{i}", "Neg", "a.b", "Lab", 20.0 - i, 0.05) for i in range(20)]
        }

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(measuring, "profile", profile)
    return asked


def run(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["graphopt", *arguments])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_table(figures, monkeypatch, capsys):
    code = run(
        "bench",
        "m.onnx",
        "n.onnx",
        "--target",
        "lab",
        "--threads",
        "2",
        "--seconds",
        "3",
        monkeypatch=monkeypatch,
    )
    assert code == 0
    out = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert out == [
        "model    median ms   spread   ratio   95 % interval   verdict",
        "─" * len(out[1]),
        "m.onnx       2.000    1.0 %",
        "n.onnx       1.000    2.0 %   0.500   0.490 … 0.510   faster",
        "",
        "lab (version 1); 40 rounds in 3.0 s on x float32[2]",
    ]
    ((sources, feeds, options),) = figures
    assert (sources, feeds) == (["m.onnx", "n.onnx"], None)
    del options["progress"]
    assert options == {"seconds": 3.0, "target": "lab", "threads": 2, "seed": 0}


def test_per_node(figures, monkeypatch, capsys):
    assert run("bench", "m.onnx", "--per-node", monkeypatch=monkeypatch) == 0
    out = [line.rstrip() for line in capsys.readouterr().out.splitlines()][7:]
    assert out[:4] == [
        "m.onnx",
        "    ms   share   operator   node   from",
        "─" * len(out[2]),
        "20.000   5.0 %   Neg        n0     a.b",
    ]
    assert out[-2:] == [" 6.000   5.0 %   Neg        n14    a.b", "and 5 more nodes that take 15.000 ms"]


def test_json(figures, monkeypatch, capsys):
    assert run("bench", "m.onnx", "--per-node", "--json", "-", monkeypatch=monkeypatch) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["timings"][1]["ratio"] == 0.5
    assert data["nodes"]["m.onnx"][0] == {
        "node": "n0",
        "op_type": "Neg",
        "scope": "a.b",
        "provider": "Lab",
        "milliseconds": 20.0,
        "share": 0.05,
    }


def test_on_the_processor(model, monkeypatch, capsys):
    arguments = ("--seconds", "0.2", "--threads", "1", "--per-node", "--json", "out.json")
    assert run("bench", model, model, *arguments, monkeypatch=monkeypatch) == 0
    data = json.loads(Path("out.json").read_text(encoding="utf-8"))
    assert [t["name"] for t in data["timings"]] == ["m.onnx", "m.onnx #2"]
    assert [(n["node"], n["op_type"]) for n in data["nodes"]["m.onnx"]] == [("y", "Neg")]
    assert data["inputs"] == {"x": "float32[2]"}
    assert "onnxruntime:cpu (onnxruntime " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--target", "lab:away"],
            3,
            "graphopt: lab:away: onnxruntime {version} is built without AwayExecutionProvider; "
            "`graphopt backends` lists what can be used\n",
        ),
        (["--target", "lab:awry"], 2, "graphopt: no target is called 'lab:awry'; did you mean 'lab:away'?\n"),
        (["--seconds", "-1"], 2, "graphopt: the time to measure for must be positive, got -1.0 seconds\n"),
    ],
)
def test_what_cannot_be_done(model, arguments, code, message, monkeypatch, capsys):
    import onnxruntime

    away = graphopt.OnnxRuntime("lab:away", ["AwayExecutionProvider"])
    plugin = SimpleNamespace(register_backends=graphopt.hookimpl(lambda: [away]))
    plugins.register(plugin, "lab")
    try:
        assert run("bench", model, *arguments, monkeypatch=monkeypatch) == code
    finally:
        plugins.unregister("lab")
    assert capsys.readouterr() == ("", message.replace("{version}", onnxruntime.__version__))
