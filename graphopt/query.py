"""Questions a pass asks of the graph; each answers, or declines with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import numpy as np
import onnx_ir as ir

from .interfaces import place as place

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")
GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class Decline(Exception):
    """Raised by ``replace`` where a node does not qualify; the reason is reported, never swallowed."""


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor behind ``value``, or ``None`` where a run could give it another value.

    An initializer that is also a graph input is a default that a caller may override; it counts as a constant
    only where the graph is of an IR version below 4, which has no other initializers.
    """
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        if value.const_value is None or not value.is_initializer() or value.is_graph_input():
            return None
        return value.const_value
    if producer.op_type != "Constant" or producer.domain != "":
        return None
    if value.const_value is not None:
        return value.const_value
    held = producer.attributes.get("value")
    if held is not None and held.type == ir.AttributeType.TENSOR and not held.is_ref():
        # get_const_tensor would rename the tensor, which other models may share; as_tensor checks a typing protocol
        return cast("ir.TensorProtocol", held.value)
    if "sparse_value" in producer.attributes or not producer.attributes:
        return None
    value.const_value = ir.convenience.get_const_tensor(value)  # remembered: it is asked for many times
    return value.const_value


def constant(value: ir.Value | None) -> np.ndarray[Any, Any]:
    """Return the array behind ``value``.

    Raises:
        Decline: ``value`` is missing, or is not a constant.
    """
    if value is None:
        raise Decline("an optional input is missing")
    tensor = constant_tensor(value)
    if tensor is None:
        raise Decline(f"{value.name} is not a constant")
    return tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Return whether every run gives ``value`` the same known array."""
    return constant_tensor(value) is not None


def scalar(value: ir.Value | None) -> float | int | bool | None:
    """Return the one element of a constant of one element, else ``None``. Large weights are not read."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return cast("float | int | bool", tensor.numpy().reshape(()).item())


def ints(value: ir.Value | None) -> list[int]:
    """Return a constant 0-D or 1-D integer tensor as a list.

    Raises:
        Decline: it is missing or not a constant.
    """
    return [int(i) for i in constant(value).reshape(-1)]


def optional(node: ir.Node, index: int) -> ir.Value | None:
    """Return input ``index`` of ``node``, or ``None`` where it is omitted."""
    return node.inputs[index] if index < len(node.inputs) else None


@overload
def attribute(node: ir.Node, name: str, default: T) -> T: ...
@overload
def attribute(node: ir.Node, name: str) -> Any: ...


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return the value of an attribute, as the Python type that ONNX gives it, or ``default``.

    Raises:
        Decline: the attribute refers to a parameter of the function that the node stands in.
    """
    attr = node.attributes.get(name)
    if attr is None:
        return default
    if attr.is_ref():
        raise Decline(f"its attribute {name} is a parameter of the function")
    if attr.type == ir.AttributeType.INTS or attr.type == ir.AttributeType.FLOATS:
        return list(attr.value)
    return attr.value


def opset(node: ir.Node) -> int:
    """Return the version of the node's operator set that the graph around it imports."""
    graph = node.graph
    version = graph.opset_imports.get(node.domain) if graph is not None else None
    return version or node.version or 1


def is_op(node: ir.Node | None, *op_types: str, domain: str = "") -> bool:
    """Return whether ``node`` is one of the operators ``op_types`` of ``domain``."""
    return node is not None and node.op_type in op_types and node.domain == domain


def producer(value: ir.Value | None, *op_types: str) -> ir.Node:
    """Return the node that makes ``value``, if it is one of ``op_types`` of the ONNX domain.

    Raises:
        Decline: nothing or something else makes it.
    """
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in op_types or node.domain != "":
        raise Decline(f"no {' or '.join(op_types)} feeds it")
    return node


def sole_producer(value: ir.Value | None, *op_types: str) -> ir.Node:
    """Return the node that makes ``value``, if it is one of ``op_types`` and nothing else reads ``value``.

    Raises:
        Decline: something else makes it, or something else reads it.
    """
    node = producer(value, *op_types)
    assert value is not None
    if not used_once(value):
        raise Decline(f"{value.name} is used elsewhere")
    return node


