"""What a target made of a quantized model: which nodes run on integers, which conversions are left, and why."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from .context import Feeds, Progress, silent
from .errors import ModelError, UnavailableError
from .interfaces import place
from .query import all_nodes, constant_tensor

if TYPE_CHECKING:
    from .interfaces import Backend

Kind = Literal["integers", "floats", "conversion", "other"]
"""What a node computes with; ``other``: shapes and truth values."""
WIDEST_BITS = 16
"""Integers of more bits are indices, sizes and sums, not quantized numbers."""
QUANTIZE, DEQUANTIZE = ("QuantizeLinear", "DynamicQuantizeLinear"), "DequantizeLinear"
BYTE = 8
"""Bits of the integers that kernels multiply."""
SIZES = ("Shape", "Size")
PRODUCT = re.compile("Conv|MatMul|Gemm")
"""In the names of operators that multiply by weights, whatever they are fused with."""
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Kernel:
    """One node of the graph that the target runs."""

    name: str
    op_type: str
    kind: Kind
    milliseconds: float
    reason: str = ""
    """Of a conversion: why it is left."""
    stranded: bool = False
    """Of a conversion: whether it stands between two integer kernels, and so for nothing."""


@dataclass(frozen=True)
class Lowering:
    """What a target runs for a model."""

    target: str
    kernels: tuple[Kernel, ...]

    def of(self, kind: Kind) -> list[Kernel]:
        """Return the kernels of one kind, in the order of the graph."""
        return [kernel for kernel in self.kernels if kernel.kind == kind]

    @property
    def products(self) -> tuple[int, int]:
        """How many products run on integers, and how many there are."""
        found = [kernel.kind for kernel in self.kernels if PRODUCT.search(kernel.op_type)]
        return found.count("integers"), len(found)

    def operators(self) -> list[tuple[Kind, str, int, float]]:
        """Return (kind, operator, nodes, milliseconds), by kind and time."""
        counts: Counter[tuple[Kind, str]] = Counter()
        spent: defaultdict[tuple[Kind, str], float] = defaultdict(float)
        for kernel in self.kernels:
            counts[kernel.kind, kernel.op_type] += 1
            spent[kernel.kind, kernel.op_type] += kernel.milliseconds
        kinds: Sequence[Kind] = ("integers", "floats", "conversion", "other")
        keys = sorted(counts, key=lambda key: (kinds.index(key[0]), -spent[key], key[1]))
        return [(*key, counts[key], spent[key]) for key in keys]

    def text(self) -> str:
        """Return one sentence on what runs on integers and what is left of the pairs."""
        done, products = self.products
        left = self.of("conversion")
        stranded = sum(kernel.stranded for kernel in left)
        verb = "stays" if len(left) == 1 else "stay"
        between = f", {stranded} of them between integer kernels" if stranded else ""
        return (
            f"{done} of {products} products run on integers; {len(left)} QuantizeLinear and DequantizeLinear "
            f"{verb}{between} (graphopt explain MODEL names them)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        done, products = self.products
        return {
            "target": self.target,
            "products": products,
            "integer_products": done,
            "kernels": [asdict(kernel) for kernel in self.kernels],
        }


def lowering(
    model: ir.Model, target: Backend, times: Iterable[tuple[str, str, float]] = ()
) -> Lowering | None:
    """Return what ``target`` runs for ``model``; ``None`` where it does not tell.

    Args:
        model: the model, which is not changed.
        target: the backend; it compiles the model.
        times: (node, operator, milliseconds), as profiled; nothing is known of time where they are missing.

    Raises:
        UnavailableError: the target cannot be used here.
        ModelError: it refuses the model.
    """
    graph = target.lowered(model)
    if graph is None:
        return None
    spent: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for name, op_type, milliseconds in times:
        spent[name, op_type].append(milliseconds)
    kernels = []
    for node in all_nodes(graph):
        key = (place(node), node.op_type)
        time = spent[key].pop(0) if spent[key] else 0.0
        kind = kind_of(node)
        reason, stranded = why(node, target) if kind == "conversion" else ("", False)
        kernels.append(Kernel(*key, kind, time, reason, stranded))
    return Lowering(target.name, tuple(kernels))


def told(model: ir.Model, target: Backend) -> list[str]:
    """Return a sentence on what ``target`` runs on integers; nothing where ``model`` has none, or nobody can tell."""
    if target.unavailable() is not None or not converts(model):
        return []
    try:
        found = lowering(model, target)
    except (ModelError, UnavailableError) as error:
        return [f"what {target.name} runs on integers is not known: {error}"]
    return [found.text()] if found is not None else []


def explain_integers(
    model: object,
    target: str = "onnxruntime:cpu",
    inputs: Feeds | Sequence[Feeds] | None = None,
    *,
    runs: int = 10,
    seed: int = 0,
    progress: Progress = silent,
) -> Lowering:
    """Compile and profile a model, from any source that :func:`graphopt.optimize` takes; say what runs on integers.

    Raises:
        UsageError: the source, the inputs or the target make no sense.
        UnavailableError: the target cannot be used here, or does not tell what it runs.
    """
    from . import frontends, measuring, plugins

    backend, read = plugins.get_backend(target), frontends.read(model)
    (shares,) = measuring.profile(
        [read], inputs, target=backend, runs=runs, seed=seed, progress=progress
    ).values()
    progress("compiling", 0, 0)
    found = lowering(read, backend, ((each.node, each.op_type, each.milliseconds) for each in shares))
    if found is None:
        raise UnavailableError(f"{target}: it does not tell which kernels it runs; use another target")
    return found


# --- what a node computes with ----------------------------------------------------------------------------------------


def converts(model: ir.Model) -> bool:
    """Return whether a model makes integers of floats as it runs; one with nothing but rounded weights does not."""
    return any(
        node.op_type in QUANTIZE or node.op_type.startswith("DynamicQuantize") for node in all_nodes(model)
    )


def kind_of(node: ir.Node) -> Kind:
    """Return what a node of the target's graph computes with."""
    if node.op_type in QUANTIZE or node.op_type == DEQUANTIZE:
        return "conversion"
    dtypes = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None]
    if node.op_type in SIZES:
        return "other"
    if node.op_type != "Cast" and any(map(_quantized, dtypes)):
        return "integers"
    return "floats" if any(dtype is not None and dtype.is_floating_point() for dtype in dtypes) else "other"


