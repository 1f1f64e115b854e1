"""What fusions share: which operators they may make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import onnx_ir as ir
from pydantic import Field

from graphopt import Decline, Rewrite, Tape

MICROSOFT = "com.microsoft"


class Fusion(Rewrite):
    """A rewrite that makes one operator of several, where it may."""

    dialect: Literal["target", "standard"] = Field(
        "target", description="make what the target has a kernel for, or ONNX's own operators alone"
    )

    def may(
        self, tape: Tape, op_type: str, dtype: ir.DataType | None, domain: str = "", since: int = 1
    ) -> bool:
        """Return whether an operator may be made; ``since`` is the opset that brought it."""
        if domain == "" and tape.opset < since:
            return False
        return domain == "" if self.dialect == "standard" else tape.has(op_type, domain, dtype)

    def refusal(self, tape: Tape, op_type: str, dtype: ir.DataType | None, since: int) -> Decline:
        """Return why no form of ``op_type`` may be made."""
        if self.dialect == "standard" or (tape.context.target is None and tape.opset < since):
            return Decline(f"ONNX has {op_type} from opset {since} on; the model imports {tape.opset}")
        kind = f" on {dtype.name.lower()}" if dtype is not None else ""
        target = tape.context.target
        return Decline(f"{target.name if target is not None else 'ONNX'} has no kernel for {op_type}{kind}")


def check_private(nodes: Iterable[ir.Node], root: ir.Node) -> None:
    """Decline where something besides ``nodes`` reads what they make, other than what ``root``, one of them, makes."""
    inside = dict.fromkeys(nodes)
    for value in (value for node in inside if node is not root for value in node.outputs):
        if value.is_graph_output() or any(reader not in inside for reader in value.consumers()):
            raise Decline(f"{value.name} is used elsewhere")
