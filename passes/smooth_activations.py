"""Move what makes activations hard to quantize, channels much larger than others, over to the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt import Decline, Names, Pass, PassReport, Shapes, selected
from graphopt.calibration import observe
from graphopt.query import is_constant, is_op
from graphopt.scheme import Scheme

from .channels import LAST, Layer, Operand, check_sizes, layer, put_all, same_axis, scaled, source

if TYPE_CHECKING:
    from graphopt import Context

Array = np.ndarray[Any, Any]
STEP = 0.1
ALPHAS = tuple(round(i * STEP, 3) for i in range(1, 10))
"""What is tried first where alpha is searched; then half a step to both sides of the best."""
ACTIVATIONS = Scheme(ir.DataType.UINT8)
WEIGHTS = Scheme(ir.DataType.INT8, symmetric=True)
SMOOTH = 1e-3
"""Scales that are equal but for this share change nothing."""
SMALLEST = 1e-4
"""Channels that never exceed this share of the largest one count as if they did."""
FEW = 4
"""From so many rows on, but fewer than channels, half of them tell whether the scales suit the others."""
TIE = 1e-5
"""The range of activations goes so much further down: with alpha 1 it is as long below 0 as above, and what float32
rounds away would decide between two zero points.
"""


class SmoothActivations(Pass):
    """Replace ``X W`` by ``(X S⁻¹) (S W)``, so that no channel of the activations is much larger than the others.

    With the largest magnitudes over the calibration data, ``|X_j|`` of input channel j, and ``|W_j|`` of all weights
    that multiply it::

        S = diag(s)      s[j] = max|X_j|^α / max|W_j|^(1 - α)      (C,)

    ``α`` is searched for each value: the one with the least error of the products, simulated with 8 bits (uint8 for
    the whole tensor X, int8 for each output channel of W) on a sample of its rows. What makes X takes ``S⁻¹`` in: a
    LayerNormalization, a Gemm or MatMul and its bias, a Mul by a constant, through Relu. Where it cannot, because
    something else reads X too, a Mul is put before the products, if that is worth it.

    Exact up to rounding. Source: Xiao et al. 2022 (arXiv:2211.10438).
    """

    alpha: float | None = Field(
        None, ge=0, le=1, description="the exponent; searched for each value where not given"
    )
    insert: bool = Field(True, description="multiply where nothing before takes the scales in")
    gain: float = Field(
        1.0, ge=0, description="dB that the products must gain for their input to be smoothed"
    )
    rows: int = Field(512, ge=1, description="rows of each value on which alpha is searched")
    include: tuple[str, ...] = Field(
        (), description="patterns of products, weights or modules whose input to smooth"
    )
    exclude: tuple[str, ...] = Field(
        (), description="patterns of products, weights or modules to leave as they are"
    )

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Find the places, look at their activations, decide, and scale."""
        report, names = PassReport(), Names(model)
        places = self._places(model, context, report)
        if not places:
            return report
        seen = {place: Rows(self.rows, context.seed) for place in places}
        observe(model, {place.value.name or "": rows for place, rows in seen.items()}, context)
        for number, place in enumerate(reversed(places), 1):  # what a product takes in changes its weights
            context.progress("smoothing", number, len(places))
            try:
                s, detail = self._scales(place, seen[place])
                made = scaled(
                    dict.fromkeys(place.operands, 1 / s) | {each.inputs: s for each in place.readers}
                )
            except Decline as reason:
                report.decline(place.node, str(reason))
                continue
            if context.admit(report, place.node, detail):
                if not place.operands:
                    _insert(place, 1 / s, names)
                put_all(made, names)
        return report

    def _places(self, model: ir.Model, context: Context, report: PassReport) -> list[Place]:
        """Return the values of the main graph that products read."""
        found: list[Place] = []
        seen: set[ir.Value] = set()
        shapes = context.analysis(Shapes)
        for node in model.graph:
            shapes.infer(node)
            value = node.inputs[0] if is_op(node, "Gemm", "MatMul") else None
            if value is None or value in seen or is_constant(value):
                continue
            seen.add(value)
            try:
                found.append(self._place(value))
            except Decline as reason:
                report.decline(node, str(reason))
        return found

    def _place(self, value: ir.Value) -> Place:
        uses = [use for use in value.uses() if use.idx == 0 and is_op(use.node, "Gemm", "MatMul")]
        readers = [layer(use.node) for use in uses if use.node.graph is value.graph or value.graph is None]
        if any(not selected(each.node, self.include, self.exclude) for each in readers):
            raise Decline("it is not selected")
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            raise Decline(
                f"its activations are {value.dtype.name.lower() if value.dtype else 'of unknown type'}"
            )
        for each in readers:
            if len(each.inputs.value.uses()) > 1:
                raise Decline(f"{each.inputs.value.name} is used elsewhere")
        shared = len(uses) < len(value.uses()) or value.is_graph_output()
        return Place(value, tuple(readers), self._operands(value, readers[0], shared))

    def _operands(self, value: ir.Value, reader: Layer, shared: bool) -> tuple[Operand, ...]:
        """Return the constants that make ``value`` and take its scales in; none where a Mul must do."""
        try:
            if shared:
                raise Decline(f"{value.name} is used elsewhere")
            made = source(value)
            same_axis(value, made.axis, LAST)
            check_sizes(made.operands, reader.in_channels)
        except Decline as reason:
            if not self.insert:
                raise Decline(f"nothing before takes the scales in: {reason}") from None
            return ()
        return made.operands

    def _scales(self, place: Place, rows: Rows) -> tuple[Array, str]:
        """Return the scales and what they are good for."""
        a, weights = rows.largest, [each.matrix() for each in place.readers]
        w = np.max([np.abs(matrix).max(1) for matrix in weights], axis=0)
        if not a.any() or not w.any():
            raise Decline("its activations or weights are zeros")
        wanted = [rows.sample @ matrix for matrix in weights]
        before = _error(rows, np.ones_like(a), weights, wanted)
        tried: dict[float, tuple[float, Array]] = {}

        def best(alphas: Iterable[float]) -> float:
            for alpha in alphas:
                s = _balanced(a, w, alpha)
                tried[alpha] = _error(rows, s, weights, wanted), s
            return min(tried, key=lambda each: tried[each][0])

        alpha = best(ALPHAS if self.alpha is None else (self.alpha,))
        if self.alpha is None:
            alpha = best((round(alpha - STEP / 2, 3), round(alpha + STEP / 2, 3)))
        after, s = tried[alpha]
        gain = _decibels(before, after)
        if gain < self.gain or np.ptp(np.log(s)) < SMOOTH:
            raise Decline(f"its products gain {gain:.1f} dB at alpha {alpha:g}")
        if FEW <= rows.count < len(s) and (held := _held_out(rows, alpha, w, weights)) < 0:
            raise Decline(
                f"its products gain {gain:.1f} dB at alpha {alpha:g}, but lose {-held:.1f} dB on rows whose range was "
                f"not looked at: {rows.count} rows of calibration data are too few"
            )
        return s, f"alpha {alpha:g}, {gain:.1f} dB"


