"""Whatever exact passes do to a random small graph, in whatever order, it stays valid and computes the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import graphopt
from graphopt import Effect, plugins, query
from graphopt.backends.session import create
from graphopt.model import clone
from graphopt.testing import same, valid
from graphopt.text import to_text

EXAMPLES = int(os.environ.get("GRAPHOPT_EXAMPLES", "0"))
"""Set it to search further, at other places each time."""
CHECKED = settings(
    max_examples=EXAMPLES or 300,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
FLOATS = (np.float32, np.float16, np.float64)
INTEGERS = (np.int64, np.int32, np.int8, np.uint8, np.bool_)
OPEN = 2**63 - 1


@dataclass(frozen=True)
class Tensor:
    """A value of the graph, the array that it has a shape and type of, and whether rounding went into it."""

    value: ir.Value
    array: np.ndarray[Any, Any]
    rounded: bool = False

    @property
    def rank(self) -> int:
        return self.array.ndim


@dataclass
class Graph:
    """A random graph in the making. Each ``add_*`` method appends one operator on values that there are."""

    random: Random
    opset: int
    inputs: list[Tensor] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)
    constants: list[ir.Value] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    outer: Graph | None = None
    count: list[int] = field(default_factory=lambda: [0])

    # --- drawing ---

    def int(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def flag(self) -> bool:
        return self.random.random() < 0.5

    def one_of(self, choices: Sequence[Any]) -> Any:
        return self.random.choice(choices)

    def some(self, choices: Sequence[int], count: int) -> list[int]:
        return self.random.sample(choices, count)

    def pick(self, where: Callable[[Tensor], bool] = lambda t: True) -> Tensor | None:
        """Choose a value, the latest ones preferred: chains are what passes look for."""
        found = [t for t in self.tensors if where(t)]
        if not found:
            return None
        return found[-1] if self.random.random() < 0.7 else self.one_of(found)

    def axis(self, axis: int, rank: int) -> int:
        """Write an axis, at times counted from the back."""
        return axis - rank if self.opset >= 13 and self.flag() else axis

    # --- recording ---

    def name(self) -> str:
        self.count[0] += 1
        return f"v{self.count[0]}"

    def constant(self, array: Any) -> ir.Value:
        value = ir.Value(name=self.name(), const_value=ir.tensor(np.asarray(array)))
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(np.shape(array))
        self.constants.append(value)
        return value

    def add(
        self,
        op_type: str,
        inputs: Sequence[Tensor | ir.Value | None],
        *arrays: np.ndarray[Any, Any],
        rounded: bool = False,
        **attributes: Any,
    ) -> None:
        values = [i.value if isinstance(i, Tensor) else i for i in inputs]
        outputs = [ir.Value(name=self.name()) for _ in arrays]
        self.nodes.append(ir.node(op_type, values, attributes, outputs=outputs))
        rounded = rounded or any(i.rounded for i in inputs if isinstance(i, Tensor))
        self.tensors += [Tensor(v, np.asarray(a), rounded) for v, a in zip(outputs, arrays, strict=True)]

    def add_by_input_or_attribute(
        self, op_type: str, x: Tensor, array: np.ndarray[Any, Any], since: int, **given: list[int]
    ) -> None:
        """Add an operator whose arguments became inputs at opset ``since``."""
        if self.opset < since:
            self.add(op_type, [x], array, **given)
        else:
            self.add(op_type, [x, *(self.constant(np.array(v, np.int64)) for v in given.values())], array)

    # --- operators that move elements ---

    def add_identity(self) -> None:
        x = self.pick()
        self.add("Identity", [x], x.array)

    def add_transpose(self) -> None:
        x = self.pick()
        if self.flag():
            self.add("Transpose", [x], x.array.transpose())
        else:
            perm = self.some(range(x.rank), x.rank)
            self.add("Transpose", [x], x.array.transpose(perm), perm=ir.AttrInt64s("perm", perm))

    def add_reshape(self) -> None:
        x = self.pick()
        sizes = (
            _factors(self, x.array.size) if x.array.size else [0, *_factors(self, 6)][:: self.one_of([1, -1])]
        )
        written = list(sizes)
        for i, size in enumerate(sizes):
            if i < x.rank and x.array.shape[i] == size and self.flag():
                written[i] = 0
        if x.array.size and sizes and self.flag():
            written[self.int(0, len(sizes) - 1)] = -1
        literal = any(
            w == 0 and (i >= x.rank or x.array.shape[i] != 0) for i, w in enumerate(written) if sizes[i] == 0
        )
        if literal and (self.opset < 14 or any(w == 0 and s for w, s in zip(written, sizes, strict=True))):
            return
        attributes = {"allowzero": 1} if literal else {}
        self.add(
            "Reshape", [x, self.constant(np.array(written, np.int64))], x.array.reshape(sizes), **attributes
        )

    def add_flatten(self) -> None:
        x = self.pick()
        axis = self.int(0, x.rank)
        before, after = (int(np.prod(s)) for s in (x.array.shape[:axis], x.array.shape[axis:]))
        self.add("Flatten", [x], x.array.reshape(before, after), axis=axis)

    def add_squeeze(self) -> None:
        x = self.pick(lambda t: 1 in t.array.shape)
        if x is None:
            return
        units = [i for i, size in enumerate(x.array.shape) if size == 1]
        if self.flag() and self.flag():
            self.add("Squeeze", [x], x.array.squeeze())
            return
        axes = self.some(units, self.int(1, len(units)))
        axes = axes if self.opset >= 13 else sorted(axes)
        written = [self.axis(axis, x.rank) for axis in axes]
        self.add_by_input_or_attribute("Squeeze", x, x.array.squeeze(tuple(axes)), 13, axes=written)

    def add_unsqueeze(self) -> None:
        x = self.pick(lambda t: t.rank < 5)
        count = self.int(1, 2)
        axes = self.some(range(x.rank + count), count)
        axes = axes if self.opset >= 13 else sorted(axes)
        written = [self.axis(axis, x.rank + count) for axis in axes]
        self.add_by_input_or_attribute("Unsqueeze", x, np.expand_dims(x.array, tuple(axes)), 13, axes=written)

    def add_slice(self) -> None:
        x = self.pick(lambda t: t.rank > 0)
        if x is None:
            return
        axes = self.some(range(x.rank), min(x.rank, self.int(1, 2)))
        given: dict[str, list[int]] = {"starts": [], "ends": [], "axes": axes}
        steps, cut = [], [slice(None)] * x.rank
        for axis in axes:
            n = x.array.shape[axis]
            step = self.one_of([1, 1, 1, 2, -1, -2]) if self.opset >= 10 else 1
            start = self.int(-n, n + 1) if step < 0 else self.int(-n - 1, n + 1)
            end = self.one_of([self.int(-n - 1, n + 1), OPEN if step > 0 else -OPEN - 1])
            given["starts"].append(start)
            given["ends"].append(end)
            steps.append(step)
            cut[axis] = slice(start, end, step)
        given["axes"] = [self.axis(axis, x.rank) for axis in axes]
        if self.opset >= 10 and set(steps) != {1}:
            given["steps"] = steps
        self.add_by_input_or_attribute("Slice", x, x.array[tuple(cut)], 10, **given)

    def add_split(self) -> None:
        x = self.pick(lambda t: t.rank > 0 and max(t.array.shape) > 1)
        if x is None:
            return
        axis = self.one_of([i for i, size in enumerate(x.array.shape) if size > 1])
        first = self.int(1, x.array.shape[axis] - 1)
        parts = np.split(x.array, [first], axis)
        sizes = [part.shape[axis] for part in parts]
        if self.opset < 13:
            self.add("Split", [x], *parts, axis=axis, split=sizes)
        else:
            self.add(
                "Split", [x, self.constant(np.array(sizes, np.int64))], *parts, axis=self.axis(axis, x.rank)
            )
        if self.flag():
            joined = self.tensors[-2:] if self.flag() else self.tensors[:-3:-1]
            self._concat(joined, axis)

    def add_concat(self) -> None:
        x = self.pick(lambda t: t.rank > 0 and 0 < t.array.size < 200)
        if x is None:
            return
        axis = self.int(0, x.rank - 1)
        shape = [size for i, size in enumerate(x.array.shape) if i != axis]

        def fits(t: Tensor) -> bool:
            rest = [size for i, size in enumerate(t.array.shape) if i != axis]
            return (
                t.array.dtype == x.array.dtype and t.rank == x.rank and rest == shape and t.array.size < 200
            )

        parts: list[Tensor] = [x]
        for _ in range(self.int(0, 3)):
            if self.flag():
                size = [self.int(1, 2) if i == axis else n for i, n in enumerate(x.array.shape)]
                array = np.arange(np.prod(size)).reshape(size).astype(x.array.dtype)
                parts.append(Tensor(self.constant(array), array))
            else:
                other = self.pick(fits)
                parts.insert(self.int(0, len(parts)), other if other is not None else x)
        self._concat(parts, axis)

    def _concat(self, parts: Sequence[Tensor], axis: int) -> None:
        written = self.axis(axis, parts[0].rank)
        self.add("Concat", list(parts), np.concatenate([part.array for part in parts], axis), axis=written)

    def add_gather(self) -> None:
        x = self.pick(lambda t: t.rank > 0 and min(t.array.shape) > 0)
        if x is None:
            return
        axis = self.int(0, x.rank - 1)
        low = -x.array.shape[axis] if self.opset >= 11 else 0
        indices = np.array(self.one_of([low, 0, [0], [x.array.shape[axis] - 1, low]]), np.int64)
        gathered = np.take(x.array, indices, axis)
        self.add("Gather", [x, self.constant(indices)], gathered, axis=self.axis(axis, x.rank))

    # --- operators that compute ---

    def add_cast(self) -> None:
        x = self.pick()
        kinds = FLOATS if x.rounded else FLOATS + INTEGERS
        kind = np.dtype(self.one_of(kinds))
        if x.array.dtype.kind == "f" and kind.kind in "iu":
            kind = np.dtype(np.int64)
        to = ir.DataType.from_numpy(kind)
        self.add("Cast", [x], x.array.astype(kind), rounded=x.rounded, to=int(to))

    def add_unary(self) -> None:
        x = self.pick(lambda t: t.array.dtype in (np.float32, np.int64, np.int32))
        if x is not None:
            op_type = self.one_of(["Neg", "Abs", "Relu"]) if x.array.dtype == np.float32 else "Neg"
            self.add(op_type, [x], x.array)

    def add_binary(self) -> None:
        x = self.pick(lambda t: t.array.dtype in (np.float32, np.int64))
        if x is None:
            return
        other = self.pick(lambda t: t.array.dtype == x.array.dtype and t.array.shape == x.array.shape)
        if other is None or self.flag():
            number = np.array(self.one_of([0, 1, 2, [1], [[3]]]), x.array.dtype)
            other = Tensor(self.constant(number), number)
        op_type = self.one_of(["Add", "Sub", "Mul"]) if other in self.tensors else self.one_of(["Add", "Mul"])
        if op_type == "Mul" and other in self.tensors:
            op_type = "Add"
        self.add(op_type, [x, other], np.broadcast_arrays(x.array, other.array)[0])

    def add_matmul(self) -> None:
        x = self.pick(lambda t: t.array.dtype == np.float32 and t.rank == 2 and min(t.array.shape) > 0)
        if x is None:
            return
        rows, inner = x.array.shape
        if self.flag():
            w = self._weights(inner, self.int(1, 3))
            self.add("MatMul", [x, w], np.zeros((rows, w.shape[1]), np.float32), rounded=True)
            return
        a, b = self.flag(), self.flag()
        inner, rows = (rows, inner) if a else (inner, rows)
        columns = self.int(1, 3)
        inputs = [x, self._weights(*((columns, inner) if b else (inner, columns)))]
        inputs += [self._weights(columns)] if self.opset < 11 or self.flag() else []
        attributes = {
            "transA": int(a),
            "transB": int(b),
            "alpha": self.one_of([1.0, 0.5]),
            "beta": self.one_of([1.0, 2.0]),
        }
        self.add("Gemm", inputs, np.zeros((rows, columns), np.float32), rounded=True, **attributes)

    def add_convolution(self) -> None:
        x = self.pick(lambda t: t.array.dtype == np.float32 and t.rank == 4 and min(t.array.shape) > 0)
        if x is None:
            return
        n, channels, *size = x.array.shape
        group = channels if self.flag() else 1
        outputs = group * self.int(1, 2)
        kernel = [self.int(1, min(s, 2)) for s in size]
        pads = [self.int(0, 1) * (k > 1) for k in kernel] * 2
        size = [s + 2 * p - k + 1 for s, k, p in zip(size, kernel, pads, strict=False)]
        inputs = [x, self._weights(outputs, channels // group, *kernel)]
        inputs += [self._weights(outputs)] if self.flag() else []
        made = np.zeros((n, outputs, *size), np.float32)
        self.add("Conv", inputs, made, rounded=True, group=group, pads=pads, kernel_shape=kernel)
        if self.flag():
            self.add_batchnorm()

    def add_batchnorm(self) -> None:
        x = self.pick(lambda t: t.array.dtype == np.float32 and t.rank >= 2 and min(t.array.shape) > 0)
        if x is not None:
            channels = x.array.shape[1]
            given = [self._weights(channels) for _ in range(3)] + [
                self.constant(np.arange(1, channels + 1, dtype=np.float32))
            ]
            self.add(
                "BatchNormalization", [x, *given], x.array, rounded=True, epsilon=self.one_of([1e-5, 0.5])
            )

    def add_pad_and_pool(self) -> None:
        x = self.pick(lambda t: t.array.dtype == np.float32 and t.rank == 4 and min(t.array.shape) > 0)
        if x is None:
            return
        pads = [0, 0, self.int(0, 1), self.int(0, 1), 0, 0, self.int(0, 1), self.int(0, 1)]
        padded = np.pad(x.array, list(zip(pads[:4], pads[4:], strict=True)))
        if self.opset < 11:
            self.add("Pad", [x], padded, pads=pads, mode="constant")
        else:
            self.add("Pad", [x, self.constant(np.array(pads, np.int64))], padded)
        kernel = [min(2, s) for s in padded.shape[2:]]
        pooled = padded[:, :, : padded.shape[2] - kernel[0] + 1, : padded.shape[3] - kernel[1] + 1]
        kind = self.one_of(["", "MaxPool", "AveragePool"])
        if kind:
            self.add(kind, [self.tensors[-1]], pooled, rounded=kind == "AveragePool", kernel_shape=kernel)

    def _weights(self, *shape: int) -> ir.Value:
        count = int(np.prod(shape))
        return self.constant((np.arange(count) % 5 - 1.5).reshape(shape).astype(np.float32))

    def add_if(self) -> None:
        x = self.pick(lambda t: t.array.size > 0)
        condition = next((t for t in self.inputs if t.value.name == "go"), None)
        if x is None or condition is None or self.outer is not None:
            return
        branches = []
        for _ in range(2):
            inner = Graph(self.random, self.opset, tensors=[*self.tensors, x], outer=self, count=self.count)
            grow(inner, MOVES, self.int(0, 3))
            last = inner.tensors[-1]
            if last.array.size != x.array.size or last.array.dtype != x.array.dtype:
                last = x
            shape = inner.constant(np.array(x.array.shape, np.int64))
            inner.add("Reshape", [last, shape], x.array)
            branches.append(inner.graph([inner.tensors[-1]]))
        attributes = {"then_branch": branches[0], "else_branch": branches[1]}
        rounded = x.rounded or any(t.rounded for t in self.tensors)
        self.add("If", [condition], x.array, rounded=rounded, **attributes)

    # --- the end ---

    def graph(self, outputs: Sequence[Tensor]) -> ir.Graph:
        for tensor in outputs:
            tensor.value.type = ir.TensorType(ir.DataType.from_numpy(tensor.array.dtype))
            tensor.value.shape = ir.Shape([size if self.flag() else None for size in tensor.array.shape])
        return ir.Graph(
            [t.value for t in self.inputs],
            [t.value for t in outputs],
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": self.opset} if self.outer is None else {},
            name=f"g{self.name()}",
        )


def _factors(graph: Graph, size: int) -> list[int]:
    """Return sizes whose product is ``size``, some of them 1."""
    sizes = []
    for _ in range(graph.int(0, 3)):
        sizes.append(graph.one_of([d for d in range(1, size + 1) if size % d == 0]))
        size //= sizes[-1]
    return [*sizes, size] if size > 1 or graph.flag() else sizes


MOVES = (
    *(Graph.add_identity, Graph.add_transpose, Graph.add_transpose, Graph.add_reshape, Graph.add_reshape),
    *(Graph.add_flatten, Graph.add_squeeze, Graph.add_unsqueeze, Graph.add_slice, Graph.add_slice),
    *(Graph.add_split, Graph.add_concat, Graph.add_concat, Graph.add_gather, Graph.add_cast, Graph.add_cast),
)
SUMS = (
    *(
        Graph.add_unary,
        Graph.add_binary,
        Graph.add_binary,
        Graph.add_matmul,
        Graph.add_matmul,
        Graph.add_convolution,
    ),
    *(Graph.add_batchnorm, Graph.add_pad_and_pool, Graph.add_if),
)


def grow(graph: Graph, operators: Sequence[Callable[[Graph], None]], steps: int) -> None:
    """Append about so many operators; the same one twice in a row more often than by chance."""
    for _ in range(steps):
        operator = graph.one_of(operators)
        for _ in range(graph.one_of([1, 1, 2])):
            operator(graph)


@dataclass(frozen=True)
class Case:
    """A random model, an input for it, and which outputs rounding went into.

    The graph comes from a seed, for variety; its number of operators is drawn apart, so that it can be shrunk.
    """

    computing: bool
    seed: int
    opset: int
    steps: int

    def build(self) -> tuple[ir.Model, dict[str, Any], list[bool]]:
        return build(
            Graph(Random(self.seed), self.opset), MOVES + SUMS if self.computing else MOVES, self.steps
        )


def cases(computing: bool) -> st.SearchStrategy[Case]:
    opsets = st.sampled_from([9, 12, 18, 21])
    return st.builds(Case, st.just(computing), st.integers(0, 2**32), opsets, st.integers(1, 18))


def build(
    graph: Graph, operators: Sequence[Callable[[Graph], None]], steps: int
) -> tuple[ir.Model, dict[str, Any], list[bool]]:
    feed: dict[str, np.ndarray[Any, Any]] = {"go": np.array(graph.flag())}
    for name in ("x", "w")[: graph.int(1, 2)]:
        shape = graph.one_of(
            [(2, 3), (4,), (1, 2, 3), (2, 1, 3, 2), (1, 4, 1), (2, 2, 3, 3), (2, 4, 2, 3), ()]
        )
        kind = graph.one_of([np.float32, np.float32, np.float32, np.float16, np.int64, np.int8])
        feed[name] = (np.arange(np.prod(shape)) * 3 % 7 - 2).reshape(shape).astype(kind)
    for name, array in feed.items():
        sizes = [f"D{size}" if size > 1 and graph.flag() else size for size in array.shape]
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        graph.inputs.append(Tensor(ir.Value(name=name, type=kind, shape=ir.Shape(sizes)), array))
    graph.tensors += graph.inputs[1:]
    grow(graph, operators, steps)
    made = graph.tensors[len(graph.inputs) - 1 :]
    outputs = [graph.tensors[-1]] if made else []
    for _ in range(graph.int(0, 2)):
        outputs += [other] if made and (other := graph.one_of(made)) not in outputs else []
    if not outputs:
        graph.add_identity()
        outputs = [graph.tensors[-1]]
    model = ir.Model(graph.graph(outputs), ir_version=10 if graph.opset > 12 else 6)
    return model, feed, [t.rounded for t in outputs]


CALIBRATED = {"smooth-activations"}
"""Exact passes that look at calibration data, which must be finite; their own tests hold them to this."""


def exact_passes() -> list[str]:
    return sorted(
        name
        for name, cls in plugins.passes().items()
        if cls.effect is Effect.EXACT and plugins.owner(name) == "builtin" and name not in CALIBRATED
    )


def run(model: ir.Model, feed: dict[str, Any]) -> list[Any]:
    session = create(model, optimize="none", threads=1)
    return list(session.run(None, {name: feed[name] for name in (i.name for i in session.get_inputs())}))


def check(case: Case, pipeline: str) -> None:
    model, feed, rounded = case.build()
    text = to_text(model)
    note(f"{pipeline}\n{text}")
    want = run(model, feed)
    result = graphopt.optimize(model, pipeline, verify=False).model
    same("the model that was given", text, to_text(model))
    valid(result)
    for value, a, b, inexact in zip(model.graph.outputs, want, run(result, feed), rounded, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), (
            f"{value.name}: {a.dtype}{a.shape} became {b.dtype}{b.shape}"
        )
        if inexact:
            largest = np.abs(a.astype(np.float64)).max(initial=0, where=np.isfinite(a))
            rtol = 5e-3 if a.dtype == np.float16 or "FLOAT16" in text else 1e-5
            np.testing.assert_allclose(b, a, rtol, rtol * largest, err_msg=value.name or "")
        else:
            np.testing.assert_array_equal(b, a, value.name or "")
    if pipeline.startswith("fixpoint"):
        again = graphopt.optimize(result, pipeline, verify=False)
        same("a second run", _nodes(result), _nodes(again.model))


def _nodes(model: ir.Model) -> str:
    """Return the text of ``model`` without what is known of types and shapes."""
    model = clone(model)
    for graph in query.all_graphs(model):
        for value in (v for node in graph for v in node.outputs):
            value.shape = None
            value.type = value.type if value.is_graph_output() else None
    return to_text(model)


SOME_PASSES = st.lists(st.sampled_from(exact_passes()), min_size=1, unique=True)


@CHECKED
@given(case=cases(computing=False), names=SOME_PASSES)
def test_moving_elements(case: Case, names: list[str]) -> None:
    """Bit for bit, by any passes in any order."""
    check(case, f"fixpoint({','.join(names)})")


@CHECKED
@given(case=cases(computing=True), names=SOME_PASSES)
def test_computing(case: Case, names: list[str]) -> None:
    """By any passes in any order."""
    check(case, f"fixpoint({','.join(names)})")


@CHECKED
@given(case=cases(computing=True), preset=st.sampled_from(["simplify", "speed"]))
def test_presets(case: Case, preset: str) -> None:
    """By the pipelines that users run; what the last step learns of shapes may let a second run do more."""
    check(case, preset)
