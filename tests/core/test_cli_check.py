"""``graphopt check``: figures of each output, a verdict, and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from graphopt import InputError
from graphopt.cli.app import app

MODEL = """<ir_version: 10, opset_import: ["" : 20]>
g (float[N, 2] x) => (float[N, 2] scaled, float[N, 2] shifted) <float c = {%s}> {
    scaled = Mul (x, c)
    shifted = Add (x, x)
}"""


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for path, factor in zip(paths, ("2.0", "2.5"), strict=True):
        onnx.save(onnx.parser.parse_model(MODEL % factor), path)
    return str(paths[0]), str(paths[1])


def check(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_equal_models_exit_with_0(models: tuple[str, str]) -> None:
    code, text = check(models[0], models[0])
    assert code == 0
    assert [line.split() for line in text.splitlines() if not line.startswith("─")] == [
        "output largest error relative SQNR dB cosine equal".split(),
        "scaled 0 0 inf 1.000000000 yes".split(),
        "shifted 0 0 inf 1.000000000 yes".split(),
        [],
        "2 outputs equal bit for bit, on 2 sample inputs".split(),
    ]


def test_different_models_exit_with_1_and_name_the_element(models: tuple[str, str], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([[1, -4]], np.float32))
    code, text = check(*models, "--inputs", str(tmp_path / "x.npz"))
    assert code == 1
    assert text.splitlines()[-1] == (
        "output 'scaled' at [0, 1]: -8 became -10, 0.25 of its largest element (rounding does at most 5e-05); "
        "1 of 2 outputs differ"
    )


def test_rtol_takes_the_place_of_rounding(models: tuple[str, str]) -> None:
    assert check(*models, "--rtol", "0.2")[0] == 1
    assert check(*models, "--rtol", "0.3")[0] == 0


def test_json_has_the_figures(models: tuple[str, str], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([[1, -4]], np.float32))
    code, text = check(*models, "--inputs", str(tmp_path / "x.npz"), "--json", "-")
    found = json.loads(text)
    assert code == 1
    assert (found["ok"], found["feeds"], found["problem"]) == (False, 1, None)
    assert [(o["name"], o["ok"], o["max_abs"], o["max_rel"]) for o in found["outputs"]] == [
        ("scaled", False, 2.0, 0.25),
        ("shifted", True, 0.0, 0.0),
    ]
    assert found["outputs"][0]["worst"] == {"index": [0, 1], "a": -8.0, "b": -10.0, "feed": 0}
    file = tmp_path / "found.json"
    check(*models, "--inputs", str(tmp_path / "x.npz"), "--json", str(file))
    assert json.loads(file.read_text()) == found


def test_a_wrong_input_file_is_named(models: tuple[str, str], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", z=np.ones((1, 2), np.float32))
    with pytest.raises(InputError) as error:
        check(*models, "--inputs", str(tmp_path / "x.npz"))
    assert str(error.value) == "input 'z': the model has none of this name; there are: x"
