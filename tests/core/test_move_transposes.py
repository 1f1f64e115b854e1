"""Transposes that move: random regions of operators by onnx's own numbers, and networks as Keras writes them."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import graphopt
from graphopt import pipeline
from graphopt.backends.session import create
from graphopt.testing import conformance, run, same, same_outputs, valid
from graphopt.text import from_text, to_text

EXAMPLES = int(os.environ.get("GRAPHOPT_EXAMPLES", "0"))
"""Set it to search further, at other places each time."""
MOVE, *TIDY = pipeline.parse(
    "move-transposes,infer-shapes,merge-transposes,eliminate-common,eliminate-dead"
).passes()


def transposed(model: ir.Model) -> int:
    """Count bytes moved by Transposes and in kernels, 4096 more for each; 64 for moving axes of size 1."""
    for step in TIDY:
        model, _, _ = run(step, model)
    total = 0
    for node in model.graph:
        x = node.inputs[0] if node.inputs else None
        if node.op_type in ("Transpose", "Softmax") and x is not None and x.shape is not None:
            shape = [dim if isinstance(dim, int) else 8 for dim in x.shape]
            cost = 4096 + 4 * math.prod(shape)
            if node.op_type == "Transpose":
                kept = [axis for axis in node.attributes["perm"].as_ints() if shape[axis] != 1]
                total += 64 if kept == sorted(kept) else cost
            elif node.attributes["axis"].as_int() % len(shape) != len(shape) - 1:
                total += 2 * cost
    return total


def initializer(name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
    )


# --- random regions ---------------------------------------------------------------------------------------------------


@dataclass
class Region:
    """A random graph of operators that let transposes pass, with transposes strewn between them."""

    random: Random
    opset: int
    nodes: list[ir.Node] = field(default_factory=list)
    constants: list[ir.Value] = field(default_factory=list)
    inputs: list[ir.Value] = field(default_factory=list)
    values: list[tuple[ir.Value, tuple[int, ...]]] = field(default_factory=list)

    def op(self, name: str, inputs: list[Any], shapes: list[tuple[int, ...]], **attributes: Any) -> None:
        outputs = [ir.Value(name=f"v{len(self.nodes)}_{i}") for i in range(len(shapes))]
        attrs = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node("", name, inputs, attrs, outputs=outputs))
        self.values += zip(outputs, shapes, strict=True)

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        self.constants.append(initializer(f"c{len(self.constants)}", array))
        return self.constants[-1]

    def ints(self, values: list[int]) -> ir.Value:
        return self.constant(np.array(values, np.int64))

    def pick(self, rank: int = 0) -> tuple[ir.Value, tuple[int, ...]]:
        found = [v for v in self.values if len(v[1]) >= rank]
        return found[-1 - min(int(self.random.expovariate(0.5)), len(found) - 1)]

    def transpose(self) -> None:
        x, shape = self.pick(2)
        perm = self.random.sample(range(len(shape)), len(shape))
        self.op("Transpose", [x], [tuple(shape[i] for i in perm)], perm=perm)

    def unary(self) -> None:
        x, shape = self.pick()
        self.op(self.random.choice(["Relu", "Neg", "Abs", "Identity", "Sigmoid"]), [x], [shape])

    def binary(self) -> None:
        x, shape = self.pick(1)
        kind = self.random.random()
        if kind < 0.4:  # a constant, of any rank, that is broadcast
            some = [
                dim if self.random.random() < 0.6 else 1
                for dim in shape[self.random.randint(0, len(shape)) :]
            ]
            other = self.constant(
                np.array(self.random.choices([1.0, 2.0, -1.0], k=math.prod(some)), np.float32).reshape(some)
            )
            self.op(self.random.choice(["Add", "Mul", "Max"]), self.random.sample([x, other], 2), [shape])
            return
        for y, with_shape in self.random.sample(self.values, len(self.values)):
            try:
                result = np.broadcast_shapes(shape, with_shape)
            except ValueError:
                continue
            if math.prod(result) < 2000:
                self.op(self.random.choice(["Add", "Sub", "Min"]), [x, y], [tuple(result)])
                return

    def concat(self) -> None:
        x, shape = self.pick(1)
        same = [v for v in self.values if v[1] == shape]
        axis = self.random.randrange(len(shape))
        parts = [x, self.random.choice(same)[0]]
        if shape[axis] < 12:
            result = (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
            self.op("Concat", parts, [result], axis=axis - self.random.choice([0, len(shape)]))

    def reduce(self) -> None:
        x, shape = self.pick(1)
        axes = sorted(self.random.sample(range(len(shape)), self.random.randint(1, len(shape))))
        keep = self.random.randint(0, 1)
        result = tuple(1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes)
        name = self.random.choice(["ReduceMax", "ReduceMin", "ReduceSum"])
        if self.opset >= 18 or name == "ReduceSum":
            given = [] if len(axes) == len(shape) and self.random.random() < 0.5 else [self.ints(axes)]
            self.op(name, [x, *given], [result], keepdims=keep)
        else:
            self.op(name, [x], [result], keepdims=keep, axes=axes)

    def slice_(self) -> None:
        x, shape = self.pick(1)
        axes = self.random.sample(range(len(shape)), self.random.randint(1, len(shape)))
        ends = [self.random.randint(1, shape[axis]) for axis in axes]
        result = list(shape)
        for axis, end in zip(axes, ends, strict=True):
            result[axis] = end
        self.op("Slice", [x, self.ints([0] * len(axes)), self.ints(ends), self.ints(axes)], [tuple(result)])

    def pad(self) -> None:
        x, shape = self.pick(1)
        if math.prod(shape) < 500:
            pads = [self.random.randint(0, 1) for _ in range(2 * len(shape))]
            result = tuple(d + pads[i] + pads[i + len(shape)] for i, d in enumerate(shape))
            self.op("Pad", [x, self.ints(pads)], [result])

    def split(self) -> None:
        x, shape = self.pick(1)
        axis = self.random.randrange(len(shape))
        if shape[axis] > 1:
            first = self.random.randint(1, shape[axis] - 1)
            parts = [(*shape[:axis], n, *shape[axis + 1 :]) for n in (first, shape[axis] - first)]
            self.op("Split", [x, self.ints([first, shape[axis] - first])], parts, axis=axis)

    def softmax(self) -> None:
        x, shape = self.pick(1)
        self.op("Softmax", [x], [shape], axis=self.random.randrange(-len(shape), len(shape)))

    def squeeze(self) -> None:
        x, shape = self.pick(2)
        ones = [i for i, d in enumerate(shape) if d == 1]
        if ones:
            axes = self.random.sample(ones, self.random.randint(1, len(ones)))
            self.op("Squeeze", [x, self.ints(axes)], [tuple(d for i, d in enumerate(shape) if i not in axes)])

    def unsqueeze(self) -> None:
        x, shape = self.pick()
        if len(shape) < 5:
            axis = self.random.randint(0, len(shape))
            self.op("Unsqueeze", [x, self.ints([axis])], [(*shape[:axis], 1, *shape[axis:])])

    def reshape(self) -> None:
        x, shape = self.pick(1)
        target = [d for d in shape if d != 1]
        for _ in range(self.random.randint(0, 5 - len(target))):
            target.insert(self.random.randint(0, len(target)), 1)
        self.op("Reshape", [x, self.ints(target)], [tuple(target)])

    def gather(self) -> None:
        x, shape = self.pick(2)
        axis = self.random.randrange(len(shape))
        if self.random.random() < 0.5:
            index = self.constant(np.array(shape[axis] - 1, np.int64))
            self.op("Gather", [x, index], [(*shape[:axis], *shape[axis + 1 :])], axis=axis)
        else:
            self.op("Gather", [x, self.ints([0, 0])], [(*shape[:axis], 2, *shape[axis + 1 :])], axis=axis)

    def argmax(self) -> None:
        x, shape = self.pick(1)
        axis, keep = self.random.randrange(len(shape)), self.random.randint(0, 1)
        result = tuple(1 if i == axis else d for i, d in enumerate(shape) if keep or i != axis)
        self.op("ArgMax", [x], [result], axis=axis, keepdims=keep)
        value = self.values.pop()
        self.op("Cast", [value[0]], [result], to=1)

    def fixed(self) -> None:
        """Append what no transpose passes."""
        x, shape = self.pick(1)
        if math.prod(shape) > 0:
            self.op("Reshape", [x, self.ints([-1])], [(math.prod(shape),)])

    def shape(self) -> None:
        """Append a Shape that is used as the shape of something as large."""
        x, shape = self.pick(1)
        self.op("Shape", [x], [(len(shape),)])
        size = self.values.pop()
        flat = self.constant(np.arange(math.prod(shape), dtype=np.float32))
        self.op("Reshape", [flat, size[0]], [shape])

    def model(self) -> ir.Model:
        read = {value for node in self.nodes for value in node.inputs}
        outputs = [v for v, _ in self.values if v not in read and v not in self.inputs]
        outputs += [
            v for v, _ in self.values if v in read and v not in self.inputs and self.random.random() < 0.1
        ]
        for value in outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            value.shape = ir.Shape([None] * len(dict(self.values)[value]))
        return ir.Model(
            ir.Graph(
                self.inputs,
                outputs,
                nodes=self.nodes,
                initializers=self.constants,
                opset_imports={"": self.opset},
                name="region",
            ),
            ir_version=8,
        )


KINDS = (
    "transpose transpose transpose transpose unary unary binary binary binary concat reduce slice_ pad split softmax "
    "squeeze unsqueeze reshape gather argmax fixed shape"
).split()


def region(seed: int) -> tuple[ir.Model, dict[str, Any]]:
    random = Random(seed)
    made = Region(random, random.choice([13, 17, 18, 20]))
    feeds = {}
    dynamic = random.random() < 0.5
    for i in range(random.randint(1, 3)):
        shape = tuple(random.choice([1, 2, 3, 4]) for _ in range(random.randint(2, 5)))
        names = [f"D{d}" if dynamic and random.random() < 0.5 else d for d in shape]
        value = ir.Value(name=f"x{i}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(names))
        made.inputs.append(value)
        made.values.append((value, shape))
        # few different numbers that sums keep exactly, so that no order of adding shows
        feeds[f"x{i}"] = np.random.default_rng(seed + i).integers(-4, 5, shape).astype(np.float32)
    for _ in range(random.randint(3, 16)):
        getattr(made, random.choice(KINDS))()
    return made.model(), feeds


@settings(
    max_examples=EXAMPLES or 400,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**32))
def test_a_random_region_computes_the_same_and_moves_no_more(seed: int) -> None:
    before, feeds = region(seed)
    if not before.graph.outputs:
        return
    note(to_text(before))
    after, entry, _ = run(MOVE, before)
    note(to_text(after))
    valid(after)
    want, got = (create(m, optimize="none").run(None, feeds) for m in (before, after))
    for a, b in zip(want, got, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)
    again, twice, _ = run(MOVE, after)
    same("result of a second run", to_text(after), to_text(again))
    assert not twice.applied
    if entry.applied:
        assert transposed(after) <= transposed(before)


# --- networks as Keras writes them ------------------------------------------------------------------------------------


class Keras:
    """Writes a network channels last, each convolution between two Transposes."""

    def __init__(self, opset: int = 17) -> None:
        self.random = np.random.default_rng(0)
        self.tape = ir.tape.Tape()
        self.opset = opset
        self.constants: list[ir.Value] = []

    def op(self, name: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.tape.op(name, inputs, attributes)

    def constant(self, array: Any, kind: Any = np.float32) -> ir.Value:
        self.constants.append(initializer(f"c{len(self.constants)}", np.asarray(array, kind)))
        return self.constants[-1]

    def weight(self, *shape: int) -> ir.Value:
        return self.constant(self.random.standard_normal(shape) / np.sqrt(max(1, math.prod(shape[1:]))))

    def conv(self, x: ir.Value, i: int, o: int, k: int = 3, stride: int = 1, group: int = 1) -> ir.Value:
        t = self.op("Transpose", x, perm=[0, 3, 1, 2])
        same = {"strides": [stride, stride], "group": group, "auto_pad": "SAME_UPPER"}
        c = self.op("Conv", t, self.weight(o, i // group, k, k), **same)
        return self.op("Transpose", c, perm=[0, 2, 3, 1])

    def norm(self, x: ir.Value, c: int) -> ir.Value:
        x = self.op("Mul", x, self.constant(self.random.uniform(0.5, 1.5, c)))
        return self.op("Add", x, self.constant(self.random.standard_normal(c) / 4))

    def relu6(self, x: ir.Value) -> ir.Value:
        return self.op("Min", self.op("Max", x, self.constant(0)), self.constant(6))

    def mean(self, x: ir.Value, axes: list[int], keep: int) -> ir.Value:
        if self.opset < 18:
            return self.op("ReduceMean", x, axes=axes, keepdims=keep)
        return self.op("ReduceMean", x, self.constant(axes, np.int64), keepdims=keep)

    def model(self, shape: list[Any], y: ir.Value, made: list[Any]) -> ir.Model:
        y.type, y.shape, y.name = ir.TensorType(ir.DataType.FLOAT), ir.Shape(made), "y"
        nodes = list(self.tape.nodes)
        image = next(v for node in nodes for v in node.inputs if v is not None and v.name == "image")
        image.shape, image.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        for i, node in enumerate(nodes):
            for j, value in enumerate(node.outputs):
                value.name = value.name or f"v{i}_{j}"
        graph = ir.Graph(
            [image],
            [y],
            nodes=nodes,
            initializers=self.constants,
            opset_imports={"": self.opset},
            name="keras",
        )
        return ir.Model(graph, ir_version=8)


def mobilenet(opset: int) -> ir.Model:
    k = Keras(opset)
    x = k.op("Sub", k.op("Mul", ir.Value(name="image"), k.constant(1 / 127.5)), k.constant(1))
    x, i = k.relu6(k.norm(k.conv(x, 3, 8, 3, 2), 8)), 8
    for o, stride, expand in [(4, 1, 1), (6, 2, 6), (6, 1, 6), (8, 2, 6), (8, 1, 6)]:
        y = k.relu6(k.norm(k.conv(x, i, i * expand, 1), i * expand))
        y = k.relu6(k.norm(k.conv(y, i * expand, i * expand, 3, stride, i * expand), i * expand))
        y = k.norm(k.conv(y, i * expand, o, 1), o)
        x, i = k.op("Add", x, y) if stride == 1 and i == o else y, o
    x = k.mean(x, [1, 2], 0)
    return k.model(["N", 32, 32, 3], k.op("Softmax", k.op("MatMul", x, k.weight(8, 10)), axis=-1), ["N", 10])


def resnet(opset: int) -> ir.Model:
    """Padding, a pool, residuals with squeeze-and-excite, a dense block, a split and a shuffle, a map as output."""
    k = Keras(opset)
    x = k.op("Pad", ir.Value(name="image"), k.constant([0, 3, 3, 0, 0, 3, 3, 0], np.int64))
    x = k.op("Relu", k.norm(k.conv(x, 3, 8, 7, 2), 8))
    x = k.op("Transpose", x, perm=[0, 3, 1, 2])
    x = k.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = k.op("Transpose", x, perm=[0, 2, 3, 1])
    for _ in range(2):
        y = k.norm(k.conv(k.op("Relu", k.norm(k.conv(x, 8, 8), 8)), 8, 8), 8)
        m = k.op("Relu", k.norm(k.conv(k.mean(y, [1, 2], 1), 8, 4, 1), 4))
        y = k.op("Mul", y, k.op("Sigmoid", k.conv(m, 4, 8, 1)))
        x = k.op("Relu", k.op("Add", x, y))
    x = k.op("Concat", x, k.op("Relu", k.norm(k.conv(x, 8, 4), 4)), axis=3)
    a, b = k.tape.op_multi_out("Split", [x, k.constant([5, 7], np.int64)], {"axis": 3}, num_outputs=2)
    x = k.conv(k.op("Concat", b, a, axis=-1), 12, 5, 1)
    return k.model(["N", 16, 16, 3], k.op("Softmax", x, axis=3), ["N", 4, 4, 5])


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize(("make", "left"), [(mobilenet, 1), (resnet, 2)])
def test_a_keras_network_keeps_the_transposes_at_its_ends(make: Any, left: int, opset: int) -> None:
    before = make(opset)
    result = graphopt.optimize(before, "speed,move-transposes,speed", strict=True)
    assert result.report.verified
    found = Counter(node.op_type for node in result.model.graph)
    assert found["Transpose"] == left
    convolutions = [node for node in result.model.graph if node.op_type == "Conv"]
    assert all(len(node.inputs) == 3 for node in convolutions if make is mobilenet), "norms are folded"


# --- single operators -------------------------------------------------------------------------------------------------


def around(body: str, shape: str = "2,3,4,5", opset: int = 20, constants: str = "") -> ir.Model:
    """Return ``body``, which makes ``b`` of ``a``, between a Transpose and its inverse."""
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
        main (float[{shape}] x) => (float[A,B,C,D] y) <{constants}>
        {{ a = Transpose <perm = [0, 2, 3, 1]> (x) {body} y = Transpose <perm = [0, 3, 1, 2]> (b) }}"""
    )


