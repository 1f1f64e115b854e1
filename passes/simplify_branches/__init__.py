"""Replace an If of which no run can take one branch by the other branch."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import is_constant

from ..fold_constants.branches import inline_branch
from .world import Impossible, World


class SimplifyBranches(Rewrite):
    """Replace an If by one branch where no run that takes the other one gets to its end.

    Exporters write ``if x.shape[-1] == 1: x = x.squeeze(-1)`` as an If that leaves the rank of its output open, and
    whatever reads it undecided::

        c = Equal(Shape(x)[2], 1)
        y = If(c) {Squeeze(x, 2)} {Identity(x)}      y = Squeeze(x, 2)
        z = LSTM(Unsqueeze(y, 0), …)                 z = LSTM(Unsqueeze(y, 0), …)

    Each branch is assumed in turn. What follows from it for ranks, sizes and conditions is worked out for the nodes
    that read the If and its condition, other Ifs included. Where it ends in a node that cannot run (an LSTM whose
    input is not of rank 3, a Squeeze of a size that is not 1, an axis out of range …) and on which an output depends,
    no run takes that branch.

    Exact wherever the original runs. A run that the original stops with an error need not stop here, or stops at
    another node. Shapes that the model declares are taken to hold.
    Source: ONNX If-1 to 25; RNN, GRU, LSTM-1 to 22 (X: rank 3); Squeeze-1 to 25 (an error where the size is not 1);
    Conv-1 to 22, ConvTranspose-1 to 22 (as many axes as the kernel);
    MaxPool-1 to 22, AveragePool-1 to 22; Transpose-1 to 25.
    """

    anchor = "If"

    def replace(self, node: ir.Node, tape: Tape) -> list[ir.Value | None] | None:
        """Return the outputs of the only branch that can run."""
        if is_constant(node.inputs[0]) or not _decides(node):
            return None
        never_then = World(node, "then_branch").contradiction()
        never_else = World(node, "else_branch").contradiction()
        if never_then is None and never_else is None:
            raise Decline("either branch may run")
        if never_then is not None and never_else is not None:
            raise Decline(f"neither branch can run: {_told(never_then)}; {_told(never_else)}")
        return inline_branch(node, "then_branch" if never_else is not None else "else_branch", tape)


def _decides(node: ir.Node) -> bool:
    """Return whether another node reads what the If makes or its condition, and so may contradict a branch."""
    return any(
        v is not None and any(r is not node for r in v.consumers()) for v in (*node.outputs, node.inputs[0])
    )


def _told(why: Impossible) -> str:
    return f"at {why.node.outputs[0].name or why.node.op_type} {why}"
