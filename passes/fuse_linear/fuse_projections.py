"""Make one matrix product of several that share their input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import Context, Names, Pass, PassReport, Tape, all_graphs, substitute
from graphopt.query import constant_tensor, is_op, used_once


@dataclass(frozen=True)
class Projection:
    """``x @ w + b``, or without ``b``."""

    matmul: ir.Node
    add: ir.Node | None
    w: ir.Value
    b: ir.Value | None

    @property
    def last(self) -> ir.Node:
        """The node whose output is the result."""
        return self.add if self.add is not None else self.matmul

    @property
    def width(self) -> int:
        """How many columns ``w`` has."""
        return int(self.w.const_value.shape.numpy()[1]) if self.w.const_value is not None else 0


class FuseProjections(Pass):
    """Replace products of one ``x`` with several weights by one product, and cut its result.

    ::

        MatMul(x, w1) + b1, MatMul(x, w2) + b2, …  ->  Split(MatMul(x, [w1 w2 …]) + [b1 b2 …], axis = -1)

    The biases are taken in where every product has one. Weights that something else reads stay: they would be there
    twice. They are put together when they are needed, never all at a time.

    Exact up to rounding. Source: ONNX MatMul-13, Split-13 and -18.
    """

    family: ClassVar[str] = "projections"

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Fuse the products of each value that several multiply with constants."""
        report = PassReport()
        names = Names(model)
        for graph in all_graphs(model):
            for group in list(_groups(graph, report)):
                _fuse(group, context, names, report)
        return report


def _groups(graph: ir.Graph, report: PassReport) -> Iterator[list[Projection]]:
    """Yield the products that can be one, each in the order of execution."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if is_op(node, "MatMul") and node.inputs[0] is not None:
            readers.setdefault(node.inputs[0], []).append(node)
    for matmuls in readers.values():
        if len(matmuls) < 2:
            continue
        alike: dict[object, list[Projection]] = {}
        for matmul in matmuls:
            found = _projection(matmul)
            if isinstance(found, str):
                report.decline(matmul, found)
            else:
                tensor = found.w.const_value
                assert tensor is not None, "it is a constant"
                alike.setdefault((tensor.dtype, tensor.shape[0]), []).append(found)
        for group in alike.values():
            if len(group) > 1:
                yield group


def _projection(matmul: ir.Node) -> Projection | str:
    """Return the product with what is added to it, or why it cannot be one of several."""
    w, product = matmul.inputs[1], matmul.outputs[0]
    tensor = constant_tensor(w)
    if w is None or tensor is None or not w.is_initializer():
        return f"{w.name if w is not None else 'its second operand'} is not an initializer"
    if len(tensor.shape) != 2:
        return f"{w.name} has {len(tensor.shape)} axes, not 2"
    if not used_once(w):
        return f"{w.name} is used elsewhere"
    if used_once(product):
        (add,) = product.consumers()
        if is_op(add, "Add") and add.graph is matmul.graph:
            b = next((value for value in add.inputs if value is not product), None)
            bias = constant_tensor(b)
            if (
                b is not None
                and bias is not None
                and tuple(bias.shape) == (tensor.shape[1],)
                and b.is_initializer()
            ):
                return Projection(matmul, add, w, b)
    return Projection(matmul, None, w, None)


def _fuse(group: Sequence[Projection], context: Context, names: Names, report: PassReport) -> None:
    """Put one product and a Split before the first of ``group``, and parts of it in the place of each."""
    if any(p.b is None for p in group):
        group = [Projection(p.matmul, None, p.w, None) for p in group]
    first = group[0].matmul
    tape = Tape(first, context)
    if tape.opset < 13:
        report.decline(first, f"Split takes no sizes as an input in opset {tape.opset}")
        return
    x, stem = first.inputs[0], first.outputs[0].name or "product"
    y = tape.op("MatMul", [x, tape.initializer(_joined([p.w for p in group], 1, f"{stem}_weights"))])
    biases = [p.b for p in group if p.b is not None]
    if len(biases) == len(group):
        y = tape.op("Add", [y, tape.initializer(_joined(biases, 0, f"{stem}_biases"))])
    sizes = tape.constant(np.array([p.width for p in group], np.int64), f"{stem}_sizes")
    parts = tape.op_multi_out("Split", [y, sizes], {"axis": -1}, num_outputs=len(group))
    detail = f"one product for {len(group)}"
    for i, (projection, part) in enumerate(zip(group, parts, strict=True)):
        here = tape if i == 0 else Tape(projection.last, context)
        if not substitute(projection.last, [part], here, names, report, detail):
            return


def _joined(values: Sequence[ir.Value], axis: int, name: str) -> ir.TensorProtocol:
    """Return a tensor that is put together when it is read."""
    tensors = [value.const_value for value in values if value.const_value is not None]
    shape = list(tensors[0].shape.numpy())
    shape[axis] = sum(int(tensor.shape.numpy()[axis]) for tensor in tensors)

    def make() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis), name=name)

    return ir.LazyTensor(make, tensors[0].dtype, ir.Shape(shape), name=name)
