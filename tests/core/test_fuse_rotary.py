"""Rotary embedding and shared keys as transformers export them, and what the operators compute."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import optimize, pipeline, trace
from graphopt.backends import session
from graphopt.query import all_nodes
from graphopt.testing import conformance
from graphopt.text import from_text

GRAPH = """<ir_version: 11, opset_import: ["" : 23]>
main (float[B,2,S,4] x, float[S,2] angles) => (float[B,2,S,4] y)
<int64[1] zero = {0}, int64[1] two = {2}, int64[1] end = {4}, int64[1] last = {3}>
{
    both = Concat <axis = -1> (angles, angles)
    cos = Cos (both)
    sin = Sin (both)
    a = Slice (x, zero, two, last)
    b = Slice (x, two, end, last)
    minus = Neg (b)
    concat = Concat <axis = -1> (minus, a)
    direct = Mul (x, cos)
    turned = Mul (concat, sin)
    y = Add (direct, turned)
}"""
PROJECTIONS = """<ir_version: 11, opset_import: ["" : 20]>
main (float[N,2] x) => (float[N,2] a, float[N,1] b)
<float[2,2] w1 = {1,2,3,4}, float[2,1] w2 = {5,6}>
{
    a = MatMul (x, w1)
    b = MatMul (x, w2)
}"""
STANDARD = "speed,raise-opset,fuse-rotary{dialect=standard},fuse-attention{dialect=standard},speed"
TARGET = "speed,fuse-rotary,fuse-attention,fuse-projections,speed"


@pytest.mark.parametrize(
    ("step", "graph"),
    [("fuse-rotary", GRAPH), ("fuse-rotary{dialect=standard}", GRAPH), ("fuse-projections", PROJECTIONS)],
)
def test_it_conforms(step: str, graph: str) -> None:
    (made,) = pipeline.parse(step).passes()
    conformance(made, [graph])


@pytest.mark.parametrize("dialect", ["target", "standard"])
def test_each_pair_is_turned_by_its_angle(dialect: str) -> None:
    result = optimize(from_text(GRAPH), f"fuse-rotary{{dialect={dialect}}}", strict=True)
    assert Counter(n.op_type for n in all_nodes(result.model))["RotaryEmbedding"] == 1
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 4)).astype(np.float32)
    angles = np.arange(10, dtype=np.float32).reshape(5, 2)
    (y,) = session.run(session.create(result.model), {"x": x, "angles": angles}).values()
    turned = (x[..., :2] + 1j * x[..., 2:]) * np.exp(1j * angles)
    np.testing.assert_allclose(y, np.concatenate([turned.real, turned.imag], -1), 1e-5, 1e-5)


def decoder(name: str) -> tuple[Any, dict[str, Any]]:
    """Return a small decoder with random weights, and what it reads."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import zoo

    transformers = zoo._transformers()
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    more = {"num_attention_heads": 4, "max_position_embeddings": 64, "use_cache": False}
    special = {
        "Llama": {"num_key_value_heads": 2},
        "Mistral": {"num_key_value_heads": 2, "sliding_window": 3},
        "Gemma": {"num_key_value_heads": 1, "head_dim": 8},
        "GPTNeoX": {"rotary_pct": 0.5},
    }[name]
    config = getattr(transformers, f"{name}Config")(**sizes, **more, **special)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    module = zoo.enliven(getattr(transformers, f"{name}ForCausalLM")(config)).eval()
    ids = torch.arange(1, 17).reshape(2, 8)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return module, {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    "name", ["Llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Mistral", "Gemma", "GPTNeoX"))]
)
def test_a_decoder_is_found_in_every_layer(name: str) -> None:
    module, inputs = decoder(name)
    model = trace(module, (), inputs, dynamic_shapes={n: {0: "batch", 1: "sequence"} for n in inputs})
    for text, attention in ((TARGET, "MultiHeadAttention"), (STANDARD, "Attention")):
        result = optimize(model, text, strict=True)
        assert result.report.verified, result.report.verdict()
        count = Counter(node.op_type for node in all_nodes(result.model))
        assert (count[attention], count["RotaryEmbedding"], count["Softmax"]) == (2, 4, 0)
    shared = {"Llama": 2, "Mistral": 2, "Gemma": 1, "GPTNeoX": 4}[name]
    assert [heads(node) for node in all_nodes(result.model) if node.op_type == "Attention"] == [shared] * 2


def heads(node: ir.Node) -> int:
    return int(node.attributes["kv_num_heads"].as_int())