MOVES = {
    "cumsum": ("b = CumSum <reverse = 1> (a, k)", "int64 k = {-1}"),
    "tile": ("b = Tile (a, k)", "int64[4] k = {1,2,1,3}"),
    "topk": ("b, i = TopK <axis = 2, largest = 0> (a, k)", "int64[1] k = {2}"),
    "lp": ("b = LpNormalization <axis = 1, p = 1> (a)", ""),
    "prelu": ("b = PRelu (a, k)", "float[3] k = {1,2,3}"),
    "clip": ("b = Clip (a, k, l)", "float k = {-0.25}, float l = {0.5}"),
    "where": ("c = Less (a, k) b = Where (c, a, l)", "float k = {0.25}, float[3] l = {1,2,3}"),
    "nearest": ('b = Resize <mode = "nearest"> (a, , k)', "float[4] k = {1,2,1,3}"),
    "linear": ('b = Resize <mode = "linear"> (a, , k)', "float[4] k = {1,2,2,1}"),
    "sizes": ('b = Resize <mode = "nearest"> (a, , , k)', "int64[4] k = {2,8,5,3}"),
    "pads with axes": ("b = Pad (a, k, v, l)", "int64[4] k = {1,0,0,2}, float v = {3}, int64[2] l = {-1,1}"),
    "reflected": ('b = Pad <mode = "reflect"> (a, k)', "int64[8] k = {0,1,0,2,0,0,1,0}"),
    "slice backwards": (
        "b = Slice (a, k, l, m, n)",
        "int32[2] k = {-1,0}, int32[2] l = {-9,9}, int32[2] m = {3,1}, int32[2] n = {-1,2}",
    ),
    "slice without axes": ("b = Slice (a, k, l)", "int64[3] k = {0,1,0}, int64[3] l = {2,3,4}"),
    "mean of several": ("b = Mean (a, k, l)", "float[5,1] k = {1,2,3,4,5}, float[1,1,1,1] l = {4}"),
    "quick gelu": ("b = com.microsoft.QuickGelu <alpha = 1.5> (a)", ""),
    "cast": ("c = Cast <to = 11> (a) b = Cast <to = 1> (c)", ""),
    "argmax": ("c = ArgMax <axis = 2, keepdims = 1> (a) b = Cast <to = 1> (c)", ""),
    "log softmax": ("b = LogSoftmax <axis = 1> (a)", ""),
}