@dataclass(frozen=True, eq=False)
class Place:
    """A value, the products that read it, and the constants that make it."""

    value: ir.Value
    readers: tuple[Layer, ...]
    operands: tuple[Operand, ...]
    """Empty where a Mul has to be put in."""

    @property
    def node(self) -> ir.Node:
        """The first of the products."""
        return self.readers[0].node


class Rows:
    """Observes the range of each channel of a value, and keeps a random sample of its rows."""

    def __init__(self, limit: int, seed: int) -> None:
        self.limit = limit
        self._random = np.random.default_rng(seed)
        self.count = 0
        self._keys: Array = np.zeros(0)
        self.sample: Array = np.zeros((0, 0), np.float32)
        self.low: Array = np.zeros(0)
        self.high: Array = np.zeros(0)

    def update(self, array: Array) -> None:
        """Take in the array of one sample: each row stays with the same probability."""
        if not array.size:
            return
        rows = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
        self.count += len(rows)
        low, high = rows.min(0).astype(np.float64), rows.max(0).astype(np.float64)
        if not self.low.size:
            self.low, self.high, self.sample = low, high, rows[:0]
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        keys = np.concatenate([self._keys, self._random.random(len(rows))])
        kept = np.sort(np.argsort(keys)[: self.limit])
        self._keys, self.sample = keys[kept], np.concatenate([self.sample, rows])[kept]

    @property
    def largest(self) -> Array:
        """The largest magnitude of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def _balanced(a: Array, w: Array, alpha: float) -> Array:
    """Return the scales for the largest activations and weights of each channel; their geometric mean is 1."""
    a, w = np.maximum(a, SMALLEST * a.max()), np.maximum(w, SMALLEST * w.max())
    s: Array = a**alpha / w ** (1 - alpha)
    s /= np.exp(np.log(s).mean())
    return s


def _held_out(rows: Rows, alpha: float, w: Array, weights: Sequence[Array]) -> float:
    """Return the decibels that every other row gains, where the scales and ranges come from the rows between."""
    fit, held = Rows(rows.limit, 0), Rows(rows.limit, 0)
    fit.update(rows.sample[::2])
    held.update(rows.sample[1::2])
    held.low, held.high = fit.low, fit.high
    wanted = [held.sample @ matrix for matrix in weights]
    before, after = (
        _error(held, s, weights, wanted) for s in (np.ones_like(w), _balanced(fit.largest, w, alpha))
    )
    return _decibels(before, after)


def _decibels(before: float, after: float) -> float:
    return 10 * float(np.log10(max(before, 1e-300) / max(after, 1e-300)))


def _error(rows: Rows, s: Array, weights: Sequence[Array], wanted: Sequence[Array]) -> float:
    """Return the squared error of the products when both sides are quantized after scaling by ``s``."""
    k = s.astype(np.float32)
    low, high = (rows.low / s).min() * (1 + TIE), (rows.high / s).max()
    x = _rounded(rows.sample / k, ACTIVATIONS, low, high)
    total = 0.0
    for matrix, product in zip(weights, wanted, strict=True):
        w = matrix * k[:, None]
        largest = np.abs(w).max(0)
        total += float(np.square(x @ _rounded(w, WEIGHTS, -largest, largest) - product).sum())
    return total


def _rounded(x: Array, scheme: Scheme, low: Any, high: Any) -> Array:
    """Return what integers make of ``x``, in single precision throughout: this is where the search spends its time."""
    scale, zero_point = scheme.parameters(low, high)
    least, most = (limit - zero_point.astype(np.float32) for limit in scheme.limits)
    q: Array = np.rint(x / scale)
    np.clip(q, least, most, out=q)
    q *= scale
    return q


def _insert(place: Place, k: Array, names: Names) -> None:
    """Let the products read their activations times ``k``."""
    value, first = place.value, place.node
    assert first.graph is not None and value.dtype is not None
    tensor = ir.Tensor(k.astype(value.dtype.numpy()), name=names.fresh(f"{value.name}_scale"))
    constant_value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(k.shape), const_value=tensor
    )
    first.graph.register_initializer(constant_value)
    mul = ir.node("Mul", [value, constant_value], name=names.fresh_node(f"{value.name}_smooth"))
    made = mul.outputs[0]
    made.name, made.type, made.shape = names.fresh(f"{value.name}_smooth"), value.type, value.shape
    for each in place.readers:
        each.node.replace_input_with(0, made)
    first.graph.insert_before(first, mul)
