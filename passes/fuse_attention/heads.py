"""How many heads there are, how wide, and what each dimension of the products of attention counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import Decline
from graphopt.query import is_op, rank

from .layout import BATCH, HEADS, KEYS, PACKED, ROWS, WIDTH, Axes, Groups, Size, View, scaled, sizes_of
from .operands import Operand


@dataclass(frozen=True)
class Heads:
    """The sizes of one attention, with the tensors that it multiplies."""

    q: ir.Value
    kt: ir.Value
    v: ir.Value
    dtype: ir.DataType
    batch: Size
    heads: Size
    rows: Size
    keys: Size
    width: Size
    v_width: Size

    @classmethod
    def of(cls, matmul: ir.Node, v: ir.Value) -> Heads:
        """Read the sizes where ``matmul`` multiplies queries and transposed keys.

        Raises:
            Decline: the three have not one batch and one number of heads, or a size is not known.
        """
        q, kt = matmul.inputs
        assert q is not None and kt is not None, "MatMul has no optional inputs"
        ranks = {rank(q), rank(kt), rank(v)}
        if ranks not in ({3}, {4}):
            raise Decline(f"{q.name}, {kt.name} and {v.name} have not 3 or 4 dimensions each")
        (*lead, rows, width), (*k_lead, _, keys), (*v_lead, _, v_width) = map(sizes_of, (q, kt, v))
        if lead != k_lead or lead != v_lead:
            raise Decline(f"the batch or the heads of {q.name}, {kt.name} and {v.name} differ")
        batch, heads = lead if len(lead) == 2 else _split(q, lead[0])
        for size, what in (
            (heads, "number of heads"),
            (width, "width of a head"),
            (v_width, "width of a head"),
        ):
            if size.symbols:
                raise Decline(f"the {what} is not known")
        if q.dtype is None:
            raise Decline(f"the type of {q.name} is not known")
        return cls(q, kt, v, q.dtype, batch, heads, rows, keys, width, v_width)

    def axes(self, rows: Size, width: Size) -> Axes:
        """Return the axes of an operand."""
        return Axes({BATCH: self.batch, HEADS: self.heads, ROWS: rows, WIDTH: width})

    @property
    def of_scores(self) -> Axes:
        """The axes of the scores."""
        return Axes({BATCH: self.batch, HEADS: self.heads, ROWS: self.rows, KEYS: self.keys})

    @property
    def of_result(self) -> Axes:
        """The axes of the result."""
        return self.axes(self.rows, self.v_width)

    @property
    def one_width(self) -> bool:
        """Whether heads of keys and of values are as wide."""
        return self.width == self.v_width

    def operands(self) -> tuple[Operand, Operand, Operand]:
        """Return queries, keys and values; a factor on values is none on the scores, so that it stays."""
        q = Operand.of(self.q, self.axes(self.rows, self.width), *self._groups(ROWS, WIDTH))
        k = Operand.of(self.kt, self.axes(self.keys, self.width), *self._groups(WIDTH, ROWS))
        v = Operand.of(self.v, self.axes(self.keys, self.v_width), *self._groups(ROWS, WIDTH))
        v = Operand(v.axes, [view for view in v.path if view.factor == 1.0])
        packed = Counter(o.best.value for o in (q, k, v) if PACKED in o.best.order)
        whole = {value for value, count in packed.items() if count > 1}
        q, k, v = (o if o.best.value in whole else o.unless_packed() for o in (q, k, v))
        return q, k, v

    @property
    def result(self) -> Groups:
        """How the result fills its dimensions."""
        return self.of_result.groups(*self._groups(ROWS, WIDTH))

    @property
    def result_shape(self) -> ir.Shape:
        """The shape of the result."""
        assert self.q.shape is not None and self.v.shape is not None, "their sizes are known"
        return ir.Shape([*self.q.shape[:-1], self.v.shape[-1]])

    def _groups(self, *last: str) -> Groups:
        lead: Groups = ((BATCH,), (HEADS,)) if rank(self.q) == 4 else ((BATCH, HEADS),)
        return (*lead, *((name,) for name in last))


def ungrouped(k: Operand, v: Operand) -> tuple[Operand, Operand]:
    """Return keys and values before their heads were repeated, where both are, each head as often."""
    keys, values = _unrepeated(k), _unrepeated(v)
    if keys is None or values is None or keys.axes[HEADS] != values.axes[HEADS]:
        return k, v
    return keys, values


def _unrepeated(operand: Operand) -> Operand | None:
    """Return ``x`` of ``Reshape(Expand(Unsqueeze(x)))`` that puts copies of a head beside it."""
    view, axes = operand.by_heads, operand.axes
    if view is None:
        return None
    reshape = view.value.producer()
    expand = _feeding(reshape, "Reshape")
    unsqueeze = _feeding(expand, "Expand")
    x = unsqueeze.inputs[0] if is_op(unsqueeze, "Unsqueeze", "Reshape") and unsqueeze is not None else None
    if expand is None or unsqueeze is None or x is None:
        return None
    shapes = [value.shape for value in (expand.outputs[0], unsqueeze.outputs[0], x)]
    after, before, source = ([Size.of(dim) for dim in shape or ()] for shape in shapes)
    batch, heads, rows, width = (axes[name] for name in (BATCH, HEADS, ROWS, WIDTH))
    if len(after) != 5 or len(source) != 4 or source[1] is None or source[1].symbols:
        return None
    groups, repeats = source[1], after[2]
    if repeats is None or groups * repeats != heads or source != [batch, groups, rows, width]:
        return None
    if before != [batch, groups, Size(), rows, width] or after != [batch, groups, repeats, rows, width]:
        return None
    fewer = Axes({**axes.sizes, HEADS: groups})
    order = fewer.groups((BATCH,), (HEADS,), (ROWS,), (WIDTH,))
    return Operand(fewer, list(fewer.path(View(x, order, view.factor)))).unless_packed()


def _feeding(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """Return the node that makes the first input of ``node``, if that is an ``op_type``."""
    source = node.inputs[0] if node is not None and is_op(node, op_type) else None
    return source.producer() if source is not None else None


def _split(q: ir.Value, lead: Size) -> tuple[Size, Size]:
    """Return batch and heads of queries that have both in one dimension; one head where nothing tells them apart."""
    node = q.producer()
    if (found := scaled(node)) is not None:
        node = found[0].producer()
    before = node.inputs[0] if node is not None and is_op(node, "Reshape") else None
    if before is None or before.shape is None or len(before.shape) != 4 or q.shape is None:
        return lead, Size()
    sizes = sizes_of(before)
    if sizes[0] * sizes[1] != lead or sizes[2:] != sizes_of(q)[1:] or sizes[1].symbols:
        return lead, Size()
    return sizes[0], sizes[1]
