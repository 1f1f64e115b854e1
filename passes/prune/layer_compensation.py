"""Let what stands before a dropped layer make up for it: least squares on what the layer did, folded into weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, Decline, Names
from graphopt.query import (
    attribute,
    constant,
    is_constant,
    is_op,
    optional,
    rank,
    sole_producer,
    used_once,
)

from ..channels import PRODUCTS, Layer, layer, put
from .joint import Sample, cosines, observe_together
from .residual import Unit

Array = np.ndarray[Any, Any]
NORM = "LayerNormalization"
ROWS = 1 << 14
LIMIT_BYTES = 1 << 27
"""So many positions at most are kept, and so many bytes of them."""
DAMPING = (3.0, 1.0, 0.3, 0.1, 0.03)
"""How much the map is drawn to the identity, as a share of the mean square of a channel: what is tried."""


@dataclass(frozen=True)
class Makers:
    """What makes ``x = g(m + r)`` with ``m = h W + b`` and ``g`` a normalization, a Relu or nothing."""

    x: ir.Value
    u: ir.Value
    """``m + r``."""
    g: ir.Node | None
    m: ir.Value | None
    """``None`` where nothing of the kind is added."""
    product: Layer | None
    bias: tuple[ir.Node, int] | None
    """Which input of which node is b."""

    @property
    def norm(self) -> ir.Node | None:
        """The normalization with a scale and a bias."""
        return self.g if is_op(self.g, NORM) else None


@dataclass(frozen=True)
class Fit:
    """What brings x to y: ``g(m + m d + t + r) s + c``; what is ``None`` is 0, or 1."""

    d: Array | None = None
    """(C, C)."""
    t: Array | None = None
    """(C,)."""
    s: Array | None = None
    """(C,)."""
    c: Array | None = None
    """(C,)."""
    before: float = 1.0
    """The mean cosine of x to y, at positions that nothing was fitted to."""
    after: float = 1.0

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return self.d is None and self.t is None and self.s is None


def makers(x: ir.Value, unit: Unit) -> Makers:
    """Return what makes ``x``, which ``unit`` reads.

    Raises:
        Decline: nothing that makes it can take anything in.
    """
    if x.is_graph_output() or any(use.node not in unit.nodes for use in x.uses()):
        raise Decline(f"{x.name} is used elsewhere")
    size, g, u = rank(x), x.producer(), x
    if g is not None and is_op(g, NORM, "Relu") and g.inputs[0] is not None and used_once(g.inputs[0]):
        u = g.inputs[0]
    else:
        g = None
    last = is_op(g, NORM) and attribute(g, "axis", -1) in (-1, size - 1) if g is not None else False
    foldable = last and g is not None and is_constant(g.inputs[1]) and is_constant(optional(g, 2))
    total = u.producer()
    if is_op(total, "Add") and total is not None and not any(is_constant(value) for value in total.inputs):
        values = [value for value in reversed(total.inputs) if value is not None and used_once(value)]
    else:
        values = [u]
    reason = Decline(f"no product with weights makes {u.name}")
    for value in values:
        try:
            return Makers(x, u, g, value, *_product(value, unit.axis, size))
        except Decline as why:
            reason = why
    if foldable:
        return Makers(x, u, g, None, None, None)
    raise reason


def _product(value: ir.Value, axis: int, size: int) -> tuple[Layer, tuple[ir.Node, int] | None]:
    """Return the product that makes ``value``, and where its bias is."""
    node, bias = value.producer(), None
    if is_op(node, "Reshape") and node is not None and axis == size - 1:
        (value, size), axis = _unfolded(node), -1
        node = value.producer()
    if is_op(node, "Add") and node is not None:
        at = next((i for i in (0, 1) if is_constant(node.inputs[i])), None)
        if at is None:
            raise Decline(f"no product with weights makes {value.name}")
        bias, node = (node, at), sole_producer(node.inputs[1 - at], *PRODUCTS)
    if node is None or not is_op(node, *PRODUCTS):
        raise Decline(f"no product with weights makes {value.name}")
    made = layer(node)
    if made.axis % size != axis % size or made.shape[0] != 1:
        raise Decline(f"the channels of {value.name} lie along another axis, or in groups")
    if bias is None and optional(node, 2) is not None:
        bias = node, 2
    if bias is not None and constant(bias[0].inputs[bias[1]]).size != made.out_channels:
        raise Decline(f"the bias of {value.name} is not one number for each channel")
    if attribute(node, "beta", 1.0) != 1:
        raise Decline(f"{value.name} is made with a bias that is multiplied")
    return made, bias


def _unfolded(reshape: ir.Node) -> tuple[ir.Value, int]:
    """Return what a Reshape gets, and its rank, if the channels stay along the last axis."""
    value, made = reshape.inputs[0], reshape.outputs[0]
    if value is None or not used_once(value) or value.shape is None or made.shape is None:
        raise Decline(f"no product with weights makes {made.name}")
    channels = value.shape[-1] if len(value.shape) else None
    if not isinstance(channels, int) or channels != made.shape[-1]:
        raise Decline(f"the channels of {made.name} were reshaped")
    return value, len(value.shape)


# --- what was seen ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Rows of what makes x, and of what y is made of: (positions, C)."""

    m: Array
    u: Array
    z: Array
    """The last sum of the unit."""
    y: Array
    makers: Makers

    def part(self, rows: slice) -> Seen:
        """Return some of the positions."""
        return replace(self, m=self.m[rows], u=self.u[rows], z=self.z[rows], y=self.y[rows])

    def x(self, fit: Fit) -> Array:
        """Return x as the fit makes it."""
        u = self.u
        if fit.d is not None:
            u = u + self.m @ fit.d
        if fit.t is not None:
            u = u + fit.t
        g = self.makers.g
        if is_op(g, "Relu"):
            return np.maximum(u, 0)
        if g is not None:
            mean, deviation = _moments(u, g)
            bias = optional(g, 2)
            u = (u - mean) / deviation * constant(g.inputs[1]) + (constant(bias) if bias is not None else 0)
        return u if fit.s is None or fit.c is None else u * fit.s + fit.c

    def loss(self, fit: Fit) -> float:
        """Return the mean squared error of x as y."""
        return float(np.square(self.x(fit) - self.y).mean())

    def mapped(self, damping: float | None) -> Fit:
        """Return the map of m that brings ``m + r`` nearest to what ``g`` makes y of; a shift alone without damping.

        Where ``g`` is a normalization that is z, normalized, with the mean and deviation of ``m + r``, and an error
        counts as large as it is behind ``g``.
        """
        v, weight = self.z, np.ones((len(self.z), 1))
        if self.makers.norm is not None:
            mean, deviation = _moments(self.u, self.makers.norm)
            own_mean, own_deviation = _moments(self.z, self.makers.norm)
            v, weight = (self.z - own_mean) / own_deviation * deviation + mean, 1 / deviation
        e = (v - self.u) * weight
        has_bias = self.makers.bias is not None
        a = np.concatenate([self.m, np.ones((len(e), 1))], 1) if has_bias else self.m
        if damping is None:
            return Fit(t=(e * weight).sum(0) / np.square(weight).sum())
        a = a * weight
        gram, channels = a.T @ a, self.m.shape[1]
        drawn = np.arange(channels)
        gram[drawn, drawn] += damping * np.trace(gram[:channels, :channels]) / channels + 1e-12
        solved = np.linalg.solve(gram, a.T @ e)
        return Fit(d=solved[:channels], t=solved[channels] if has_bias else None)

    def scaled(self, fit: Fit) -> Fit:
        """Return the fit with the scale and bias of each channel that bring x nearest to y."""
        x = self.x(fit)
        mean, wanted = x.mean(0), self.y.mean(0)
        spread = np.square(x - mean).mean(0)
        s = np.divide(
            ((x - mean) * (self.y - wanted)).mean(0), spread, out=np.ones_like(mean), where=spread > 1e-12
        )
        return replace(fit, s=s, c=wanted - s * mean)


