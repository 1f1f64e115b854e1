"""The reference of a pruned model: the original with zeros where slices were cut away, made without the surgery."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import clone
from graphopt.analysis.channels import ChannelGroups, Count, Fix
from graphopt.query import constant, constant_tensor, is_constant

from .cut import Knife, sliced

Array = np.ndarray[Any, Any]
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def masked(model: ir.Model, groups: ChannelGroups, gone: Array) -> ir.Model:
    """Return ``model`` with zeros in place of the slices that ``gone`` marks.

    All shapes stay as they are. A node whose result depends on how many channels there are (a mean over them, a
    LayerNormalization) gets those that are left and makes zeros for the others; where activations are multiplied by
    activations and summed over channels, those that go are masked.
    """
    mask = _Mask(clone(model), groups, gone)
    mask.zero()
    mask.count()
    mask.contract()
    mask.shrink()
    return mask.model


class _Mask(Knife):
    def zero(self) -> None:
        """Put zeros into constants."""
        spared = {value.name for value in self.groups.flow.nonzero}
        for name, kept in self.kept.items():
            value = self.values.get(name)
            tensor = constant_tensor(value)
            if value is None or tensor is None or name in spared or tensor.dtype not in FLOATS:
                continue
            array = constant(value).copy()
            for axis, each in enumerate(kept):
                if each is not None:
                    array[(slice(None),) * axis + (~each,)] = 0
            self.replace(value, array)

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
            shape = [1] * len(kept)
            shape[axis] = -1
            dtype = (value.dtype or ir.DataType.FLOAT).numpy()
            mask = self.constant(kept[axis].reshape(shape).astype(dtype), "mask")  # type: ignore[union-attr]
            node.replace_input_with(index, self._op(node, "Mul", [node.inputs[index], mask]))

    def shrink(self) -> None:
        """Take what is gone out of outputs that may shrink."""
        outputs = self.model.graph.outputs
        for index, value in enumerate(list(outputs)):
            name = value.name or ""
            counted = {value.name for node in self.groups.flow.counting for value in node.outputs}
            if (
                name in self.kept and name not in counted
            ):  # what counts channels makes those that are left alone
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


def _next(node: ir.Node) -> ir.Node | None:
    """Return the node behind another one."""
    found = False
    for each in node.graph or ():
        if found:
            return each
        found = each is node
    return None
