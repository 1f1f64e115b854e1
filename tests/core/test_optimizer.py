"""The driver: proof, blame, rollback, numbering, dumps."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt import Context, Effect, Pass, PassReport, Rewrite, Tape
from graphopt.errors import VerificationError
from graphopt.text import from_text, to_text


def chain(length: int) -> ir.Model:
    """Return x -> Neg -> Neg … -> y, with a Relu between any two so that no pass merges them."""
    lines = [f"n{i} = Neg ({'x' if i == 0 else f'r{i - 1}'}) r{i} = Abs (n{i})" for i in range(length)]
    return from_text(
        '<ir_version: 10, opset_import: ["" : 20]>\nmain (float[2, 3] x) => (float[2, 3] y) {\n'
        + "\n".join(lines)
        + f"\ny = Identity (r{length - 1})\n}}"
    )


class NegAsMul(Rewrite):
    """Replace ``-x`` by ``x * -1``; every seventh time, by ``x * -1.5``."""

    anchor = "Neg"

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value:
        name = node.outputs[0].name or ""
        wrong = (int(name[1:]) + 1) % 7 == 0
        return tape.op(
            "Mul", [node.inputs[0], tape.constant(np.float32(-1.5 if wrong else -1.0), f"{name}_factor")]
        )


class Raises(Pass):
    """Edit the graph, then raise."""

    def run(self, model: ir.Model, context: Context) -> PassReport:
        for node in list(model.graph):
            node.op_type = "Sin"
        raise KeyError("no luck")


class Breaks(Pass):
    """Leave a graph that reads a value nobody makes."""

    def run(self, model: ir.Model, context: Context) -> PassReport:
        report = PassReport()
        node = model.graph[0]
        if context.admit(report, node):
            node.replace_input_with(0, ir.Value(name="nowhere", type=ir.TensorType(ir.DataType.FLOAT)))
        return report


class Halve(Pass):
    """Halve what every Abs gives; the reference is told rightly, or not."""

    effect: ClassVar[Effect] = Effect.LOSSY
    honest: bool = True

    def run(self, model: ir.Model, context: Context) -> PassReport:
        from graphopt.model import clone

        report, original = PassReport(), clone(model)
        for node in list(model.graph):
            if node.op_type == "Abs" and context.admit(report, node):
                node.op_type = "Ceil"
        report.reference = clone(model) if self.honest else original
        return report


class Round(Pass):
    """Round behind every Abs, which can be taken out again: rightly, or with the Abs."""

    effect: ClassVar[Effect] = Effect.LOSSY
    honest: bool = True

    def run(self, model: ir.Model, context: Context) -> PassReport:
        from graphopt.model import clone

        report, restored = PassReport(), clone(model)
        for node in list(model.graph):
            if node.op_type == "Abs" and context.admit(report, node):
                node.op_type = "Ceil"
        if not self.honest:
            [node for node in restored.graph if node.op_type == "Abs"][-1].op_type = "Floor"
        report.restored = restored
        return report


def optimize(model: ir.Model, steps: Any, folder: Path, **options: Any) -> graphopt.Result:
    return graphopt.optimize(model, steps, reproducers=folder / "reproducers", **options)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("length", [7, 13, 20])
def test_a_wrong_rewrite_is_blamed_and_left_out(length: int, tmp_path: Path) -> None:
    result = optimize(chain(length), [NegAsMul()], tmp_path)
    wrong = list(range(7, length + 1, 7))
    assert [(b.pass_name, b.number, b.where) for b in result.report.blamed] == [
        ("neg-as-mul", number, f"n{number - 1}") for number in wrong
    ]
    assert all(blame.checks <= math.ceil(math.log2(length)) + 1 for blame in result.report.blamed)
    assert result.report.verified
    left = [node.outputs[0].name for node in result.model.graph if node.op_type == "Neg"]
    assert left == [f"n{number - 1}" for number in wrong]
    assert len(result.report.passes[0].applied) == length - len(wrong)
    assert result.report.remarks == []


def test_the_reproducer_replays_with_one_command(tmp_path: Path) -> None:
    result = optimize(chain(9), [NegAsMul()], tmp_path)
    folder = Path(result.report.blamed[0].reproducer or "")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "after.onnx",
        "before.onnx",
        "check.sh",
        "inputs.npz",
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shown = subprocess.run(
        ["sh", str(folder / "check.sh")], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert shown.returncode == 1, shown.stderr
    before, after = (graphopt.load(folder / f"{name}.onnx") for name in ("before", "after"))
    assert sum(n.op_type == "Mul" for n in after.graph) - sum(n.op_type == "Mul" for n in before.graph) == 1


def test_strict_makes_a_wrong_rewrite_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        graphopt.VerificationError, match="neg-as-mul: rewrite 7, at n6, changed what the model"
    ):
        optimize(chain(9), [NegAsMul()], tmp_path, strict=True)


def test_without_verification_nothing_is_blamed(tmp_path: Path) -> None:
    result = optimize(chain(9), [NegAsMul()], tmp_path, verify=False)
    assert result.report.blamed == []
    assert not result.report.verified
    assert len(result.report.passes[0].applied) == 9


def test_a_pass_with_many_wrong_rewrites_is_left_out_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphopt.optimizer.MAX_BLAMED", 2)
    result = optimize(chain(22), [NegAsMul()], tmp_path)
    assert [blame.number for blame in result.report.blamed] == [7, 14]
    assert "neg-as-mul was left out as a whole: 2 of its rewrites changed" in result.report.remarks[-1]
    assert result.report.verified
    assert result.report.passes[0].applied == []


def test_a_pass_that_raises_is_rolled_back_and_named(tmp_path: Path) -> None:
    model = chain(3)
    result = optimize(model, ["eliminate-no-ops", Raises(), "fold-constants"], tmp_path)
    assert operators(result.model) == ["Neg", "Abs"] * 3
    assert result.report.passes[1].rolled_back == "KeyError: 'no luck'"
    assert result.report.remarks == ["raises raised and was rolled back: KeyError: 'no luck'"]
    assert result.report.verified


def test_strict_raises_what_a_pass_raises_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no luck") as caught:
        optimize(chain(3), ["fold-constants", Raises()], tmp_path, strict=True)
    assert caught.value.__notes__ == ["while running raises, pass 2 of 2, after fold-constants"]


def test_a_pass_that_breaks_the_graph_is_caught(tmp_path: Path) -> None:
    result = optimize(chain(3), [Breaks()], tmp_path)
    (blame,) = result.report.blamed
    assert (blame.pass_name, blame.number) == ("breaks", 1)
    assert blame.reason.startswith("the graph is broken: ")
    assert result.report.verified


def test_the_bisect_limit_counts_rewrites(tmp_path: Path) -> None:
    result = optimize(chain(9), [NegAsMul()], tmp_path, bisect_limit=5)
    assert [applied.number for applied in result.report.passes[0].applied] == [1, 2, 3, 4, 5]
    assert result.report.verified


def test_a_lossy_pass_is_proved_against_its_reference(tmp_path: Path) -> None:
    result = optimize(chain(2), [Halve()], tmp_path)
    assert next(check.against for check in result.report.checks if check.ok) == "reference of halve"
    assert result.report.verified
    assert sum(node.op_type == "Ceil" for node in result.model.graph) == 2


def test_a_lossy_pass_whose_reference_is_wrong_is_caught(tmp_path: Path) -> None:
    result = optimize(chain(2), [Halve(honest=False)], tmp_path)
    assert {blame.pass_name for blame in result.report.blamed} == {"halve"}
    assert operators(result.model) == operators(chain(2))


def test_a_loss_that_can_be_taken_out_is_proved_without_it(tmp_path: Path) -> None:
    result = optimize(chain(2), [Round()], tmp_path)
    assert result.report.checks[0].against == "original, without the loss"
    assert result.report.verified
    assert "Ceil" in operators(result.model)


def test_a_loss_that_was_not_all_is_caught(tmp_path: Path) -> None:
    result = optimize(chain(2), [Round(honest=False)], tmp_path)
    assert [blame.number for blame in result.report.blamed] == [1]
    assert result.report.remarks[0].startswith(
        "round was left out as a whole: it differs even without the rewr"
    )
    assert operators(result.model) == operators(chain(2))
    with pytest.raises(VerificationError, match="round: rewrite 1, at r0, changed what the model computes"):
        optimize(chain(2), [Round(honest=False)], tmp_path, strict=True)


def test_the_input_is_never_changed(tmp_path: Path) -> None:
    model = chain(4)
    before, proto = to_text(model), ir.to_proto(chain(4))
    optimize(model, "speed", tmp_path)
    assert to_text(model) == before
    serialized = proto.SerializeToString()
    graphopt.optimize(proto, "speed")
    assert proto.SerializeToString() == serialized
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    raw = path.read_bytes()
    graphopt.optimize(path, "speed").save(tmp_path / "out.onnx")
    assert path.read_bytes() == raw


def test_two_runs_give_the_same(tmp_path: Path) -> None:
    first, second = (optimize(chain(5), "speed", tmp_path) for _ in range(2))
    assert to_text(first.model) == to_text(second.model)
    assert [p.applied for p in first.report.passes] == [p.applied for p in second.report.passes]


def test_each_pass_that_changed_something_is_dumped(tmp_path: Path) -> None:
    optimize(chain(2), ["fold-constants", NegAsMul()], tmp_path, dump_dir=tmp_path / "dump")
    (dump,) = (tmp_path / "dump").iterdir()
    assert dump.name.startswith("001-")
    assert "Mul (x, n0_factor)" in dump.read_text()


def test_the_pipeline_is_kept_in_the_model(tmp_path: Path) -> None:
    result = optimize(chain(2), "fixpoint(fold-constants{limit_bytes=8},eliminate-dead)", tmp_path)
    text = "fixpoint(fold-constants{limit_bytes=8},eliminate-dead)"
    assert result.model.metadata_props["graphopt.pipeline"] == text
    assert result.report.pipeline == text


def test_the_report_is_written_as_page_and_data(tmp_path: Path) -> None:
    result = optimize(chain(9), [NegAsMul()], tmp_path)
    result.report.save(tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "**Left out:** rewrite 7, neg-as-mul at n6" in page
    data = __import__("json").loads((tmp_path / "report" / "report.json").read_text())
    assert data["verified"] is True
    assert data["blamed"][0]["number"] == 7
