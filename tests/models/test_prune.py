"""Pruned real models: how much goes, that it is proved, and what compensation wins back."""

from __future__ import annotations

from functools import cache
from typing import Any

import data
import fashion
import numpy as np
import onnx_ir as ir
import pytest
import zoo

import graphopt
from graphopt.runners import OnnxRuntime

LEFT = {
    "resnet50": 0.259,
    "mobilenet-v2": 0.291,
    "mobilenet-v3": 0.290,
    "efficientnet-b0": 0.289,
    "densenet121": 0.265,
    "vit-b16": 0.262,
    "swin-t": 0.27,
    "ppocr-det": 0.5,
    "ppocr-rec": 0.5,
    "ppocr-cls": 0.5,
}
"""Of the MACs when half of each group's channels go, at most."""


def simplified(name: str) -> ir.Model:
    if missing := zoo.ZOO[name].missing:
        pytest.skip(f"{missing} is not installed")
    return graphopt.optimize(zoo.onnx_path(name), "simplify", verify=False).model


def share(before: ir.Model, after: ir.Model) -> float:
    return graphopt.cost(after).macs / graphopt.cost(before).macs


@pytest.mark.parametrize("name", LEFT)
def test_half_of_the_channels_leave_a_quarter_of_the_macs(name: str) -> None:
    model = simplified(name)
    result = graphopt.optimize(model, "prune-channels{ratio=0.5}", strict=True)
    assert share(model, result.model) <= LEFT[name] + 0.01
    assert result.report.checks[-1].ok


def test_an_export_in_torchscript_style_is_pruned_as_well() -> None:
    model = simplified("bert-base-torchscript")
    result = graphopt.optimize(model, "prune-channels{ratio=0.5,outputs=[last_hidden_state]}", strict=True)
    assert share(model, result.model) < 0.3


def test_minilm_has_heads_and_widths_and_a_hidden_size() -> None:
    groups = graphopt.channel_groups(simplified("minilm"), outputs=["last_hidden_state"])
    sizes = [(group.channels, group.block) for group in groups if not group.inner]
    assert sizes == [(384, 1), *[(12, 32), (1536, 1)] * 6]
    assert groups.refusals == []


@pytest.mark.slow
def test_pruned_heads_keep_the_meaning_of_sentences() -> None:
    """A quarter of MiniLM's heads, those that calibration data show least of."""
    model, test = simplified("minilm"), data.test("minilm")
    result = graphopt.optimize(
        model, "prune-heads{ratio=0.25}", calibration=data.calibration("minilm"), strict=True
    )
    assert [entry.detail.split(";")[0] for entry in result.report.passes[0].applied] == ["12 heads to 9"] * 6
    before, after = (sentences(each, test) for each in (model, result.model))
    cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert cosine.mean() >= 0.95


def sentences(model: ir.Model, feeds: list[Any]) -> Any:
    with OnnxRuntime(model) as runner:
        return data.embeddings([next(iter(runner.run(feed).values())) for feed in feeds])


def test_channels_last_are_pruned() -> None:
    """As tf2onnx writes Keras: pictures come in with channels last, and normalizations and sums work on them so."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": (32, 3, 3, 3),
        "w2": (32, 1, 3, 3),
        "w3": (64, 32, 1, 1),
        "w4": (64, 64, 3, 3),
        "scale": (64,),
        "shift": (64,),
        "w5": (64, 10),
    }
    text = """<ir_version: 10, opset_import: ["" : 21]>
    net (float[N,32,32,3] x) => (float[N,10] y) {
       a0 = Transpose <perm = [0, 3, 1, 2]> (x)
       a1 = Conv <pads = [1, 1, 1, 1]> (a0, w1)
       a2 = Clip (a1, zero, six)
       a3 = Conv <group = 32, pads = [1, 1, 1, 1]> (a2, w2)
       a4 = Conv (a3, w3)
       b0 = Transpose <perm = [0, 2, 3, 1]> (a4)
       b1 = Mul (b0, scale)
       b2 = Add (b1, shift)
       b3 = Relu (b2)
       c0 = Transpose <perm = [0, 3, 1, 2]> (b3)
       c1 = Conv <pads = [1, 1, 1, 1]> (c0, w4)
       c2 = Transpose <perm = [0, 2, 3, 1]> (c1)
       d0 = Add (c2, b3)
       d1 = ReduceMean <keepdims = 0> (d0, space)
       y = MatMul (d1, w5)
    }"""
    model = ir.from_onnx_text(
        text,
        initializers=[
            *(
                ir.tensor(rng.normal(size=shape).astype(np.float32), name=name)
                for name, shape in weights.items()
            ),
            ir.tensor(np.float32(0), name="zero"),
            ir.tensor(np.float32(6), name="six"),
            ir.tensor(np.array([1, 2]), name="space"),
        ],
    )
    result = graphopt.optimize(model, "prune-channels{ratio=0.5}", strict=True)
    assert share(model, result.model) == pytest.approx(0.257, abs=0.001)
    assert [group.channels for group in graphopt.channel_groups(result.model)] == [16, 32]


def test_a_recurrent_network_is_pruned() -> None:
    """Two layers of LSTM, the first in both directions, behind an embedding, as torch exports them."""
    import torch
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 32)
            self.first = nn.LSTM(32, 48, bidirectional=True)
            self.second = nn.LSTM(96, 64)
            self.head = nn.Linear(64, 10)

        def forward(self, ids: Any) -> Any:
            return self.head(self.second(self.first(self.table(ids))[0])[0])

    torch.manual_seed(0)
    ids = torch.randint(0, 100, (7, 2))
    model = graphopt.optimize(graphopt.trace(Tagger().eval(), (ids,)), "simplify").model
    result = graphopt.optimize(model, "prune-channels{ratio=0.5}", strict=True)
    assert [group.channels for group in graphopt.channel_groups(result.model)] == [16, 24, 32]
    assert share(model, result.model) < 0.3


@cache
def trained() -> ir.Model:
    if fashion.MISSING:
        pytest.skip(f"{fashion.MISSING} is not installed")
    import torch

    net = fashion.trained()
    x = torch.zeros(500, 1, 28, 28)
    return graphopt.optimize(graphopt.trace(net, (x,)), "speed").model


def accuracy(model: ir.Model) -> float:
    x, y = fashion.pictures("t10k")
    (name,) = (value.name or "" for value in model.graph.inputs)
    with OnnxRuntime(model) as runner:
        found = [next(iter(runner.run({name: part}).values())).argmax(1) for part in np.split(x, 20)]
    return float((np.concatenate(found) == y).mean())


@pytest.mark.slow
def test_what_is_left_makes_up_for_what_goes() -> None:
    """Without training: at half the MACs at least 60 % of what plain pruning loses, at a quarter fewer 1 point."""
    model = trained()
    x, _ = fashion.pictures("train")
    (name,) = (value.name or "" for value in model.graph.inputs)
    calibration = [{name: part} for part in np.split(x[:2000], 4)]
    whole = accuracy(model)
    assert whole >= 0.91
    plain = accuracy(graphopt.optimize(model, "prune-channels{macs=0.5,criterion=l2}", strict=True).model)
    half, less = (
        accuracy(
            graphopt.optimize(
                model, f"prune-channels{{macs={macs},criterion=l2}}", calibration=calibration, strict=True
            ).model
        )
        for macs in (0.5, 0.75)
    )
    assert half - plain >= 0.6 * (whole - plain)
    assert less >= whole - 0.01