def used_once(value: ir.Value) -> bool:
    """Return whether exactly one input of one node reads ``value``, and it is no graph output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def sole_consumer(value: ir.Value, *op_types: str) -> ir.Node:
    """Return the one node that reads ``value``, if it is one of ``op_types``.

    Raises:
        Decline: ``value`` is a graph output, or is read by another operator or by several nodes.
    """
    if value.is_graph_output():
        raise Decline(f"{value.name} is a graph output")
    consumers = value.consumers()
    if len(consumers) != 1 or not is_op(consumers[0], *op_types):
        raise Decline(f"{value.name} does not feed one {' or '.join(op_types)} alone")
    return consumers[0]


def rank(value: ir.Value | None) -> int:
    """Return the number of dimensions.

    Raises:
        Decline: the rank is not known.
    """
    if value is None:
        raise Decline("an optional input is missing")
    if value.shape is None:
        raise Decline(f"the rank of {value.name} is not known")
    return len(value.shape)


def static_shape(value: ir.Value | None) -> tuple[int, ...]:
    """Return a shape in which every dimension is a number.

    Raises:
        Decline: the shape, or a dimension of it, is not known.
    """
    if value is None:
        raise Decline("an optional input is missing")
    if value.shape is None or not value.shape.is_static():
        raise Decline(f"the shape of {value.name} is not known")
    return value.shape.numpy()


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Return whether two values have the same shape at every run; symbols must be the same named symbol."""
    if a is None or b is None or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(same_dim(m, n) for m, n in zip(a.shape, b.shape, strict=True))


def same_dim(m: int | ir.SymbolicDim, n: int | ir.SymbolicDim) -> bool:
    """Return whether two dimensions are equal at every run; two unnamed ones are not known to be."""
    if isinstance(m, int) or isinstance(n, int):
        return isinstance(m, int) and isinstance(n, int) and m == n
    return m.value is not None and m.value == n.value


def axis_of(axis: int, rank: int) -> int:
    """Return ``axis`` counted from the front.

    Raises:
        Decline: it is out of range.
    """
    if not -rank <= axis < rank:
        raise Decline(f"axis {axis} is out of range for rank {rank}")
    return axis % rank if rank else 0


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that ``node`` carries as attributes."""
    if not has_subgraphs(node):
        return
    for attr in node.attributes.data.values():
        if attr.type == ir.AttributeType.GRAPH and not attr.is_ref():
            yield attr.as_graph()
        elif attr.type == ir.AttributeType.GRAPHS and not attr.is_ref():
            yield from attr.as_graphs()


def has_subgraphs(node: ir.Node) -> bool:
    """Return whether ``node`` carries a graph."""
    for attr in node.attributes.data.values():  # noqa: SIM110  (asked of each node many times: no generator)
        if attr.type in GRAPHS and not attr.is_ref():
            return True
    return False


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph and each function's graph, each after the graphs nested in it."""
    for graph in (*(function.graph for function in model.functions.values()), model.graph):
        yield from _nested(graph)


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of the model, also those in subgraphs and functions, a node after those that it carries."""
    for graph in (*(function.graph for function in model.functions.values()), model.graph):
        yield from nodes_in(graph)


def describe(nodes: Iterable[ir.Node]) -> str:
    """Return a readable list of nodes for messages: ``Conv conv1, Relu relu1``."""
    return ", ".join(f"{node.op_type} {place(node)}" for node in nodes)


def _nested(graph: ir.Graph) -> Iterator[ir.Graph]:
    for node in graph:
        if has_subgraphs(node):
            for inner in subgraphs(node):
                yield from _nested(inner)
    yield graph


def nodes_in(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes of ``graph`` and of the graphs in it, a node after those that it carries."""
    for node in graph:
        if has_subgraphs(node):
            for inner in subgraphs(node):
                yield from nodes_in(inner)
        yield node
