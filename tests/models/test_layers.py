"""Layers dropped from a real model: what is left of its sentence vectors."""

from __future__ import annotations

from typing import Any

import data
import numpy as np
import onnx_ir as ir
import pytest
import zoo

import graphopt
from graphopt.backends.session import create

MODEL = "minilm"


@pytest.fixture(scope="module")
def simplified() -> ir.Model:
    if missing := zoo.ZOO[MODEL].missing:
        pytest.skip(f"{missing} is not installed")
    return graphopt.optimize(zoo.onnx_path(MODEL), "simplify", verify=False).model


def vectors(model: ir.Model) -> Any:
    session = create(model, optimize="basic")
    return data.embeddings([session.run(None, feed)[0] for feed in data.test(MODEL)])


@pytest.mark.slow
def test_the_vectors_of_500_sentences_keep_their_direction(simplified: ir.Model) -> None:
    """By a cosine of 0.936 on average without what makes up for the layer, 0.957 with it."""
    wanted, cosines = vectors(simplified), []
    for options in ("compensate=none", "count=1"):
        result = graphopt.optimize(
            simplified, f"drop-layers{{{options}}}", calibration=data.calibration(MODEL), strict=True
        )
        (entry,) = result.report.passes
        assert [applied.where for applied in entry.applied] == ["node_layer_norm_6"]
        assert len(result.model.graph) == len(simplified.graph) - 41
        cosines.append(float(np.mean((vectors(result.model) * wanted).sum(1))))
    assert cosines == [pytest.approx(0.936, abs=0.002), pytest.approx(0.957, abs=0.002)]


@pytest.mark.parametrize(
    ("name", "layers"), [("minilm", 6), ("bert-base", 12), ("vit-b16", 12), ("gpt2", 12)]
)
def test_a_transformer_has_as_many_layers_as_its_maker_says(name: str, layers: int) -> None:
    from graphopt_passes.prune import residual

    from graphopt.context import Context

    if missing := zoo.ZOO[name].missing:
        pytest.skip(f"{missing} is not installed")
    model = graphopt.optimize(zoo.onnx_path(name), "simplify", verify=False).model
    found = residual.blocks(model, Context(model).analysis(graphopt.Shapes), graphopt.PassReport())
    (chain,) = residual.chains(found)
    assert [len(unit.blocks) for unit in residual.layers(chain)] == [2] * layers
