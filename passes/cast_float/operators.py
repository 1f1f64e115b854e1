"""Which inputs and outputs of a node may be of a shorter type, by ONNX's own definitions and the target's kernels."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import Decline
from graphopt.query import attribute, has_subgraphs, opset

if TYPE_CHECKING:
    from graphopt.context import Context

FLOAT = ir.DataType.FLOAT
FIXED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "CastLike", "Range", "CumSum")
"""Operators about numbers that a shorter type does not hold: positions, and the grids of integers."""
MICROSOFT = (
    "Attention BiasGelu FastGelu FusedConv FusedMatMul Gelu MultiHeadAttention QuickGelu RotaryEmbedding "
    "SkipLayerNormalization SkipSimplifiedLayerNormalization"
).split()
"""Operators of com.microsoft all of whose floats are of one type."""


class Ports:
    """The float inputs and outputs of one node that become shorter together."""

    def __init__(self, inputs: list[int], outputs: list[int]) -> None:
        self.inputs, self.outputs = inputs, outputs


def ports(node: ir.Node, to: ir.DataType, context: Context) -> Ports:
    """Return what of ``node`` may be of type ``to``.

    Raises:
        Decline: nothing may.
    """
    if has_subgraphs(node):
        raise Decline("it carries graphs, which stay as they are")
    unknown = [value.name for value in node.outputs if value.name and value.dtype is None]
    if unknown:
        raise Decline(f"the type of {unknown[0]} is not known")
    if node.op_type in FIXED:
        raise Decline("its numbers need the longer type")
    if node.op_type == "Cast" and node.domain == "":
        return _cast(node)
    target = context.target
    name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    if target is not None and not target.supports(node.domain, node.op_type, to):
        raise Decline(f"{target.name} has no {to.name.lower()} kernel of {name}")
    known = _formal(node.op_type, opset(node), node.domain, to)
    if known is None:
        raise Decline(f"{name} is not defined for {to.name.lower()}")
    inputs, outputs = known
    found = Ports(
        [i for i, v in enumerate(node.inputs) if v is not None and v.dtype == FLOAT and _at(inputs, i)],
        [i for i, v in enumerate(node.outputs) if v.name and v.dtype == FLOAT and _at(outputs, i)],
    )
    if not found.inputs:
        raise Decline(f"no input of {name} may be {to.name.lower()}")
    return found


def _cast(node: ir.Node) -> Ports:
    """A Cast to float may make the shorter type at once; one from float to something else needs all digits."""
    if attribute(node, "to") != FLOAT or node.inputs[0] is None or node.inputs[0].dtype == FLOAT:
        raise Decline("what it makes depends on all digits")
    return Ports([], [0])


def _at(flags: tuple[bool, ...], i: int) -> bool:
    return flags[min(i, len(flags) - 1)] if flags else False


@lru_cache(None)
def _formal(
    op_type: str, version: int, domain: str, to: ir.DataType
) -> tuple[tuple[bool, ...], tuple[bool, ...]] | None:
    """Return for each formal input and output whether it may be ``to`` where it may be float.

    An output may where an input of the same type variable is there to say so.
    """
    import onnx

    if domain == "com.microsoft":
        return ((True,), (True,)) if op_type in MICROSOFT else None
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    short = f"tensor({to.name.lower()})"
    both = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if {"tensor(float)", short} <= set(constraint.allowed_type_strs)
    }
    given = {formal.type_str for formal in schema.inputs} & both
    return (
        tuple(formal.type_str in both for formal in schema.inputs),
        tuple(formal.type_str in given for formal in schema.outputs),
    )