@pytest.mark.parametrize("name", MOVES)
def test_an_operator_lets_transposes_cancel(name: str) -> None:
    body, constants = MOVES[name]
    before = around(body, constants=constants)
    after, _, _ = run(MOVE, before)
    assert "Transpose" not in {node.op_type for node in after.graph}
    valid(after)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    want, got = (create(m, optimize="none").run(None, {"x": x}) for m in (before, after))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6, atol=1e-6)
    again, twice, _ = run(MOVE, after)
    assert not twice.applied
    same("result of a second run", to_text(after), to_text(again))


STAYS = {
    "linear over other axes": ('b = Resize <mode = "linear"> (a, , k)', "float[4] k = {1,1,2,2}", 20),
    "bias along the last axis": ("b = com.microsoft.FastGelu (a, k)", "float[3] k = {1,2,3}", 20),
    "layer norm": ("b = LayerNormalization (a, k)", "float[3] k = {1,2,3}", 20),
    "softmax to the end": ("b = Softmax <axis = 2> (a)", "", 12),
    "average pool": ("b = AveragePool <kernel_shape = [1, 1]> (a)", "", 20),
    "norm over channels": ("b = BatchNormalization (a, k, k, k, k)", "float[4] k = {1,2,3,4}", 20),
}


@pytest.mark.parametrize("name", STAYS)
def test_an_operator_that_fixes_its_axes_is_left_alone(name: str) -> None:
    body, constants, opset = STAYS[name]
    _, entry, _ = run(MOVE, around(body, opset=opset, constants=constants))
    assert not entry.applied