def _moments(u: Array, norm: ir.Node) -> tuple[Array, Array]:
    mean = u.mean(1, keepdims=True)
    return mean, np.sqrt(np.square(u - mean).mean(1, keepdims=True) + attribute(norm, "epsilon", 1e-5))


def fit(model: ir.Model, unit: Unit, found: Makers, context: Context) -> Fit:
    """Return what brings x nearest to y at positions that it was not fitted to, if only nothing at all."""
    last = unit.blocks[-1]
    values = (found.m or found.u, found.u, last.add.outputs[0], unit.y)
    sample = Sample(ROWS, LIMIT_BYTES, context.seed)
    observe_together(model, {values: (unit.axis, sample)}, context, "compensating")
    m, u, z, y = np.split(sample.rows.astype(np.float64), len(values), 1)
    seen = Seen(m, u, z, y, found)
    half = len(sample.rows) // 2
    if half < 2:
        return Fit()
    first, second = seen.part(slice(None, half)), seen.part(slice(half, None))
    best = min(_ways(found, last.tail), key=lambda way: second.loss(way(first, 1.0)))
    before, after = (float(cosines(second.x(one), second.y).mean()) for one in (Fit(), best(first, 1.0)))
    return replace(best(seen, 0.5), before=before, after=after)


@dataclass(frozen=True)
class Way:
    """What is fitted."""

    mapped: bool = False
    damping: float | None = None
    scaled: bool = False

    def __call__(self, seen: Seen, share: float) -> Fit:
        """Return the fit to what was seen, with a share of the damping: among twice the positions half does."""
        damping = self.damping * share if self.damping is not None else None
        found = seen.mapped(damping) if self.mapped else Fit()
        return seen.scaled(found) if self.scaled else found


