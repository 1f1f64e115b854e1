"""What a plugin author subclasses: :class:`Pass` and :class:`Backend` (and :class:`~graphopt.rewrite.Rewrite`)."""

from __future__ import annotations

import abc
import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from .errors import PassError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    import torch

    from .context import Context


class Effect(enum.Enum):
    """What a pass does to the outputs, and so how its result is proved."""

    EXACT = "exact"
    """The outputs are the same up to rounding: proved against the original."""
    LOSSY = "lossy"
    """They are not: proved against the reference that the pass returns in its report."""


class Level(enum.Enum):
    """The form a pass works on."""

    FX = "fx"
    """``torch.fx.GraphModule`` of an exported program, before lowering."""
    ONNX = "onnx"
    """``onnx_ir.Model``."""


@dataclass(frozen=True)
class Applied:
    """One rewrite that was done; its number is what ``--bisect-limit`` counts."""

    number: int
    where: str
    """The anchor: the node's name, or the name of the value that it makes."""
    detail: str = ""


@dataclass(frozen=True)
class Declined:
    """One place where a pass looked closely and left the graph alone."""

    where: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Drift:
    """How far a lossy pass moved one value from what it was."""

    value: str
    node: str
    """What an option like ``exclude`` calls the node that makes the value; empty for a graph output."""
    sqnr_db: float
    """Signal to noise against the value before the pass; infinite where both are equal."""
    added: float = 0.0
    """Noise beyond that of the values that it is made of, as a share of the signal's power."""


@dataclass
class PassReport:
    """What one run of a pass did, and where it did not and why."""

    applied: list[Applied] = field(default_factory=list)
    declined: list[Declined] = field(default_factory=list)
    reference: ir.Model | None = None
    """For a lossy pass: the model that its result must equal up to rounding."""
    restored: ir.Model | None = None
    """For a lossy pass whose loss can be taken out again (the Q/DQ pairs that it put in): its result without it,
    which must equal up to rounding what the pass was given. Either this or ``reference``."""
    notes: list[str] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    """For a lossy pass: graph outputs first, then layers, those that add most noise first."""
    milliseconds: float = 0.0
    """Time spent; the driver fills it in."""

    def decline(self, node: ir.Node, reason: str) -> None:
        """Record why ``node`` was left alone."""
        self.declined.append(Declined(place(node), node.op_type, reason))


def place(node: ir.Node) -> str:
    """Return the name a reader knows ``node`` by: its own, or that of the first value it makes."""
    return node.name or next((v.name for v in node.outputs if v.name), None) or node.op_type


def kebab(name: str) -> str:
    """Return ``FoldBatchNorm`` as ``fold-batch-norm``, keeping runs of capitals together."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


class Pass(BaseModel, abc.ABC):
    """A named graph transformation; its fields are its options, its docstring is its help.

    A subclass sets ``name`` where the class name in kebab case is not what users should type,
    ``effect`` where the outputs change, and ``level`` where it works before lowering.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    name: ClassVar[str] = ""
    effect: ClassVar[Effect] = Effect.EXACT
    level: ClassVar[Level] = Level.ONNX
    family: ClassVar[str] = ""
    """Passes of one family are left out together where the model measures faster without them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = kebab(cls.__name__)

    @abc.abstractmethod
    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Transform ``model`` in place and say what was done and what was not.

        Ask ``context.admit(report, node)`` before each edit that stands on its own: it numbers the edit, and
        answers ``False`` where a bisection or a verdict of verification leaves it out.
        """


class FxPass(Pass, abc.ABC):
    """A pass on the exported program, before it is lowered: a ``GraphModule`` comes in, a ``GraphModule`` goes out."""

    level: ClassVar[Level] = Level.FX

    @abc.abstractmethod
    def transform(self, module: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Return ``module``, changed in place, or another one with the same inputs and outputs.

        It can be called, has its weights as parameters, and is a copy: the original stays as it is.
        """

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Refuse: by the time there is an ONNX model, the program was lowered."""
        raise PassError(f"{self.name}: it works on the exported program, and the model is lowered already")


# --- backends ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeTime:
    """Time spent in one node of the compiled model."""

    node: str
    """Name of the node in the graph that was compiled; of the fused node where the runtime made one."""
    op_type: str
    provider: str
    milliseconds: float
    """Median over the profiled runs."""


@dataclass(frozen=True)
class IntegerSupport:
    """Which integers a target multiplies fast and without overflow."""

    instructions: str
    """What the processor has for it, for reports."""
    activations: str
    """The type of activations: ``uint8`` or ``int8``."""
    weights: str
    reduce_range: bool
    """Whether weights must leave one bit unused for sums not to saturate."""


class Executable(abc.ABC):
    """A model compiled for one device. A context manager; closing it frees the device's memory."""

    input_names: Sequence[str]
    output_names: Sequence[str]

    @abc.abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; arrays by name in, arrays by name out."""

    @abc.abstractmethod
    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Put ``inputs`` where the device reads them, once, for :meth:`step`."""

    @abc.abstractmethod
    def step(self) -> None:
        """Run once on the bound inputs and wait for the end: what :func:`graphopt.measure` times."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free what the device holds."""

    def __enter__(self) -> Executable:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Backend(abc.ABC):
    """One target that models are compiled for, by the name that ``--target`` takes (``onnxruntime:cpu``)."""

    name: str

    @abc.abstractmethod
    def unavailable(self) -> str | None:
        """Return why this target cannot be used here, or ``None`` where it can."""

    @abc.abstractmethod
    def compile(self, model: ir.Model, **settings: Any) -> Executable:
        """Compile ``model``, which is not changed.

        Raises:
            UnavailableError: the target is not what would really run the model.
            ModelError: the runtime refuses the model.
        """

    @abc.abstractmethod
    def profile(self, model: ir.Model, inputs: Mapping[str, np.ndarray], runs: int = 10) -> list[NodeTime]:
        """Return the time spent in each node, in the order of execution."""

    def lowered(self, model: ir.Model, **settings: Any) -> ir.Model | None:
        """Return the graph that the target really runs, without its larger weights; ``None`` where it does not tell.

        Nodes bear the names of those in ``model`` that they come from, as those of :meth:`profile` do, and values
        their types.
        """
        return None

    def supports(self, domain: str, op_type: str, dtype: ir.DataType | None = None) -> bool:
        """Return whether the target has a kernel of its own for an operator (on tensors of ``dtype``).

        What a pass asks before it makes an operator that ONNX does not define, or one of another type. A target
        that does not say runs what ONNX defines.
        """
        return domain == ""

    def integers(self) -> IntegerSupport | None:
        """Return which integers the target multiplies fast, on this machine; ``None`` where that is not known."""
        return None

    def choices(self) -> Iterable[Mapping[str, Any]]:
        """Yield settings of :meth:`compile` that may suit a model better than the default ones."""
        return ()

    def describe(self) -> Iterable[tuple[str, str]]:
        """Yield facts about the target (version, device, threads) for reports: (fact, value)."""
        return ()