def test_an_old_softmax_moves_where_its_axes_stay_together() -> None:
    """By onnxruntime: onnx's evaluator takes every Softmax for one of opset 13."""
    before = from_text(
        """<ir_version: 7, opset_import: ["" : 12]>
        main (float[2,3,4] x) => (float[2,3,4] y)
        { a = Transpose <perm = [0, 2, 1]> (x) b = Softmax <axis = 1> (a) y = Transpose <perm = [0, 2, 1]> (b) }"""
    )
    after, _, _ = run(MOVE, before)
    assert [node.op_type for node in after.graph] == ["Softmax"]
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    want, got = (create(m, optimize="none").run(None, {"x": x}) for m in (before, after))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)


def test_special_numbers_stay_as_they_are() -> None:
    before = around("c = Mul (a, k) d = Neg (c) b = Add (d, d)", constants="float[3] k = {1,-2,0}")
    x = np.resize(np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45], np.float32), (2, 3, 4, 5))
    after, entry, _ = run(MOVE, before)
    assert entry.applied
    want, got = (create(m, optimize="none").run(None, {"x": x}) for m in (before, after))
    np.testing.assert_array_equal(got[0].view(np.uint32), want[0].view(np.uint32))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_batch_of_nothing_goes_through(n: int) -> None:
    before = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        main (float[N,6,1,4] x) => (float[N,4,1,6] y, float[N,1,6,4] z) <int64[3] s = {0, 4, 6}, int64[1] one = {2}>
        { t = Transpose <perm = [0, 3, 1, 2]> (x) r = Reshape (t, s) q = Relu (r) y = Unsqueeze (q, one)
          z = Transpose <perm = [0, 2, 1, 3]> (x) }"""
    )
    after, _, _ = run(MOVE, before)
    same_outputs(before, after, [{"x": np.ones((n, 6, 1, 4), np.float32)}])
    assert "Transpose" in {node.op_type for node in after.graph}


def test_two_unknown_sizes_that_change_places_are_no_reshape() -> None:
    before = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        main (float[N,1,M,1] x) => (float[1,N,1,M] y) { y = Transpose <perm = [1, 0, 3, 2]> (x) }"""
    )
    after, entry, _ = run(MOVE, before)
    assert not entry.applied and after.graph[0].op_type == "Transpose"


