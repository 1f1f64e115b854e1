"""Random graphs of every kind of operator that a rule knows: what is cut equals what is masked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.prune.cut import cut
from graphopt_passes.prune.masked import masked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphopt
from graphopt import plugins
from graphopt.analysis.channels import Flow, Rule, separate
from graphopt.ops import BUILT_IN
from graphopt.testing import valid

SIDE = 4
"""Height and width of all pictures; there are two of them."""
WIDTHS = (4, 6, 8, 12)


@dataclass
class Drawing:
    """A graph that is being drawn: text, weights, and the pictures that are there, by name with their channels."""

    choose: Callable[..., Any]
    rng: np.random.Generator
    lines: list[str] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)
    pictures: list[tuple[str, int]] = field(default_factory=lambda: [("x", 3)])

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        made = [f"v{len(self.lines)}_{i}" for i in range(outputs)]
        text = ", ".join(f"{k} = {v}" for k, v in attributes.items())
        self.lines.append(
            f"{', '.join(made)} = {op_type} {f'<{text}>' if text else ''} ({', '.join(inputs)})"
        )
        return made[0] if outputs == 1 else made

    def weight(self, *shape: int, positive: bool = False) -> str:
        array = self.rng.normal(size=shape).astype(np.float32) * 0.5
        return self.constant(np.abs(array) + 0.5 if positive else array)

    def constant(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def picture(self, name: str, channels: int) -> None:
        self.pictures.append((name, channels))

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> str:
        w = self.weight(outputs, inputs // groups, kernel, kernel)
        pads = [kernel // 2] * 4
        return self.op("Conv", x, w, self.weight(outputs), group=groups, pads=pads)


def convolution(d: Drawing, x: str, c: int) -> None:
    outputs = d.choose(WIDTHS)
    d.picture(d.conv(x, c, outputs, d.choose((1, 3))), outputs)


def depthwise(d: Drawing, x: str, c: int) -> None:
    times = d.choose((1, 2))
    d.picture(d.conv(x, c, c * times, 3, groups=c), c * times)


def grouped(d: Drawing, x: str, c: int) -> None:
    d.picture(d.conv(x, c, 8, 1, groups=2), 8)


def transposed(d: Drawing, x: str, c: int) -> None:
    d.picture(d.op("ConvTranspose", x, d.weight(c, 6, 1, 1), d.weight(6)), 6)


def residual(d: Drawing, x: str, c: int) -> None:
    hidden = d.choose(WIDTHS)
    y = d.conv(d.op("Relu", d.conv(x, c, hidden, 3)), hidden, c, 1)
    d.picture(d.op(d.choose(("Add", "Sub", "Mul", "Max")), x, y), c)


def activation(d: Drawing, x: str, c: int) -> None:
    d.picture(
        d.op(d.choose(("Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Elu", "Exp")), d.op("Tanh", x)), c
    )


def prelu(d: Drawing, x: str, c: int) -> None:
    d.picture(d.op("PRelu", x, d.weight(c, 1, 1)), c)


def arithmetic(d: Drawing, x: str, c: int) -> None:
    op = d.choose(("Add", "Sub", "Mul", "Div"))
    d.picture(d.op(op, x, d.weight(*d.choose(((c, 1, 1), (1,), (1, c, 1, 1))), positive=op == "Div")), c)


def batch_norm(d: Drawing, x: str, c: int) -> None:
    d.picture(d.op("BatchNormalization", x, *(d.weight(c) for _ in range(3)), d.weight(c, positive=True)), c)


def instance_norm(d: Drawing, x: str, c: int) -> None:
    d.picture(d.op("InstanceNormalization", x, d.weight(c), d.weight(c)), c)


def group_norm(d: Drawing, x: str, c: int) -> None:
    d.picture(d.op("GroupNormalization", x, d.weight(c), d.weight(c), num_groups=2), c)


def layer_norm(d: Drawing, x: str, c: int) -> None:
    last = d.op("Transpose", x, perm=[0, 2, 3, 1])
    kind = d.choose(("LayerNormalization", "RMSNormalization"))
    rest = [d.weight(c)] if kind == "LayerNormalization" and d.choose((True, False)) else []
    made = d.op(kind, last, d.weight(c), *rest, axis=-1)
    d.picture(d.op("Transpose", made, perm=[0, 3, 1, 2]), c)


def written_norm(d: Drawing, x: str, c: int) -> None:
    axes = d.constant(np.array([1]))
    centred = d.op("Sub", x, d.op("ReduceMean", x, axes))
    variance = d.op("ReduceMean", d.op("Mul", centred, centred), axes)
    deviation = d.op("Sqrt", d.op("Add", variance, d.constant(np.float32(0.1))))
    d.picture(d.op("Mul", d.op("Div", centred, deviation), d.weight(c, 1, 1)), c)


def squeeze_excite(d: Drawing, x: str, c: int) -> None:
    pooled = d.op("GlobalAveragePool", x)
    gate = d.op("Sigmoid", d.conv(d.op("Relu", d.conv(pooled, c, 4)), 4, c))
    d.picture(d.op("Mul", x, gate), c)


def concatenation(d: Drawing, x: str, c: int) -> None:
    y, more = d.choose(d.pictures)
    d.picture(d.op("Concat", x, y, axis=1), c + more)


def splitting(d: Drawing, x: str, c: int) -> None:
    first = d.choose(range(1, c))
    a, b = d.op("Split", x, d.constant(np.array([first, c - first])), outputs=2, axis=1)
    d.picture(a, first)
    d.picture(d.op("Concat", b, a, axis=1), c)


def halves(d: Drawing, x: str, c: int) -> None:
    a, b = d.op("Split", x, outputs=2, axis=1, num_outputs=2)
    d.picture(d.op("Mul", a, d.op("Sigmoid", b)), c // 2)


def slicing(d: Drawing, x: str, c: int) -> None:
    begin = d.choose(range(c - 1))
    bounds = (np.array([i]) for i in (begin, d.choose((c, 2**31)), 1))
    d.picture(d.op("Slice", x, *map(d.constant, bounds)), c - begin)


def gathering(d: Drawing, x: str, c: int) -> None:
    picked = d.rng.integers(-c, c, d.choose((2, 4, 6)))
    d.picture(d.op("Gather", x, d.constant(picked), axis=1), len(picked))


def shuffle(d: Drawing, x: str, c: int) -> None:
    grid = d.op("Reshape", x, d.constant(np.array([0, 2, c // 2, SIDE, SIDE])))
    turned = d.op("Transpose", grid, perm=[0, 2, 1, 3, 4])
    d.picture(d.op("Reshape", turned, d.constant(np.array([0, -1, SIDE, SIDE]))), c)


def padding(d: Drawing, x: str, c: int) -> None:
    d.picture(d.op("Pad", x, d.constant(np.array([0, 1, 0, 0, 0, 2, 0, 0]))), c + 3)


def tiling(d: Drawing, x: str, c: int) -> None:
    d.picture(d.op("Tile", x, d.constant(np.array([1, 2, 1, 1]))), 2 * c)


def pooling(d: Drawing, x: str, c: int) -> None:
    kind = d.choose(("MaxPool", "AveragePool"))
    d.picture(d.op(kind, x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), c)


def space(d: Drawing, x: str, c: int) -> None:
    mode = d.choose(('"DCR"', '"CRD"'))
    d.picture(d.op("DepthToSpace", d.op("SpaceToDepth", x, blocksize=2), blocksize=2, mode=mode), c)


def means(d: Drawing, x: str, c: int) -> None:
    kind = d.choose(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"))
    d.picture(d.op("Mul", x, d.op(kind, x, d.constant(np.array([1])))), c)


def tokens(d: Drawing, x: str, c: int) -> str:
    """Return a picture as tokens: (2, L, C)."""
    flat = d.op("Reshape", x, d.constant(np.array([0, 0, -1])))
    made: str = d.op("Transpose", flat, perm=[0, 2, 1])
    return made


def untoken(d: Drawing, x: str, c: int) -> None:
    turned = d.op("Transpose", x, perm=[0, 2, 1])
    d.picture(d.op("Reshape", turned, d.constant(np.array([2, c, SIDE, SIDE]))), c)


def written_attention(d: Drawing, x: str, c: int) -> None:
    """Two or four heads; keys and values may have half as many, which are repeated."""
    t, size, heads = tokens(d, x, c), d.choose((2, 3)), d.choose((2, 4))
    shared = d.choose((1, 2))
    q, k, v = (
        d.op(
            "Transpose",
            d.op(
                "Reshape",
                d.op("Add", d.op("MatMul", t, d.weight(c, n * size)), d.weight(n * size)),
                d.constant(np.array([0, -1, n, size])),
            ),
            perm=[0, 2, 1, 3],
        )
        for n in (heads, heads // shared, heads // shared)
    )
    if shared > 1:
        one, target = d.constant(np.array([2])), d.constant(np.array([2, heads // 2, 2, SIDE * SIDE, size]))
        back = d.constant(np.array([2, heads, SIDE * SIDE, size]))
        k, v = (d.op("Reshape", d.op("Expand", d.op("Unsqueeze", y, one), target), back) for y in (k, v))
    scores = d.op("MatMul", q, d.op("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = d.op("Transpose", d.op("MatMul", d.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    joined = d.op("Reshape", mixed, d.constant(np.array([0, 0, heads * size])))
    untoken(d, d.op("MatMul", joined, d.weight(heads * size, 6)), 6)


def fused_attention(d: Drawing, x: str, c: int) -> None:
    t, size, heads, keys = tokens(d, x, c), d.choose((2, 4)), 4, d.choose((1, 2, 4))
    q, k, v = (d.op("MatMul", t, d.weight(c, n * size)) for n in (heads, keys, keys))
    made = d.op("Attention", q, k, v, q_num_heads=heads, kv_num_heads=keys)
    untoken(d, d.op("MatMul", made, d.weight(heads * size, 6)), 6)


def products(d: Drawing, x: str, c: int) -> None:
    """A constant on the left, Einsum, Gemm on flattened pictures."""
    kind = d.choose(("left", "einsum", "gemm"))
    if kind == "left":
        flat = d.op("Reshape", x, d.constant(np.array([0, 0, -1])))
        made = d.op("MatMul", d.weight(6, c), flat)
        d.picture(d.op("Reshape", made, d.constant(np.array([2, 6, SIDE, SIDE]))), 6)
    elif kind == "einsum":
        d.picture(d.op("Einsum", x, d.weight(c, 6), equation='"ncyx,cd->ndyx"'), 6)
    else:
        flat = d.op("Flatten", x)
        made = d.op(
            "Gemm", flat, d.weight(6 * SIDE * SIDE, c * SIDE * SIDE), d.weight(6 * SIDE * SIDE), transB=1
        )
        d.picture(d.op("Reshape", made, d.constant(np.array([-1, 6, SIDE, SIDE]))), 6)


def recurrent(d: Drawing, x: str, c: int) -> None:
    kind, hidden = d.choose((("LSTM", 4), ("GRU", 3), ("RNN", 1))), 3
    way = d.choose((1, 2))
    sequence = d.op("Transpose", tokens(d, x, c), perm=[1, 0, 2])
    w, r = d.weight(way, kind[1] * hidden, c), d.weight(way, kind[1] * hidden, hidden)
    bias = d.weight(way, 2 * kind[1] * hidden)
    direction = '"bidirectional"' if way == 2 else '"forward"'
    y = d.op(kind[0], sequence, w, r, bias, hidden_size=hidden, direction=direction)
    turned = d.op("Transpose", y, perm=[2, 0, 1, 3])
    untoken(d, d.op("Reshape", turned, d.constant(np.array([2, SIDE * SIDE, way * hidden]))), way * hidden)


def quantized(d: Drawing, x: str, c: int) -> None:
    scale, zero = d.constant(np.float32(0.02)), d.constant(np.uint8(128))
    d.picture(d.op("DequantizeLinear", d.op("QuantizeLinear", x, scale, zero), scale, zero), c)


def transposed_groups(d: Drawing, x: str, c: int) -> None:
    d.picture(d.op("ConvTranspose", x, d.weight(c, 3, 1, 1), d.weight(6), group=2), 6)


def interpolation(d: Drawing, x: str, c: int) -> None:
    small = d.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    sizes = d.constant(np.array([2, c, SIDE, SIDE]))
    scales = d.constant(np.array([1, 1, 2, 2], np.float32))
    d.picture(d.op("Resize", small, "", *d.choose((("", sizes), (scales,))), mode='"linear"'), c)


def along_space(d: Drawing, x: str, c: int) -> None:
    """Whatever works along height or width lets channels pass."""
    kind = d.choose(("Softmax", "LogSoftmax", "LpNormalization", "TopK", "CumSum", "Concat", "Slice"))
    if kind == "TopK":
        made, _ = d.op(kind, x, d.constant(np.array([SIDE])), outputs=2, axis=d.choose((2, 3)))
    elif kind == "CumSum":
        made = d.op(kind, x, d.constant(np.int64(d.choose((2, -1)))))
    elif kind in ("Concat", "Slice"):
        bounds = (np.array([i]) for i in (1, SIDE + 1, 2))
        made = d.op("Slice", d.op("Concat", x, x, axis=2), *map(d.constant, bounds))
    else:
        made = d.op(kind, x, axis=d.choose((2, 3)))
    d.picture(made, c)


def over_space(d: Drawing, x: str, c: int) -> None:
    kind = d.choose(("ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp"))
    made = d.op(kind, d.op("Tanh", x), d.constant(np.array([2, 3])), keepdims=0)
    wide = d.op("Unsqueeze", d.op("MatMul", made, d.weight(c, c)), d.constant(np.array([2, 3])))
    d.picture(d.op("Add", x, d.op("Expand", wide, d.constant(np.array([1, 1, SIDE, SIDE])))), c)


def poles(d: Drawing, x: str, c: int) -> None:
    """What is not finite at 0, where channels are that were masked."""
    size = d.op("Add", d.op("Abs", x), d.op("Abs", d.weight(c, 1, 1, positive=True)))
    if d.choose((True, False)):
        other = d.op("Abs", d.conv(x, c, c))
        size = d.op(
            "Max", other, d.op("Mul", other, d.weight(1, positive=True)), d.weight(c, 1, 1, positive=True)
        )
    kind = d.choose(("Div", "Log", "Reciprocal", "Pow"))
    if kind == "Pow":
        made = d.op("Pow", size, d.constant(np.float32(-0.5)))
    else:
        made = d.op("Div", x, size) if kind == "Div" else d.op(kind, size)
    d.picture(made, c)


def selection(d: Drawing, x: str, c: int) -> None:
    mask = d.constant(d.rng.random((1, d.choose((1, c)), SIDE, 1)) < 0.5)
    d.picture(d.op("Where", mask, x, d.choose((d.weight(c, 1, 1), d.conv(x, c, c)))), c)


def shared_weights(d: Drawing, x: str, c: int) -> None:
    """One matrix is applied twice; what it makes is what it reads."""
    w = d.weight(c, c, 1, 1)
    d.picture(d.op("Conv", d.op("Tanh", d.op("Conv", x, w)), w), c)


def quantized_weights(d: Drawing, x: str, c: int) -> None:
    outputs, per_channel = d.choose(WIDTHS), d.choose((True, False))
    w = d.constant(d.rng.integers(-99, 100, (outputs, c, 1, 1)).astype(np.int8))
    size = (outputs,) if per_channel else ()
    scale = d.constant((d.rng.random(size) * 0.01 + 0.001).astype(np.float32))
    zero = [d.constant(d.rng.integers(-9, 10, size).astype(np.int8))] if d.choose((True, False)) else []
    d.picture(d.op("Conv", x, d.op("DequantizeLinear", w, scale, *zero, axis=0)), outputs)


def shapes(d: Drawing, x: str, c: int) -> None:
    """As exporters write views: sizes are read, picked and joined."""
    sizes = d.op("Shape", x)
    batch = d.op("Gather", sizes, d.constant(np.array([0])), axis=0)
    channels = d.op("Slice", sizes, d.constant(np.array([1])), d.constant(np.array([2])))
    flat = d.op("Reshape", x, d.op("Concat", batch, channels, d.constant(np.array([-1])), axis=0))
    ones = d.op("ConstantOfShape", sizes)
    d.picture(d.op("Add", d.op("Reshape", d.op("Tanh", flat), sizes), ones), c)


def three_axes(d: Drawing, x: str, c: int) -> None:
    """Channels as 2 · 2 · c / 4, of which two axes change places or all are scaled; and back."""
    grid = d.op("Reshape", x, d.constant(np.array([0, 2, 2, c // 4, SIDE * SIDE])))
    scaled = d.op("Mul", grid, d.weight(*d.choose(((2, c // 4, 1), (2, 1, 1, 1), (2, 2, c // 4, 1)))))
    moved = d.op("Transpose", scaled, perm=d.choose(([0, 1, 2, 3, 4], [0, 2, 1, 3, 4], [0, 1, 3, 2, 4])))
    d.picture(d.op("Reshape", moved, d.constant(np.array([2, c, SIDE, SIDE]))), c)


def windows(d: Drawing, x: str, c: int) -> None:
    """A convolution over tokens, between normalizations of two axes."""
    turned = d.op("Transpose", tokens(d, x, c), perm=[0, 2, 1])
    size = (c, SIDE * SIDE)
    normed = d.op("LayerNormalization", turned, d.weight(*size), d.weight(*size), axis=1)
    made = d.op("Conv", normed, d.weight(c, 1, 3), d.weight(c), group=c, pads=[1, 1])
    d.picture(d.op("Reshape", made, d.constant(np.array([2, c, SIDE, SIDE]))), c)


def similarity(d: Drawing, x: str, c: int) -> None:
    """Activations by activations, summed over channels, and weighed by the result."""
    t = tokens(d, x, c)
    q, k = d.op("MatMul", t, d.weight(c, 6)), d.op("MatMul", t, d.weight(c, 6))
    if d.choose((True, False)):
        scores = d.op("Einsum", q, k, equation='"btd,bsd->bts"')
    else:
        scores = d.op("MatMul", q, d.op("Transpose", k, perm=[0, 2, 1]))
    untoken(d, d.op("MatMul", d.op("Tanh", scores), t), c)


def runtime_attention(d: Drawing, x: str, c: int) -> None:
    t, heads, size = tokens(d, x, c), 4, 4
    if d.choose((True, False)):
        qkv = (d.op("MatMul", t, d.weight(c, heads * size)) for _ in range(3))
        made = d.op("com.microsoft.MultiHeadAttention", *qkv, d.weight(3 * heads * size), num_heads=heads)
    else:
        w, b = d.weight(c, 3 * heads * size), d.weight(3 * heads * size)
        made = d.op("com.microsoft.Attention", t, w, b, num_heads=heads)
    back = d.op("MatMul", made, d.weight(heads * size, c))
    scales = (d.weight(c), d.weight(c), d.weight(c))
    normed = d.op("com.microsoft.SkipLayerNormalization", back, t, *scales)
    untoken(d, d.op("com.microsoft.BiasGelu", normed, d.weight(c)), c)


def states(d: Drawing, x: str, c: int) -> None:
    """The last states of a cell, which starts from constant ones, as a gate."""
    sequence = d.op("Transpose", tokens(d, x, c), perm=[1, 0, 2])
    w, r, b = d.weight(1, 4 * c, c), d.weight(1, 4 * c, c), d.weight(1, 8 * c)
    start = (d.weight(1, 2, c), d.weight(1, 2, c))
    _, h, _ = d.op("LSTM", sequence, w, r, b, "", *start, outputs=3, hidden_size=c)
    gate = d.op("Unsqueeze", d.op("Squeeze", h, d.constant(np.array([0]))), d.constant(np.array([2, 3])))
    d.picture(d.op("Mul", x, d.op("Sigmoid", gate)), c)


def branches(d: Drawing, x: str, c: int) -> None:
    """A picture that the graph in a node reads."""
    name = f"v{len(d.lines)}_0"
    shape = f"float[2,{c},{SIDE},{SIDE}]"
    then = f"then_branch = t{name} () => ({shape} p{name}) {{ p{name} = Tanh ({x}) }}"
    other = f"else_branch = e{name} () => ({shape} q{name}) {{ q{name} = Neg ({x}) }}"
    d.lines.append(f"{name} = If <{then}, {other}> ({d.constant(np.bool_(True))})")
    d.picture(name, c)


EVEN = (transposed_groups, grouped, halves, shuffle, group_norm)
STEPS = (
    *(convolution, depthwise, grouped, transposed, residual, activation, prelu, arithmetic, batch_norm),
    *(instance_norm, group_norm, layer_norm, written_norm, squeeze_excite, concatenation, splitting, halves),
    *(
        slicing,
        gathering,
        shuffle,
        padding,
        tiling,
        pooling,
        space,
        means,
        written_attention,
        fused_attention,
    ),
    *(products, recurrent, quantized, transposed_groups, interpolation, along_space, over_space, poles),
    *(selection, shared_weights, quantized_weights, shapes, three_axes, windows, similarity),
    *(runtime_attention, states, branches),
)


@st.composite
def graphs(draw: st.DrawFn) -> ir.Model:
    """Draw a graph of one picture, whose results are as few channels as its input."""

    def choose(options: Any) -> Any:
        return draw(st.sampled_from(list(options)))

    d = Drawing(choose, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    convolution(d, "x", 3)
    for _ in range(draw(st.integers(2, 8))):
        step, (x, c) = choose(STEPS), choose(d.pictures[1:])
        if (step in EVEN and c % 2) or (step is three_axes and c % 4) or c < 2 or c > 24:
            continue
        step(d, x, c)
    outputs = [d.conv(x, c, 2) for x, c in d.pictures[-3:]]
    heads = ", ".join(f"float[2,2,{SIDE},{SIDE}] {name}" for name in outputs)
    body = "\n    ".join(d.lines)
    text = f"""<ir_version: 11, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float[2,3,{SIDE},{SIDE}] x) => ({heads}) {{
    {body}
    }}"""
    used = set(re.findall(r"\w+", body))  # one of several that were drawn to choose from
    tensors = [ir.tensor(array, name=name) for name, array in d.weights.items() if name in used]
    return ir.from_onnx_text(text, initializers=tensors)


def holds(model: ir.Model, share: float, seed: int) -> None:
    """Cut some channels of each group away, and compare with the original without them."""
    separate(model)
    groups = graphopt.channel_groups(model)
    assert len({group.name for group in groups}) == len(groups)
    rng, gone = np.random.default_rng(seed), groups.nothing()
    for group in groups:
        count = min(group.channels - 1, rng.binomial(group.channels, share))
        gone[rng.permutation(group.atoms)[:count]] = True
    gone = groups.spared(gone)
    small = graphopt.clone(model)
    cut(small, groups, gone)
    valid(small)
    found = graphopt.compare(masked(model, groups, gone), small, rtol=2e-4)
    assert found.ok, found.text()
    again = graphopt.channel_groups(small)
    assert (again.macs(), again.parameters()) == (groups.macs(gone), groups.parameters(gone))


common = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=150, **common)  # type: ignore[arg-type]
@given(graphs(), st.floats(0.2, 0.7), st.integers(0, 1000))
def test_what_is_cut_equals_what_is_masked(model: ir.Model, share: float, seed: int) -> None:
    holds(model, share, seed)


@pytest.mark.slow
@settings(max_examples=5000, **common)  # type: ignore[arg-type]
@given(graphs(), st.floats(0.2, 0.7), st.integers(0, 1000))
def test_what_is_cut_equals_what_is_masked_in_five_thousand_graphs(
    model: ir.Model, share: float, seed: int
) -> None:
    holds(model, share, seed)


# --- rules that are wrong ---------------------------------------------------------------------------------------------


def swapped(node: ir.Node, flow: Flow) -> None:
    """A Concat whose operands come in the other order."""
    first, second = (flow.of(value) for value in node.inputs)
    flow.give(node.outputs[0], [first[0], np.concatenate([second[1], first[1]]), *first[2:]])


def forgetful(node: ir.Node, flow: Flow) -> None:
    """A PRelu whose slopes are none of its business."""
    flow.give(node.outputs[0], flow.of(node.inputs[0]))


def careless(node: ir.Node, flow: Flow) -> None:
    """A mean over channels that does not say that it counts them."""
    x = flow.of(node.inputs[0])
    flow.give(node.outputs[0], [x[0], x[1][:1] * 0, *x[2:]])


def unmoved(node: ir.Node, flow: Flow) -> None:
    """A Transpose that moves nothing."""
    flow.give(node.outputs[0], flow.of(node.inputs[0]))


def half_normal(node: ir.Node, flow: Flow) -> None:
    """A BatchNormalization whose variances are none of its business."""
    x = flow.of(node.inputs[0])
    for value in node.inputs[1:4]:
        flow.vector(value, x[1])
    flow.give(node.outputs[0], x)


BROKEN = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,1,8,8] x) => (float[1,1,1,1] y)
<float[4,1,1,1] w1 = {1,-2,3,-4}, float[4,1,1,1] w2 = {8,7,-6,5}, float[8,1,1] slope = {1,2,3,4,5,6,7,8}, int64[1] axis = {1}, float[8] var = {1,2,3,4,5,6,7,8}, float[8,1] w3 = {1,1,1,1,1,1,1,1}>
{
   a = Conv (x, w1)
   b = Conv (x, w2)
   c = Concat <axis = 1> (a, b)
   d = PRelu (c, slope)
   m = ReduceMean (d, axis)
   e = Sub (d, m)
   n = BatchNormalization (e, var, var, var, var)
   t = Transpose <perm = [0, 2, 3, 1]> (n)
   p = MatMul (t, w3)
   y = ReduceSum (p)
}"""  # noqa: E501  (one graph)


@pytest.mark.parametrize(
    ("op_type", "rule"),
    [
        ("Concat", swapped),
        ("PRelu", forgetful),
        ("ReduceMean", careless),
        ("Transpose", unmoved),
        ("BatchNormalization", half_normal),
    ],
)
def test_a_broken_rule_is_caught(
    op_type: str, rule: Rule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where reproducers are written

    class Plugin:
        @staticmethod
        @graphopt.hookimpl
        def register_operators() -> dict[tuple[str, str], graphopt.OpInfo]:
            return {("", op_type): replace(BUILT_IN.get(("", op_type), graphopt.OpInfo()), channels=rule)}

    model = ir.from_onnx_text(BROKEN)
    assert graphopt.optimize(model, "prune-channels{round_to=1}", strict=True).report.passes[0].applied
    plugins.register(Plugin(), "broken-rule")
    try:
        with pytest.raises(graphopt.VerificationError, match=r"^prune-channels: "):
            graphopt.optimize(model, "prune-channels{round_to=1}", strict=True)
        result = graphopt.optimize(model, "prune-channels{round_to=1}")
    finally:
        plugins.unregister("broken-rule")
    assert result.report.passes[0].applied == []
    assert graphopt.compare(model, result.model).outputs[0].max_abs == 0
