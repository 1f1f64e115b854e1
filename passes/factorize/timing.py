"""Whether thinner layers are faster: one layer alone, as it stands in the model, and the whole model."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, GraphoptError, InputError, Names, PassReport, Tape, clone, measure, substitute
from graphopt.calibration import observe

from .emit import emit
from .sites import Site, site
from .stages import Factors, Method, Ranks, stages

if TYPE_CHECKING:
    from graphopt import Backend
    from graphopt.context import Feeds

SECONDS = 0.6
"""To measure one layer."""
WHOLE_SECONDS = 4.0
SMALLEST_MACS = 1 << 16
"""What has no more is over before another node would begin."""


@dataclass(frozen=True)
class Speed:
    """How long something takes beside what it stands for."""

    ratio: float
    low: float
    high: float
    verdict: str

    @classmethod
    def of(cls, before: ir.Model, after: ir.Model, feed: Feeds, target: Backend, seconds: float) -> Speed:
        """Measure two models."""
        timing = measure([before, after], feed, target, names=["before", "after"], seconds=seconds)[1]
        return cls(timing.ratio, timing.low, timing.high, timing.verdict)

    def __str__(self) -> str:
        return f"{self.ratio:.2f} of the time (95 % {self.low:.2f} … {self.high:.2f})"


class Timer:
    """Measures layers at the shapes that they have on ``feed``; what is measured once is known."""

    def __init__(self, model: ir.Model, sites: Iterable[Site], feed: Feeds, context: Context) -> None:
        assert context.target is not None
        self.target, self.opsets = context.target, dict(model.graph.opset_imports)
        self.context = context
        shapes = {one.x.name or "": _Shape() for one in sites}
        observe(model, shapes, Context(model, calibration=[feed], progress=context.progress), what="shapes")
        self.shapes = {name: one.shape for name, one in shapes.items()}
        self._known: dict[Hashable, dict[int, Speed]] = {}

    def kind(self, one: Site, method: Method) -> Hashable:
        """Return what layers that take the same time have in common."""
        attributes = tuple(sorted((name, str(each.value)) for name, each in one.node.attributes.items()))
        return one.node.op_type, one.shape, one.dtype, attributes, self.shapes[one.x.name or ""], method

    def fast(self, one: Site, method: Method) -> int:
        """Return the most MACs of a position with which such a layer measured faster than it is; -1 where none did."""
        known = self._known.get(self.kind(one, method), {})
        return max((macs for macs, speed in known.items() if speed.verdict == "faster"), default=-1)

    def speed(self, one: Site, method: Method, macs: int) -> Speed:
        """Return the speed at so many MACs of a position, or the nearest that was measured."""
        known = self._known[self.kind(one, method)]
        return known[min(known, key=lambda other: abs(other - macs))]

    def search(self, one: Site, method: Method, steps: dict[int, Ranks]) -> None:
        """Measure such a layer with some of ``steps``, ranks by MACs: fewer MACs are faster, so a bisection does."""
        known = self._known.setdefault(self.kind(one, method), {})
        order = sorted(steps)
        while order:
            middle = len(order) // 2
            macs = order[middle]
            self.context.progress(f"measuring {one.weight.name}", len(known), 0)
            known[macs] = self._measured(one, method, steps[macs])
            order = order[middle + 1 :] if known[macs].verdict == "faster" else order[:middle]

    def _measured(self, one: Site, method: Method, ranks: Ranks) -> Speed:
        before = self._alone(one)
        after = clone(before)
        copy = site(after.graph[0])
        rng = np.random.default_rng(0)
        made = stages(copy, method, ranks)
        weights = tuple(rng.normal(size=stage.shape).astype(one.dtype.numpy()) for stage in made)
        tape = Tape(copy.node, Context(after))
        y = emit(copy, Factors(made, weights), tape)
        substitute(copy.node, [y], tape, Names(after), PassReport())
        x = rng.normal(size=self.shapes[one.x.name or ""]).astype(one.dtype.numpy())
        try:
            return Speed.of(before, after, {"x": x}, self.target, SECONDS)
        except GraphoptError as error:
            return Speed(1.0, 1.0, 1.0, f"not measured: {error}")

    def _alone(self, one: Site) -> ir.Model:
        """Return a model of this layer alone."""
        rng = np.random.default_rng(0)
        shape = ir.Shape(self.shapes[one.x.name or ""])
        x = ir.Value(name="x", type=ir.TensorType(one.dtype), shape=shape)
        w = one.laid(rng.normal(size=one.shape))
        held = [ir.Value(name="w", const_value=ir.Tensor(w, name="w"), type=ir.TensorType(one.dtype))]
        if len(one.node.inputs) > 2 and one.node.inputs[2] is not None:
            b = np.zeros(one.shape[0], one.dtype.numpy())
            held.append(ir.Value(name="b", const_value=ir.Tensor(b, name="b"), type=ir.TensorType(one.dtype)))
        for value in held:
            assert value.const_value is not None
            value.shape = ir.Shape(value.const_value.shape.numpy())
        node = ir.node(one.node.op_type, [x, *held], _copied(one.node), name="layer")
        (y,) = node.outputs
        y.name, y.type = "y", ir.TensorType(one.dtype)
        y.shape = ir.Shape([None] * len(shape))
        graph = ir.Graph([x], [y], nodes=[node], initializers=held, opset_imports=self.opsets, name="layer")
        return ir.Model(graph, ir_version=10)


def _copied(node: ir.Node) -> dict[str, Any]:
    return {name: each.value for name, each in node.attributes.items()}


class _Shape:
    """Observes the shape of a value."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()

    def update(self, array: np.ndarray[Any, Any]) -> None:
        self.shape = array.shape


def feed_of(context: Context) -> Feeds | None:
    """Return inputs to measure with: the user's, else the first calibration data, else drawn ones."""
    if context.has_given_samples or context.calibration is None:
        return next(iter(context.samples), None)
    return next(iter(context.calibration), None)


def timer(model: ir.Model, sites: Iterable[Site], context: Context) -> Timer | str:
    """Return what measures layers, or why nothing can."""
    if context.target is None or (reason := context.target.unavailable()) is not None:
        return "there is no target" if context.target is None else str(reason)
    feed = feed_of(context)
    if feed is None:
        return "there are no inputs to run"
    try:
        return Timer(model, sites, feed, context)
    except InputError as error:
        return str(error)


def whole(before: ir.Model, after: ir.Model, context: Context) -> Speed | str:
    """Return how long the result takes beside the original, or why that is not known."""
    feed = feed_of(context)
    assert feed is not None and context.target is not None
    context.progress("measuring the model", 0, 0)
    try:
        return Speed.of(before, after, feed, context.target, WHOLE_SECONDS)
    except GraphoptError as error:
        return str(error)
