"""The reference of a pruned model: the original with zeros where slices were cut away, made without the surgery."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import clone
from graphopt.analysis.channels import ChannelGroups, Count, Fix
from graphopt.query import attribute, constant, constant_tensor, is_constant, optional

from ..channels import FLOATS
from .cut import Knife, sliced

Array = np.ndarray[Any, Any]


def masked(model: ir.Model, groups: ChannelGroups, gone: Array) -> ir.Model:
    """Return ``model`` with zeros in place of the slices that ``gone`` marks.

    All shapes stay as they are. A node whose result depends on how many channels there are (a mean over them, a
    LayerNormalization) gets those that are left and makes zeros for the others; where activations are multiplied by
    activations and summed over channels, those that go are masked.
    """
    mask = _Mask(clone(model), groups, gone)
    mask.zero()
    mask.divide()
    mask.count()
    mask.contract()
    mask.shrink()
    return mask.model


class _Mask(Knife):
    def zero(self) -> None:
        """Put zeros into constants."""
        spared = {node.inputs[index] for node, index in self.groups.flow.nonzero}
        names = {value.name for value in spared if value is not None}
        for name, kept in self.kept.items():
            value = self.values.get(name)
            if value is None or not is_constant(value) or name in names:
                continue
            array = constant(value)
            zero = _zero(value)
            if zero is not None:
                self.replace(value, np.where(_left(kept), array, zero.astype(array.dtype)))

    def divide(self) -> None:
        """Put ones where something not finite would come of zeros: that does not vanish when multiplied by 0."""
        for divided, index in self.groups.flow.nonzero:
            node, original = self.node(divided), divided.inputs[index]
            kept = self.kept.get(original.name or "") if original is not None else None
            if node is None or kept is None or is_constant(node.inputs[index]):
                continue
            assert original is not None
            dtype = original.dtype or ir.DataType.FLOAT
            mask, one = self.constant(_left(kept), "mask"), self.constant(np.ones((), dtype.numpy()), "one")
            node.replace_input_with(index, self._op(node, "Where", [mask, node.inputs[index], one]))

    def count(self) -> None:
        """Give nodes that count channels those that are left."""
        edits = [e for e in self.groups.flow.edits if isinstance(e, Count | Fix)]
        for counting in self.groups.flow.counting:
            node = self.node(counting)
            if node is None or not any(v.name in self.kept for v in counting.inputs if v is not None):
                continue
            self.edit([e for e in edits if e.node is counting])
            for index, (value, original) in enumerate(zip(list(node.inputs), counting.inputs, strict=True)):
                kept = self.kept.get(original.name or "") if original is not None else None
                if value is None or kept is None:
                    continue
                if is_constant(value):
                    small = self.constant(sliced(constant(value), kept), f"{value.name}_left")
                else:
                    small = self._picked(node, value, kept)
                node.replace_input_with(index, small)
            for value in list(node.outputs):
                if value.name in self.kept:
                    self._spread(node, value, self.kept[value.name])

    def _picked(self, node: ir.Node, value: ir.Value, kept: list[Array | None]) -> ir.Value:
        for axis, each in enumerate(kept):
            if each is not None:
                value = self._op(node, "Gather", [value, self.constant(np.flatnonzero(each), "left")], axis)
        return value

    def _spread(self, node: ir.Node, value: ir.Value, kept: list[Array | None]) -> None:
        """Let what reads ``value`` read zeros where channels are gone."""
        after = _next(node)
        uses = list(value.uses())
        wide, value.shape = value, None
        for axis, each in enumerate(kept):
            if each is None:
                continue
            pads = np.zeros((2, len(kept)), np.int64)
            pads[1, axis] = 1  # a slice of zeros at the end, for all that are gone
            padded = self._op(after, "Pad", [wide, self.constant(pads.reshape(-1), "pads")])
            where = np.where(each, np.cumsum(each) - 1, int(each.sum()))
            wide = self._op(after, "Gather", [padded, self.constant(where, "places")], axis)
        for use in uses:
            use.node.replace_input_with(use.idx, wide)

    def contract(self) -> None:
        """Mask activations that are multiplied by activations and summed over channels."""
        for product, index, axis in self.groups.flow.contracted:
            node, value = self.node(product), product.inputs[index]
            kept = self.kept.get(value.name or "") if value is not None else None
            if node is None or kept is None or kept[axis] is None:
                continue
            assert value is not None
            along = [each if i == axis else None for i, each in enumerate(kept)]
            mask = self.constant(_left(along).astype((value.dtype or ir.DataType.FLOAT).numpy()), "mask")
            node.replace_input_with(index, self._op(node, "Mul", [node.inputs[index], mask]))

    def shrink(self) -> None:
        """Take what is gone out of outputs that may shrink."""
        outputs = self.model.graph.outputs
        for index, value in enumerate(list(outputs)):
            name = value.name or ""
            counted = {value.name for node in self.groups.flow.counting for value in node.outputs}
            if (
                name in self.kept and name not in counted
            ):  # a node that counts makes what is left alone already
                small = value
                for axis, each in enumerate(self.kept[name]):
                    if each is not None:
                        small = self._op(
                            None, "Gather", [small, self.constant(np.flatnonzero(each), "left")], axis
                        )
                value.name = self.names.fresh(f"{name}_whole")
                small.name, small.type = name, value.type
                outputs[index] = small

    def _op(
        self, before: ir.Node | None, op_type: str, inputs: list[ir.Value | None], axis: int | None = None
    ) -> ir.Value:
        attributes = [ir.AttrInt64("axis", axis)] if axis is not None else []
        made = ir.Node("", op_type, inputs, attributes, num_outputs=1)
        made.name = self.names.fresh_node(f"{op_type}_masked")
        made.outputs[0].name = self.names.fresh(f"{op_type}_masked")
        if before is None:
            self.model.graph.append(made)
        else:
            self.insert(before, made)
        return made.outputs[0]


def _left(kept: list[Array | None]) -> Array:
    """Return which elements are left, in a shape that is broadcast to theirs."""
    left = np.ones([1] * len(kept), bool)
    for axis, each in enumerate(kept):
        if each is not None:
            left = left & each.reshape([-1 if i == axis else 1 for i in range(len(kept))])
    return left


def _zero(value: ir.Value) -> Array | None:
    """Return what stands for zero in a constant; ``None`` where it holds no weights."""
    tensor = constant_tensor(value)
    if tensor is not None and tensor.dtype in FLOATS:
        return np.zeros(())
    uses = list(value.uses())
    if not uses or any((use.node.op_type, use.idx) != ("DequantizeLinear", 0) for use in uses):
        return None
    point = optional(uses[0].node, 2)
    if point is None:
        return np.zeros(())
    zero, rank = constant(point), len(constant(value).shape)
    axis = attribute(uses[0].node, "axis", 1) % rank if zero.ndim else 0
    return zero.reshape([-1 if i == axis and zero.ndim else 1 for i in range(rank)])


def _next(node: ir.Node) -> ir.Node | None:
    """Return the node behind another one."""
    found = False
    for each in node.graph or ():
        if found:
            return each
        found = each is node
    return None