def test_a_swap_before_a_matmul_costs_nothing() -> None:
    """Kernels read the last two axes swapped: one transpose of all is not taken apart for it."""
    before = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        main (float[4,64,2,8,32] x) => (float[4,8,64,64] y) <int64 zero = {0}, int64 one = {1}>
        { t = Transpose <perm = [2, 0, 3, 1, 4]> (x) q = Gather (t, zero) k = Gather (t, one)
          u = Transpose <perm = [0, 1, 3, 2]> (k) y = MatMul (q, u) }"""
    )
    _, entry, _ = run(MOVE, before)
    assert not entry.applied


def test_it_conforms() -> None:
    conformance(MOVE, [mobilenet(17), resnet(13)])


def test_a_value_of_the_graph_around_is_transposed_inside() -> None:
    before = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        main (bool go, float[2,3,4] x) => (float[2,4,3] y)
        { t = Transpose <perm = [0, 2, 1]> (x) r = Relu (t) v = Transpose <perm = [0, 2, 1]> (r) w = Neg (v)
          y = If (go) <then_branch = g () => (float[2,4,3] p) { p = Abs (r) },
                       else_branch = h () => (float[2,4,3] q) { q = Transpose <perm = [0, 2, 1]> (w) }> }"""
    )
    after, entry, _ = run(MOVE, before)
    assert entry.applied
    valid(after)
    same_outputs(before, after)