def _ways(found: Makers, tail: ir.Node | None) -> list[Way]:
    """Return what can be fitted, what changes least first."""
    ways = [Way()]
    norm = found.norm is not None
    if norm:
        ways.append(Way(scaled=True))
    alike = (found.g.op_type if found.g is not None else "") == (tail.op_type if tail is not None else "")
    if found.product is None or not alike:
        return ways
    if found.bias is not None:
        ways.append(Way(mapped=True, scaled=norm))
    return ways + [Way(True, damping, norm) for damping in DAMPING]


# --- folding ----------------------------------------------------------------------------------------------------------


def fold(found: Makers, fitted: Fit, names: Names) -> None:
    """Put the fit into the weights and bias of the product, and the scale and bias of the normalization."""
    product = found.product
    if product is not None and (fitted.d is not None or fitted.t is not None):
        channels = product.out_channels
        full = np.eye(channels) + (fitted.d if fitted.d is not None else 0)
        if fitted.d is not None:
            w = constant(product.outputs.value)
            split = np.moveaxis(w.reshape(product.shape).astype(np.float64), product.outputs_axis, -1) @ full
            made = np.moveaxis(split, -1, product.outputs_axis).reshape(w.shape).astype(w.dtype)
            put(product.node, 1, made, names)
        if found.bias is not None:
            node, index = found.bias
            b = constant(node.inputs[index])
            moved = b.reshape(-1) @ full + (fitted.t if fitted.t is not None else 0)
            put(node, index, moved.reshape(b.shape).astype(b.dtype), names)
    if found.norm is not None and fitted.s is not None and fitted.c is not None:
        scale = constant(found.norm.inputs[1])
        bias = optional(found.norm, 2)
        put(found.norm, 1, (scale * fitted.s).astype(scale.dtype), names)
        if bias is not None:
            b = constant(bias)
            put(found.norm, 2, (b * fitted.s + fitted.c).astype(b.dtype), names)
