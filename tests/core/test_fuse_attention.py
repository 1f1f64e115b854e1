"""Attention in the shapes that exporters write it, by numbers, and what its operators do where that matters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.fuse_attention.layout import Size
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt import optimize, pipeline, trace
from graphopt.backends import session
from graphopt.query import all_nodes
from graphopt.testing import conformance, run, valid
from graphopt.text import from_text

B, H, D = 2, 2, 3
SHAPES = {
    "full": "B,2,S,T",
    "causal": "1,1,S,T",
    "padding": "B,1,1,T",
    "matrix": "S,T",
    "relative": "1,2,S,T",
    "keys": "T",
}
"""Of masks."""


@dataclass(frozen=True)
class Writing:
    """One way to write attention."""

    scale: str = "scores"
    keys: str = "plain"
    mask: str | None = None
    mask_first: bool = False
    fill: str | None = None
    guard: bool = False
    packed: str | None = None
    rotated: bool = False

    def text(self) -> str:
        lines: list[str] = []
        inputs = ["float[B,S,6] q", "float[B,T,6] k", "float[B,T,6] v"]
        if self.packed:
            inputs = ["float[B,S,18] x"]
            lines += self._unpack()
        else:
            lines += [
                "qr = Reshape (q, heads)", "kr = Reshape (k, heads)", "vr = Reshape (v, heads)",
                "qh = Transpose <perm = [0, 2, 1, 3]> (qr)", "kh = Transpose <perm = [0, 2, 1, 3]> (kr)",
                "vh = Transpose <perm = [0, 2, 1, 3]> (vr)",
            ]  # fmt: skip
        if self.rotated:
            lines += ["qo = Neg (qh)", "ko = Neg (kh)"]
        q, k = ("qo", "ko") if self.rotated else ("qh", "kh")
        lines += self._transpose(k)
        if self.scale in ("q", "both"):
            lines.append(f"qs = Mul ({q}, {'root' if self.scale == 'both' else 'scale'})")
            q = "qs"
        k = "kt"
        if self.scale in ("k", "both"):
            lines.append(f"ks = Mul ({'root' if self.scale == 'both' else 'scale'}, kt)")
            k = "ks"
        lines.append(f"s0 = MatMul ({q}, {k})")
        steps = [self._masked, self._scaled] if self.mask_first else [self._scaled, self._masked]
        score = "s0"
        for step in steps:
            score = step(score, lines)
        if self.fill:
            inputs.append("bool[S,T] hidden")
            lines.append(f"filled = Where (hidden, low, {score})")
            score = "filled"
        if self.mask:
            inputs.append(f"float[{SHAPES[self.mask]}] mask")
        lines.append(f"w0 = Softmax <axis = -1> ({score})")
        weights = "w0"
        if self.guard:
            lines += ["nan = IsNaN (w0)", "w1 = Where (nan, zero, w0)"]
            weights = "w1"
        lines += [
            f"yh = MatMul ({weights}, vh)",
            "yt = Transpose <perm = [0, 2, 1, 3]> (yh)",
            "y = Reshape (yt, rows)",
        ]
        constants = (
            "int64[4] heads = {0, 0, 2, 3}, int64[3] rows = {0, 0, 6}, float scale = {0.25}, float root = {0.5}, "
            f"float zero = {{0}}, float low = {{{self.fill or '-inf'}}}, float over = {{4}}, int64 i0 = {{0}}, "
            "int64 i1 = {1}, int64 i2 = {2}, int64[5] five = {0, 0, 3, 2, 3}, int64[3] parts = {6, 6, 6}, "
            "int64[3] three = {-1, 5, 3}, int64[4] four = {-1, 2, 3, 5}"
        )
        signature = f"({', '.join(inputs)}) => (float[B,S,6] y)"
        if self.packed or self.keys == "batched":
            signature = signature.replace("T", "S")
        if self.keys == "batched":
            signature = signature.replace("S", "5")
        body = "\n".join(lines)
        return f'<ir_version: 10, opset_import: ["" : 20]>\nmain {signature}\n<{constants}>\n{{\n{body}\n}}'

    def _unpack(self) -> list[str]:
        if self.packed == "split":
            cut = ["q, k, v = Split <axis = 2> (x, parts)"]
            cut += [f"{n}r = Reshape ({n}, heads)" for n in "qkv"]
            return cut + [f"{n}h = Transpose <perm = [0, 2, 1, 3]> ({n}r)" for n in "qkv"]
        cut = ["r = Reshape (x, five)", "t = Transpose <perm = [2, 0, 3, 1, 4]> (r)"]
        return cut + [f"{n}h = Gather <axis = 0> (t, i{i})" for i, n in enumerate("qkv")]

    def _transpose(self, keys: str) -> list[str]:
        if self.keys == "plain":
            return [f"kt = Transpose <perm = [0, 1, 3, 2]> ({keys})"]
        return [
            f"k3 = Reshape ({keys}, three)",
            "t3 = Transpose <perm = [0, 2, 1]> (k3)",
            "kt = Reshape (t3, four)",
        ]

    def _scaled(self, score: str, lines: list[str]) -> str:
        if self.scale not in ("scores", "divided"):
            return score
        operation = "Mul ({}, scale)" if self.scale == "scores" else "Div ({}, over)"
        lines.append(f"scaled = {operation.format(score)}")
        return "scaled"

    def _masked(self, score: str, lines: list[str]) -> str:
        if self.mask:
            lines.append(f"masked = Add ({score}, mask)")
        return "masked" if self.mask else score

    def feeds(self, model: ir.Model, hide: bool) -> dict[str, np.ndarray]:
        """Draw inputs; where ``hide``, the first query of each batch sees no key."""
        random = np.random.default_rng(0)
        sizes = {"B": B, "S": 5, "T": 5 if self.packed or self.keys == "batched" else 4}
        feeds = {}
        for value in model.graph.inputs:
            shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
            if value.dtype == ir.DataType.BOOL:
                feeds[value.name] = random.random(shape) < 0.3
                feeds[value.name][0] = hide
            else:
                feeds[value.name] = random.standard_normal(shape).astype(np.float32)
        if self.mask and hide and self.mask not in ("padding", "keys"):
            feeds["mask"][..., 0, :] = -np.inf
        elif self.mask and hide:
            feeds["mask"][..., 0] = -np.inf
        return feeds


WRITINGS = st.builds(
    Writing,
    scale=st.sampled_from(["none", "scores", "divided", "q", "k", "both"]),
    keys=st.sampled_from(["plain", "batched"]),
    mask=st.sampled_from([None, *SHAPES]),
    mask_first=st.booleans(),
    fill=st.sampled_from([None, "-inf"]),
    guard=st.booleans(),
    packed=st.sampled_from([None, "split", "gather"]),
    rotated=st.booleans(),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(WRITINGS, st.booleans())
def test_every_writing_is_found_and_computes_the_same(writing: Writing, hide: bool) -> None:
    before = from_text(writing.text())
    (step,) = pipeline.parse("fuse-attention").passes()
    after, entry, _ = run(step, before)
    assert len(entry.applied) == 1, [d.reason for d in entry.declined]
    assert operators(after).count("MultiHeadAttention") == 1
    assert "Softmax" not in operators(after)
    valid(after)
    feeds = writing.feeds(before, hide)
    np.testing.assert_allclose(outputs(after, feeds), outputs(before, feeds), 1e-5, 1e-5)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in all_nodes(model)]


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    (result,) = session.run(session.create(model, optimize="none"), feeds).values()
    return result


def test_it_conforms() -> None:
    (step,) = pipeline.parse("fuse-attention").passes()
    writings = Writing(mask="padding", guard=True), Writing(packed="gather", scale="both")
    conformance(step, [writing.text() for writing in writings])


@pytest.mark.parametrize(
    ("text", "number", "symbols"),
    [
        ("batch", 1, ("batch",)),
        ("12*batch", 12, ("batch",)),
        ("rows*batch*3*4", 12, ("batch", "rows")),
        ("((batch*rows)//batch)", 1, ("rows",)),
        ("(12*batch)//4", 3, ("batch",)),
        ("(12*batch)//5", 1, ("(12*batch)//5",)),
        ("(2*batch)//rows", 1, ("(2*batch)//rows",)),
        ("rows + 1", 1, ("rows + 1",)),
        ("2*(rows + 1)", 1, ("2*(rows + 1)",)),
    ],
)
def test_sizes_are_products(text: str, number: int, symbols: tuple[str, ...]) -> None:
    assert Size.of(ir.SymbolicDim(text)) == Size(number, symbols)


IO = "(float[2,3,6] q, float[2,4,6] k, float[2,4,6] v, float[{}] mask) => (float[2,3,6] y)"
MULTI_HEAD = "y = com.microsoft.MultiHeadAttention <num_heads = 2, scale = 0.5> (q, k, v, , , mask)"
STANDARD = "y = Attention <q_num_heads = 2, kv_num_heads = 2, scale = 0.5> (q, k, v, mask)"


def operator(body: str, shape: str, mask: np.ndarray) -> np.ndarray:
    model = from_text(
        f'<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]> main {IO.format(shape)} {{ {body} }}'
    )
    random = np.random.default_rng(0)
    feeds = {v.name: random.standard_normal(v.shape.numpy()).astype(np.float32) for v in model.graph.inputs}
    return outputs(model, {**feeds, "mask": mask})


def test_a_query_without_keys_is_no_number_for_one_operator_and_zero_for_the_other() -> None:
    mask = np.zeros((1, 1, 3, 4), np.float32)
    mask[..., 0, :] = -np.inf
    fused, standard = operator(MULTI_HEAD, "1,1,3,4", mask), operator(STANDARD, "1,1,3,4", mask)
    assert np.isnan(fused[:, 0]).all()
    assert (standard[:, 0] == 0).all()
    np.testing.assert_allclose(fused[:, 1:], standard[:, 1:], 1e-5, 1e-6)


@pytest.mark.parametrize("body", [MULTI_HEAD, STANDARD])
def test_masks_are_not_broadcast_along_the_rows(body: str) -> None:
    with pytest.raises(Exception, match="sequence_length"):
        operator(body, "1,1,1,4", np.zeros((1, 1, 1, 4), np.float32))


class Torch:
    """Modules to export; torch is imported when they are made."""

    @staticmethod
    def make(name: str) -> tuple[object, tuple[object, ...]]:
        import torch
        from torch.nn import functional

        torch.manual_seed(0)
        if name == "module":
            attention = torch.nn.MultiheadAttention(8, 2, batch_first=False)

            class Self(torch.nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.attention = attention

                def forward(self, x: torch.Tensor) -> torch.Tensor:
                    return self.attention(x, x, x, need_weights=False)[0]

            return Self(), (torch.randn(5, 3, 8),)

        class Dot(torch.nn.Module):
            def forward(
                self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor
            ) -> torch.Tensor:
                mask = {"mask": m, "boolean": m > 0}.get(name)
                result = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=name == "causal")
                return result + m.sum() * 0

        return Dot(), (*(torch.randn(2, 2, 5, 4) for _ in range(3)), torch.randn(2, 1, 5, 5))


@pytest.mark.parametrize("name", ["module", "mask", "boolean", "causal", "plain"])
def test_what_torch_exports_is_found(name: str) -> None:
    before = trace(*Torch.make(name))
    result = optimize(before, "speed,fuse-attention,speed", strict=True)
    assert result.report.verified
    assert operators(result.model).count("MultiHeadAttention") == 1
    assert "Softmax" not in operators(result.model)