def _quantized(dtype: ir.DataType | None) -> bool:
    return dtype is not None and dtype.is_integer() and dtype.bitwidth <= WIDEST_BITS


def why(node: ir.Node, target: Backend) -> tuple[str, bool]:
    """Return why a conversion is left, and whether it stands between integer kernels, for nothing."""
    return _why_dequantize(node, target) if node.op_type == DEQUANTIZE else _why_quantize(node, target)


def _why_quantize(node: ir.Node, target: Backend) -> tuple[str, bool]:
    x = node.inputs[0]
    maker = x.producer() if x is not None else None
    if maker is None:
        return f"it quantizes {_called(x)}", False
    if maker.op_type == DEQUANTIZE:
        return f"it and {place(maker)} before it do nothing but change the scale", True
    reason, stranded = _why_float(maker, target)
    return f"{maker.op_type} {place(maker)}, which makes what it reads, {reason}", stranded


def _why_dequantize(node: ir.Node, target: Backend) -> tuple[str, bool]:
    (y,) = node.outputs
    readers = list(y.consumers())
    if y.is_graph_output():
        return f"it gives graph output {y.name} in floats", False
    if not readers:
        return f"nothing reads {y.name}", True
    if all(reader.op_type in QUANTIZE for reader in readers):
        return f"it and {place(readers[0])} behind it do nothing but change the scale", True
    reader = next(reader for reader in readers if reader.op_type not in QUANTIZE)
    reason, stranded = _why_float(reader, target)
    if constant_tensor(node.inputs[0]) is not None:
        return f"{reader.op_type} {place(reader)}, which reads these weights, {reason}", False
    return f"{reader.op_type} {place(reader)}, which reads it, {reason}", stranded


def _why_float(node: ir.Node, target: Backend) -> tuple[str, bool]:
    """Return why a node next to a conversion computes in floats, and whether nothing is in the way of integers."""
    if kind_of(node) == "integers":
        return "has an integer kernel that gives floats", False
    if not has_integer_kernel(target, node):
        return "has no integer kernel", False
    if wide := next((d for v in node.inputs if (d := _behind(v)) is not None and d.bitwidth != BYTE), None):
        return f"has no integer kernel that reads {wide.name.lower()}", False
    for value in node.inputs:
        if value is not None and _is_float(value) and _behind(value) is None:
            return f"computes in floats: it reads {_name(value)} in floats", False
    for value in node.outputs:
        if value.is_graph_output():
            return f"computes in floats: it makes graph output {value.name}", False
        for reader in value.consumers():
            if reader.op_type not in QUANTIZE:
                return (
                    f"computes in floats: {reader.op_type} {place(reader)} reads its result in floats",
                    False,
                )
    return "computes in floats between pairs: the target has an integer kernel and did not take it", True


def has_integer_kernel(target: Backend, node: ir.Node) -> bool:
    """Return whether a target has a kernel on integers for the operator: one of its own name, or one on 8 bits."""
    names = [f"{prefix}{op}" for prefix in ("QLinear", "Q") for op in _stems(node.op_type)]
    return any(
        target.supports(domain, name) for domain in ("", MICROSOFT) for name in names
    ) or target.supports(node.domain, node.op_type, ir.DataType.UINT8)


def _stems(op_type: str) -> Iterator[str]:
    """Yield an operator's name, and without what a runtime's fusions put before it."""
    yield op_type
    yield op_type.removeprefix("Fused")


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _behind(value: ir.Value | None) -> ir.DataType | None:
    """Return the type of the integers that a DequantizeLinear makes ``value`` of; ``None`` where none does."""
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != DEQUANTIZE or maker.inputs[0] is None:
        return None
    return maker.inputs[0].dtype or ir.DataType.UINT8


def _name(value: ir.Value | None) -> str:
    return (value.name if value is not None else None) or "?"


def _called(value: ir.Value | None) -> str:
    if value is not None and value.is_graph_input():
        return f"graph input {value.name}"
    return f"constant {_name(value)}"
