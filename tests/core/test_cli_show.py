"""``graphopt show`` and ``graphopt diff`` as a user sees them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graphopt import save
from graphopt.cli import main
from graphopt.text import from_text

NET = """<ir_version: 10, opset_import: ["" : 20], producer_name: "maker", producer_version: "1.2",
 metadata_props: ["graphopt.pipeline" : "simplify"]>
net (float[N,2,4,4] x) => (float[N,3] y)
<float[2,2,1,1] w = {1,2,3,4}, int64[2] shape = {0, -1}, float[2,3] head = {1,2,3,4,5,6}>
{
    [conv] c = Conv (x, w)
    [act] r = Relu (c)
    [pool] g = GlobalAveragePool (r)
    [flat] f = Reshape (g, shape)
    [out] y = MatMul (f, head)
}"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(from_text(NET), tmp_path / "a.onnx")
    save(from_text(NET.replace("[act] r = Relu (c)", "[act] r = Tanh (c)")), tmp_path / "b.onnx")
    return tmp_path


@pytest.fixture
def graphopt(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["graphopt", *arguments])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        text = "\n".join(line.rstrip() for line in captured.out.splitlines()) + "\n"
        return int(caught.value.code or 0), text, captured.err

    return run


SHOWN = """\
model       a.onnx, IR version 10, opset ai.onnx 20
producer    maker 1.2
input       x  float[N,2,4,4]
output      y  float[N,3]
dynamic     N
nodes       5
parameters  10
MACs        70  with N=1 assumed
weights     56 B  (float 40 B, int64 16 B)
pipeline    simplify

operator            nodes   MACs      %   parameters   bytes
────────────────────────────────────────────────────────────
Conv                    1     64   91.4            4    16 B
MatMul                  1      6    8.6            6    24 B
GlobalAveragePool       1
Relu                    1
Reshape                 1                               16 B

largest weights   type             bytes      %
───────────────────────────────────────────────
head              float[2,3]        24 B   42.9
w                 float[2,2,1,1]    16 B   28.6
shape             int64[2]          16 B   28.6
"""


def test_show(graphopt: Run) -> None:
    assert graphopt("show", "a.onnx") == (0, SHOWN, "")


def test_show_lists_every_node(graphopt: Run) -> None:
    code, out, _ = graphopt("show", "a.onnx", "--nodes", "--dim", "N=1000")
    assert code == 0
    assert "MACs        70 k  (70,000)\n" in out
    assert out.endswith("""
node   operator            MACs   parameters   output   scope
─────────────────────────────────────────────────────────────
conv   Conv                64 k            4   128 kB
act    Relu                                    128 kB
pool   GlobalAveragePool                         8 kB
flat   Reshape                                   8 kB
out    MatMul               6 k            6    12 kB
""")


def test_show_as_json(graphopt: Run, files: Path) -> None:
    code, out, _ = graphopt("show", "a.onnx", "--json", "-")
    assert code == 0
    found = json.loads(out)
    assert found["macs"] == 70
    assert found["assumed"] == {"N": 1}
    assert found["opsets"] == {"ai.onnx": 20}
    assert found["metadata"] == {"graphopt.pipeline": "simplify"}
    assert found["operators"]["Conv"] == {"nodes": 1, "macs": 64, "parameters": 4, "bytes": 16}
    assert found["nodes"][0] == {
        "place": "conv", "op_type": "Conv", "macs": 64, "parameters": 4, "output_bytes": 128, "scope": ""
    }  # fmt: skip
    code, out, _ = graphopt("show", "a.onnx", "--json", "a.json")
    assert (code, out) == (0, SHOWN)
    assert json.loads((files / "a.json").read_text(encoding="utf-8")) == found


def test_show_of_what_cannot_be_counted_says_where(graphopt: Run, files: Path) -> None:
    model = from_text(
        '<ir_version: 10, opset_import: ["" : 20, "my" : 1]>\n'
        "m (float[2,2] x) => (float[2,2] y) { a = my.Op (x) [b] b = MatMul (a, x) y = MatMul (b, x) }"
    )
    save(model, files / "c.onnx")
    _, out, _ = graphopt("show", "c.onnx")
    assert "MACs        0; unknown at 2 nodes: b, y\n" in out
    assert "opset ai.onnx 20, my 1\n" in out


