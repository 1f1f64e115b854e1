"""What a run lost, all passes together: outputs against the original's, and the user's metric before and after."""

from __future__ import annotations

import io
import json
import math
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.cli.optimize import show_report
from graphopt.loss import Judge, OutputLoss, Run, metric_of
from graphopt.plugins import get_backend

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
net (float[N,2] x) => (float[N,2] y, int64[1] n) {
   y = MatMul (x, w)
   n = Shape <end = 1> (x)
}"""
KEEP_LARGE = "prune-weights{sparsity=0.5}"
"""Of the four weights, the two largest stay."""


def net(*weights: float) -> ir.Model:
    w = ir.tensor(np.array(weights, np.float32).reshape(2, 2), name="w")
    return ir.from_onnx_text(TEXT, initializers=[w])


def feeds(*rows: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"x": np.array([row], np.float32)} for row in rows]


def largest(run: Run) -> float:
    return float(run({"x": np.ones((1, 2), np.float32)})["y"].max())


def lost(data: list[dict[str, np.ndarray]], **options: Any) -> graphopt.Result:
    return graphopt.optimize(net(4, 1, 0.5, 2), KEEP_LARGE, inputs=data, **options)


def test_outputs_are_compared_row_by_row() -> None:
    """(x0, x1) gives (4 x0 + x1 / 2, x0 + 2 x1), and (4 x0, 2 x1) without the small weights."""
    loss = lost([{"x": np.array([[1, 0], [0, 1]], np.float32)}, *feeds([0, 0], [0.4, 1.0])]).report.loss
    found, count = loss.outputs
    assert count == OutputLoss("n", math.inf, 1.0, 1.0, None)
    assert (found.output, loss.samples, loss.score) == ("y", "on 3 given samples", None)
    wanted = np.array([[4, 1], [0.5, 2], [0, 0], [2.1, 2.4]])
    got = np.array([[4, 0], [0, 2], [0, 0], [1.6, 2.0]])
    cosines = [4 / math.sqrt(17), 2 / math.sqrt(4.25), 1.0, (wanted[3] @ got[3]) / math.sqrt(10.17 * 6.56)]
    assert found.cosine == pytest.approx(np.mean(cosines), rel=1e-6)
    assert found.least_cosine == pytest.approx(min(cosines), rel=1e-6)
    assert found.sqnr_db == pytest.approx(
        10 * math.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()), 1e-6
    )
    assert found.top1 == 1.0


def test_top1_is_the_share_of_rows_with_the_same_largest_element() -> None:
    """Of (x0 + 0.9 x1, 0.5 x0 + x1) the diagonal is left: x1 is larger than x0, but not than five times as large."""
    flips = feeds([0.4, 1.2], [1, 1.6], [1, 8], [1, -0.1])
    assert lost(flips).report.loss.outputs[0].top1 == 1.0
    found = graphopt.optimize(net(1, 0.5, 0.9, 1), KEEP_LARGE, inputs=flips).report.loss.outputs[0]
    assert found.top1 == 0.5


def test_calibration_data_are_second_best_and_drawn_inputs_no_good() -> None:
    model, data = net(4, 1, 0.5, 2), feeds(*[[1.0, i] for i in range(70)])
    report = graphopt.optimize(model, KEEP_LARGE, calibration=data).report
    assert report.loss.samples == "on 64 calibration samples"
    assert graphopt.optimize(model, KEEP_LARGE).report.loss.outputs == []
    lists = graphopt.optimize(model, KEEP_LARGE, calibration=[{"x": [[1.0, 0.0]]}]).report.loss
    assert lists.outputs[0].sqnr_db == pytest.approx(10 * math.log10(17))
    wrong = graphopt.optimize(model, KEEP_LARGE, calibration=[{"y": [[1.0, 0.0]]}]).report
    assert wrong.remarks == [
        "what was lost was not measured: input 'y': the model has none of this name; there are: x"
    ]


def test_nothing_is_measured_where_nothing_was_lost_or_nothing_is_run() -> None:
    data = feeds([1, 2])
    assert graphopt.optimize(net(4, 1, 0.5, 2), "simplify", inputs=data).report.loss.outputs == []
    assert lost(data, verify=False).report.loss.outputs == []


def test_the_metric_is_asked_before_and_after() -> None:
    report = lost(feeds([1, 2]), metric=largest).report
    assert report.loss.score is not None
    assert (report.loss.score.before, report.loss.score.after) == (4.5, 4.0)
    assert report.loss.text() == ["largest: 4.5 before, 4 after"]
    assert report.to_json()["loss"]["score"] == {"metric": "largest", "before": 4.5, "after": 4.0}
    unproved = lost(feeds([1, 2]), metric=largest, verify=False).report.loss
    assert unproved.text() == ["largest: 4.5 before, 4 after"]
    assert unproved.outputs == []


def test_reports_show_both(tmp_path: Path) -> None:
    report = lost(feeds([1, 0]), metric=largest).report
    report.save(tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert (
        "## What was lost, on 1 given sample\n\n"
        "| output | SQNR | mean cosine | least cosine | same top-1 |\n| --- | --- | --- | --- | --- |\n"
        "| y | 12.3 dB | 0.9701 | 0.9701 | 100.0 % |\n| n | equal | 1.0000 | 1.0000 |  |\n"
        "\nMetric largest: 4.5 before, 4 after.\n"
    ) in page
    data = json.loads((tmp_path / "report.json").read_text())["loss"]
    assert data["outputs"][0]["sqnr_db"] == pytest.approx(10 * math.log10(17))
    with redirect_stdout(io.StringIO()) as out:
        show_report(report)
    assert "the result against the original, on 1 given sample" in out.getvalue()
    assert "metric   largest: 4.5 before, 4 after\n" in out.getvalue()


def test_equal_outputs_are_null_in_json() -> None:
    report = lost(feeds([1, 0])).report
    judge = Judge(net(4, 0, 0, 2), get_backend("onnxruntime:cpu"), inputs=feeds([1, 2]))
    report.loss = judge.loss(net(4, 0, 0, 2), lossy=True)
    assert report.loss.outputs[0] == OutputLoss("y", math.inf, 1.0, 1.0, 1.0)
    assert report.to_json()["loss"]["outputs"][0]["sqnr_db"] is None
    assert next(report.loss.rows()) == ("y", "equal", "1.0000", "1.0000", "100.0 %")


def test_outputs_of_another_shape_and_of_strange_numbers_are_told_apart() -> None:
    judge = Judge(net(1, 0, 0, 1), get_backend("onnxruntime:cpu"), inputs=feeds([1, 2], [np.inf, 2]))
    shorter = ir.from_onnx_text(TEXT.replace("float[N,2] y", "float[N,1] y"))
    shorter.graph.register_initializer(
        ir.Value(name="w", const_value=ir.tensor(np.ones((2, 1), np.float32), name="w"))
    )
    assert [each.output for each in judge.loss(shorter, lossy=True).outputs] == ["n"]
    found = judge.loss(net(2, 0, 0, 2), lossy=True).outputs[0]
    assert found.sqnr_db == pytest.approx(0.0)  # (1, 2) became (2, 4); what is not finite counts for nothing
    assert found.cosine == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("judging", "judging: it is not written like package.module:function; name {wanted}"),
        (
            "nowhere:f",
            "nowhere:f: cannot import nowhere: ModuleNotFoundError: No module named 'nowhere'; "
            "run where it can be imported from",
        ),
        (
            "judging:acuracy",
            "judging:acuracy: module 'judging' has no attribute 'acuracy'; did you mean 'accuracy'?",
        ),
        ("judging:number", "judging:number: no callable, got 3; name {wanted}"),
        ("judging:failing", "metric judging:failing: it raised KeyError: 'labels'"),
        ("judging:words", "metric judging:words: it returned 'good'; return a number"),
        (
            "judging:wrong",
            "onnxruntime refuses the inputs: Required inputs (['x']) are missing from input feed (['y'])",
        ),
    ],
)
def test_a_metric_that_cannot_judge_is_told_before_anything_else_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "judging.py").write_text(
        "def accuracy(run): return 1\ndef failing(run): raise KeyError('labels')\nnumber = 3\n"
        "def words(run): return 'good'\ndef wrong(run): return run({'y': [1]})\n"
    )
    monkeypatch.chdir(tmp_path)  # the current directory is importable
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "judging", raising=False)
    ran: list[str] = []
    wanted = "a function that is given one to run the model, and returns a number"
    with pytest.raises(graphopt.GraphoptError) as caught:
        lost(feeds([1, 2]), metric=name, progress=lambda what, done, total: ran.append(what))
    assert str(caught.value) == message.format(wanted=wanted)
    assert "running the original" not in ran


def test_a_metric_that_fails_on_the_result_costs_nothing_else() -> None:
    calls: list[int] = []

    def fickle(run: Run) -> float:
        calls.append(len(calls))
        return 1.0 if len(calls) == 1 else float("no number")

    result = lost(feeds([1, 2]), metric=fickle)
    name = fickle.__qualname__
    assert result.report.remarks == [
        f"what was lost was not measured: metric {name}: it raised ValueError: could not convert string to "
        "float: 'no number'"
    ]
    assert result.model.graph.initializers["w"].const_value.numpy().tolist() == [[4, 0], [0, 2]]


def test_a_function_is_called_by_its_name() -> None:
    assert metric_of(largest) == ("largest", largest)
