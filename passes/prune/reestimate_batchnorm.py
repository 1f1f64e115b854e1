"""Give each BatchNormalization the statistics of what it gets now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt import Decline, Effect, Names, Pass, PassReport, Shapes, clone, selected
from graphopt.calibration import observe
from graphopt.query import attribute, constant, is_op, opset, used_once

from ..layer_by_layer import LayerByLayer, few
from .told import tell
from .weights import initializer

if TYPE_CHECKING:
    from graphopt import Context

Array = np.ndarray[Any, Any]


class ReestimateBatchnorm(Pass):
    """Replace mean and variance of ``BN(x, scale, bias, mean, var)`` by those of x over the calibration data.

    Over all positions p of all samples, channel by channel, with ``a`` for ``momentum``::

        mean' = (1 - a) mean + a mean_p x[p]                    (C,)
        var'  = (1 - a) var  + a mean_p (x[p] - mean_p x[p])²   (C,)

    Nodes follow one another: each gets what those before it make with their new statistics. It looks at 32 samples at
    most; give many pictures in each. A channel that never varies keeps what it had. Serves behind a pass that moved
    the activations far (prune-weights, clip-weights), and in front of fold-batchnorm, which leaves nothing to
    estimate; where they moved little, statistics of few samples lose more than they mend: compare the drift.

    Lossy: the result must equal the original with ``(x - mean') k + bias``, ``k = scale / √(var' + ε)``, as nodes.
    Source: ONNX BatchNormalization-15; Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 2.
    """

    effect: ClassVar[Effect] = Effect.LOSSY

    momentum: float = Field(
        1.0, gt=0, le=1, description="share of the new statistics; the rest is of the old ones"
    )
    include: tuple[str, ...] = Field((), description="patterns of nodes, weights or modules to estimate anew")
    exclude: tuple[str, ...] = Field(
        (), description="patterns of nodes, weights or modules to leave as they are"
    )

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Look at what each generation of nodes gets, and change it before the next."""
        report, names = PassReport(), Names(model)
        nodes = self._nodes(model, context.analysis(Shapes), report)
        if not nodes:
            return report
        seen = few(model, context)
        observe(model, {}, context if seen is context else seen)  # refuses to do without data
        before, reference = clone(model), clone(model)
        partner = dict(zip(model.graph, reference.graph, strict=True))
        walk, others = LayerByLayer(model, seen), Names(reference)
        generations = list(_generations(model, nodes))
        for i, generation in enumerate(generations):
            read = [_name(node) for node in generation]
            walk.means(dict.fromkeys(read, 1), f"statistics, {i + 1} of {len(generations)}")
            for node in generation:
                mean, var = _statistics([known[_name(node)] for known in walk.kept])
                mean, var = self._mixed(node, mean, var)
                shift = np.abs(mean - constant(node.inputs[3])) / np.sqrt(constant(node.inputs[4]) + 1e-12)
                if context.admit(report, node, f"means by {shift.max():.2g} deviations at most"):
                    _put(node, 3, mean, names)
                    _put(node, 4, var, names)
                    _spell_out(partner[node], mean, var, others)
            walk.forget({_name(node) for later in generations[i + 1 :] for node in later})
        if report.applied:
            report.reference = reference
            tell(report, before, model, {}, seen)
        return report

    def _nodes(self, model: ir.Model, shapes: Shapes, report: PassReport) -> list[ir.Node]:
        found = []
        for node in model.graph:
            shapes.infer(node)
            if not is_op(node, "BatchNormalization"):
                continue
            try:
                if not selected(node, self.include, self.exclude):
                    raise Decline("it is not selected")
                if attribute(node, "training_mode", 0) or len([v for v in node.outputs if v.name]) > 1:
                    raise Decline("it runs in training mode")
                if not attribute(node, "spatial", 1) or opset(node) < 7:
                    raise Decline("it is of a form that ONNX gave up")
                for value in node.inputs[1:]:
                    constant(value)
                x = node.inputs[0]
                if x is None or x.shape is None or x.dtype is None:
                    raise Decline("type and rank of its input are not known")
                found.append(node)
            except Decline as reason:
                report.decline(node, str(reason))
        return found

    def _mixed(self, node: ir.Node, mean: Array, var: Array) -> tuple[Array, Array]:
        """Return the new statistics beside a share of the old ones, in their type."""
        old_mean, old_var = (constant(node.inputs[i]) for i in (3, 4))
        a = np.where(var > 0, self.momentum, 0.0)
        return (
            ((1 - a) * old_mean + a * mean).astype(old_mean.dtype),
            ((1 - a) * old_var + a * var).astype(old_var.dtype),
        )


def _name(node: ir.Node) -> str:
    value = node.inputs[0]
    assert value is not None
    return value.name or ""


def _statistics(arrays: Sequence[Array]) -> tuple[Array, Array]:
    """Return mean and variance of each channel along axis 1."""
    rows = [np.moveaxis(array, 1, -1).reshape(-1, array.shape[1]).astype(np.float64) for array in arrays]
    count = sum(map(len, rows))
    mean = np.sum([each.sum(0) for each in rows], 0) / count
    return mean, np.sum([np.square(each - mean).sum(0) for each in rows], 0) / count


def _generations(model: ir.Model, nodes: Sequence[ir.Node]) -> Iterator[list[ir.Node]]:
    """Yield nodes in groups in which none feeds another, each group behind all that feed it."""
    wanted, depth = set(nodes), dict[ir.Value, int]()
    found: dict[int, list[ir.Node]] = {}
    for node in model.graph:
        deepest = max((depth.get(value, 0) for value in node.inputs if value is not None), default=0)
        if node in wanted:
            deepest += 1
            found.setdefault(deepest, []).append(node)
        depth.update(dict.fromkeys(node.outputs, deepest))
    yield from (found[i] for i in sorted(found))


def _put(node: ir.Node, index: int, array: Array, names: Names) -> None:
    """Let input ``index`` be ``array``; what others read too stays as it is for them."""
    old = node.inputs[index]
    assert old is not None and node.graph is not None
    tensor = ir.Tensor(array, name=old.name)
    if old.is_initializer() and used_once(old):
        old.const_value = tensor
        return
    new = initializer(tensor, names.fresh(f"{old.name}_estimated"))
    node.graph.register_initializer(new)
    node.replace_input_with(index, new)


def _spell_out(node: ir.Node, mean: Array, var: Array, names: Names) -> None:
    """Replace a BatchNormalization by ``(x - mean) k + bias``."""
    graph, (old,), x = node.graph, node.outputs[:1], node.inputs[0]
    assert graph is not None and x is not None and x.dtype is not None and x.shape is not None
    scale, bias = (constant(node.inputs[i]).astype(np.float64) for i in (1, 2))
    k = scale / np.sqrt(var.astype(np.float64) + attribute(node, "epsilon", 1e-5))
    along = (-1, *[1] * (len(x.shape) - 2))
    for op_type, array in (("Sub", mean), ("Mul", k), ("Add", bias)):
        tensor = ir.Tensor(array.astype(x.dtype.numpy()).reshape(along))
        operand = initializer(tensor, names.fresh("statistics"))
        graph.register_initializer(operand)
        made = ir.node(op_type, [x, operand], name=names.fresh_node(f"{op_type}_reference"))
        x = made.outputs[0]
        x.name, x.type, x.shape = names.fresh("reference"), old.type, old.shape
        graph.insert_before(node, made)
    old.replace_all_uses_with(x, replace_graph_outputs=True)
    old.name, x.name = x.name, old.name
    graph.remove(node, safe=True)
