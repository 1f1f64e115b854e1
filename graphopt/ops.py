"""What graphopt knows of operators: one row each, which plugins extend through ``register_operators``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from .analysis.channels import Flow


@dataclass(frozen=True)
class OpInfo:
    """What an operator does to a graph.

    The default row is what may be assumed of an operator that nobody described: it is deterministic, has no
    effect besides its outputs, and says nothing of shapes and channels.
    """

    elementwise: bool = False
    """Each output element depends on the input elements at its own (broadcast) position only."""
    arity: int = 1
    """Of an elementwise operator: how many of its inputs are broadcast data (Clip has 1, Where has 3)."""
    commutative: bool = False
    """Its two inputs may be swapped."""
    random: bool = False
    """Two runs give different outputs: never folded, merged or moved."""
    keeps_elements: bool = False
    """The output has the input's elements, in their order, in another shape."""
    channel_axis: int | None = None
    """The axis that weights and normalization treat as channels, where there is one."""
    channels: Callable[[ir.Node, Flow], None] | None = None
    """The rule that says where channels go, of an operator that ``graphopt.analysis.channels`` has no rule for."""


UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus "
    "Softsign Sqrt Swish Tan Tanh ThresholdedRelu Identity"
).split()
BINARY = "Sub Div Pow Mod Greater GreaterOrEqual Less LessOrEqual BitShift PRelu".split()
COMMUTATIVE = "Add Mul And Or Xor Equal BitwiseAnd BitwiseOr BitwiseXor".split()
RANDOM = "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split()
RESHAPING = "Reshape Flatten Squeeze Unsqueeze Identity".split()
CHANNELS_FIRST = (
    "Conv ConvTranspose BatchNormalization InstanceNormalization GroupNormalization AveragePool MaxPool "
    "GlobalAveragePool GlobalMaxPool LpPool GlobalLpPool LRN"
).split()


def _table() -> dict[tuple[str, str], OpInfo]:
    rows: dict[str, OpInfo] = {name: OpInfo(elementwise=True) for name in UNARY}
    rows |= {name: OpInfo(elementwise=True, arity=2) for name in BINARY}
    rows |= {name: OpInfo(elementwise=True, arity=2, commutative=True) for name in COMMUTATIVE}
    rows |= {name: OpInfo(elementwise=True, arity=0) for name in ("Max", "Min", "Mean", "Sum")}
    rows |= {"Where": OpInfo(elementwise=True, arity=3)}
    rows |= {name: OpInfo(random=True) for name in RANDOM}
    rows |= {name: OpInfo(keeps_elements=True, elementwise=name == "Identity") for name in RESHAPING}
    rows |= {name: OpInfo(channel_axis=1) for name in CHANNELS_FIRST}
    return {("", name): info for name, info in rows.items()}


BUILT_IN: Mapping[tuple[str, str], OpInfo] = _table()
UNKNOWN = OpInfo()


def op_info(node: ir.Node) -> OpInfo:
    """Return the row of ``node``'s operator, a plugin's where there is one."""
    from .plugins import operators

    return operators().get((node.domain, node.op_type), UNKNOWN)


def is_random(node: ir.Node) -> bool:
    """Return whether two runs of ``node`` on the same inputs may differ.

    Dropout is random only in training mode, which a node asks for by its third input (opset 12).
    """
    if op_info(node).random:
        return True
    return (
        node.op_type == "Dropout"
        and node.domain == ""
        and len(node.inputs) > 2
        and node.inputs[2] is not None
    )
