"""Let a Gelu add the bias before it."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import attribute, is_op, same_dim, same_shape, used_once

from ..fusion import MICROSOFT


class FuseBiasGelu(Rewrite):
    """Replace ``Gelu(x + bias)`` by onnxruntime's ``BiasGelu(x, bias)``, its approximation by ``FastGelu(x, bias)``.

    The bias has one axis, the last of x. Exact up to rounding. Source: onnxruntime's com.microsoft BiasGelu and
    FastGelu, version 1.
    """

    family: ClassVar[str] = "activations"
    anchor = ("Gelu", f"{MICROSOFT}::Gelu", f"{MICROSOFT}::FastGelu")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the Gelu that adds."""
        total = node.inputs[0]
        add = total.producer() if total is not None else None
        if total is None or add is None or not is_op(add, "Add") or len(node.inputs) > 1:
            return None
        found = _bias(add)
        if found is None:
            return None
        if not used_once(total):
            raise Decline(f"{total.name} is used elsewhere")
        is_fast = node.op_type == "FastGelu" or attribute(node, "approximate", "none") == "tanh"
        op_type = "FastGelu" if is_fast else "BiasGelu"
        if not tape.has(op_type, MICROSOFT, total.dtype):
            raise Decline(f"the target has no kernel for {op_type}")
        return tape.op(op_type, list(found), domain=MICROSOFT)


def _bias(add: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Return what is added to and the bias; ``None`` where no operand is a bias.

    Raises:
        Decline: an operand has one axis, and it is not known to be as long as the last axis of the other.
    """
    a, b = add.inputs
    assert a is not None and b is not None, "both operands of Add are there"
    for x, bias in ((a, b), (b, a)):
        if bias.shape is not None and len(bias.shape) == 1 and x.shape is not None and len(x.shape) > 1:
            if not same_dim(x.shape[-1], bias.shape[0]) or not same_shape(x, add.outputs[0]):
                raise Decline(f"{bias.name} is not known to be as long as the last axis of {x.name}")
            return x, bias
    return None