def test_a_picture_of_the_difference(graphopt: Run, files: Path) -> None:
    code, out, _ = graphopt("show", "a.onnx", "b.onnx", "--dot", "d.dot")
    assert (code, out) == (0, DIFFERENCE)
    text = (files / "d.dot").read_text(encoding="utf-8")
    assert 'label="Tanh" tooltip="act" fillcolor="#b7ebc3" color="#1a7f37" penwidth=2.5' in text


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_a_drawing(graphopt: Run, files: Path) -> None:
    assert graphopt("show", "a.onnx", "--svg", "a.svg")[0] == 0
    assert ">Conv</text>" in (files / "a.svg").read_text(encoding="utf-8")


def test_a_drawing_without_graphviz(graphopt: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    code, out, err = graphopt("show", "a.onnx", "--svg", "a.svg")
    assert (code, out.strip(), (files / "a.svg").exists()) == (3, "", False)
    assert err.startswith(
        "graphopt: a.svg: pictures need Graphviz, whose program dot is not on PATH; install it"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.onnx", "--dim", "N"], "graphopt: --dim N: expected NAME=SIZE, as batch=8\n"),
        (["a.onnx", "--dim", "M=2"], "graphopt: dims: no input has a dimension called 'M'; those there are: N\n"),
        (["a.onnx", "--dot", "no/a.dot"],
         "graphopt: no/a.dot: there is no folder 'no'; make it first\n"),
    ],
)  # fmt: skip
def test_what_makes_no_sense(graphopt: Run, arguments: list[str], message: str) -> None:
    assert graphopt("show", *arguments) == (2, "\n", message)


DIFFERENCE = """\
nodes: 4 kept, 1 removed, 1 added, 0 changed

operators
  Relu     1 → 0    -1
  Tanh     0 → 1    +1

(top level)
  - Relu act: went into Tanh act
  + Tanh act: made of Relu act
"""


def test_diff_of_two(graphopt: Run) -> None:
    assert graphopt("diff", "a.onnx", "b.onnx") == (1, DIFFERENCE, "")


def test_diff_of_the_same(graphopt: Run) -> None:
    assert graphopt("diff", "a.onnx", "a.onnx") == (0, "nodes: 5 kept, 0 removed, 0 added, 0 changed\n", "")


def test_diff_as_json(graphopt: Run) -> None:
    code, out, _ = graphopt("diff", "a.onnx", "b.onnx", "--json", "-")
    assert code == 1
    assert json.loads(out) == {
        "same": False,
        "kept": 4,
        "removed": [
            {
                "kind": "removed",
                "place": "act",
                "op_type": "Relu",
                "scope": "",
                "details": ["went into Tanh act"],
            }
        ],
        "added": [
            {"kind": "added", "place": "act", "op_type": "Tanh", "scope": "", "details": ["made of Relu act"]}
        ],
        "changed": [],
        "operators": {"Relu": [1, 0], "Tanh": [0, 1]},
        "weights": [],
        "weight_bytes": [56, 56],
        "interface": [],
    }


def test_show_stays_light(files: Path) -> None:
    program = (
        "import sys; sys.argv = ['graphopt', 'show', 'a.onnx']\n"
        "from graphopt.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'networkx', 'onnxscript', 'scipy'} & sys.modules.keys()\n"
        "sys.exit(','.join(heavy) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=files, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_long_metadata_and_many_dimensions_stay_on_one_line(graphopt: Run, files: Path) -> None:
    dims = ",".join(f"a_long_name_{i}" for i in range(4))
    model = from_text(
        f'<ir_version: 10, opset_import: ["" : 20]>\nm (float[{dims}] x) => (float[?] y) {{ y = Abs (x) }}'
    )
    model.metadata_props["words"] = "one\ntwo\n" * 100
    save(model, files / "c.onnx")
    _, out, _ = graphopt("show", "c.onnx")
    assert "\nMACs        0  with 4 open dimensions = 1 assumed\n" in out
    assert f"\nwords       {('one two ' * 13)[:100]}… (800 characters)\n" in out
