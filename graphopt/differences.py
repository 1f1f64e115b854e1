"""What differs between two nodes or two weights that belong together, in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx_ir as ir

from . import origin
from .analysis.cost import label
from .interfaces import place
from .matching import Matching
from .query import all_graphs, all_nodes, constant_tensor, is_op

SMALL = 1024
"""Constants of so many elements are compared by value; larger ones where that is asked for."""


def typed(value: ir.Value | ir.TensorProtocol | None) -> str:
    """Return type and shape as text: ``float[N,3,224,224]``, ``?`` for what is not known."""
    if value is None:
        return "nothing"
    if isinstance(value, ir.Value) and isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
        return str(value.type).lower()
    dtype = value.dtype.name.lower() if value.dtype is not None else "?"
    if value.shape is None:
        return f"{dtype}[?]"
    dims = [str(d) if isinstance(d, int) else d.value or "?" for d in value.shape]
    return f"{dtype}[{','.join(dims)}]" if dims else dtype


class Differences:
    """Compares paired nodes, and remembers which weights belong together on the way."""

    def __init__(self, pairs: Matching, values: bool) -> None:
        self.pairs = pairs
        self.all_values = values
        self.partners: dict[ir.Value, ir.Value] = {}

    def details(self, a: ir.Node, b: ir.Node) -> list[str]:
        """Return what differs between two nodes that belong together, one phrase each."""
        return [*self._attributes(a, b), *self._inputs(a, b)]

    def _attributes(self, a: ir.Node, b: ir.Node) -> Iterator[str]:
        for name in dict.fromkeys((*a.attributes, *b.attributes)):
            was, now = a.attributes.get(name), b.attributes.get(name)
            if was == now or (was is not None and now is not None and self._same_attribute(was, now)):
                continue
            yield f"{name}: {_shown(was)} → {_shown(now)}"

    def _same_attribute(self, a: ir.Attr, b: ir.Attr) -> bool:
        if a.type != b.type or a.is_ref() != b.is_ref():
            return False
        if a.is_ref():
            return a.ref_attr_name == b.ref_attr_name
        if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return True  # the nodes in it are compared one by one
        if a.type == ir.AttributeType.TENSOR:
            return self._same_tensor(a.as_tensor(), b.as_tensor())
        return bool(a.value == b.value) or (a.value != a.value and b.value != b.value)

    def _inputs(self, a: ir.Node, b: ir.Node) -> Iterator[str]:
        for i, (was, now) in enumerate(itertools.zip_longest(a.inputs, b.inputs)):
            old, new = constant_tensor(was), constant_tensor(now)
            if old is not None and new is not None and was is not None and now is not None:
                self.partners[now] = was
                if not self._same_tensor(old, new):
                    before, after = _weight(was, old), _weight(now, new)
                    yield f"input {i}: {before} {'of other values' if before == after else f'→ {after}'}"
            elif not self._same_source(was, now):
                yield f"input {i}: {_source(was)} → {_source(now)}"

    def _same_source(self, was: ir.Value | None, now: ir.Value | None) -> bool:
        if was is None or now is None:
            return was is now
        old, new = was.producer(), now.producer()
        if old is None or new is None:
            return old is new and (was.name == now.name or not was.is_graph_input())
        if self.pairs.b_of.get(old) is new:
            return was.index() == now.index()
        return was.name == now.name and bool(set(origin.origins(old)) & set(origin.origins(new)))

    def _same_tensor(self, a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
        if a is b:
            return True
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if a.size > SMALL and not self.all_values:
            return True
        if a.dtype == ir.DataType.STRING:
            return bool((a.numpy() == b.numpy()).all())
        return a.tobytes() == b.tobytes()

    def weights(self, a: ir.Model, b: ir.Model) -> list[tuple[str, str, str]]:
        """Return the weights of another type, shape or value, and those of one model only; a mere renaming is none."""
        was, now = _weights(a), _weights(b)
        found, taken = [], set()
        for name, value in now.items():
            old = self.partners.get(value) or was.get(name)
            if old is None or (before := constant_tensor(old)) is None:
                found.append(("+", name, typed(constant_tensor(value))))
                continue
            taken.add(old)
            after = constant_tensor(value)
            assert after is not None
            if not self._same_tensor(before, after):
                found.append(("~", name, _change(before, after)))
        found += [("-", name, typed(constant_tensor(v))) for name, v in was.items() if v not in taken]
        return sorted(found, key=lambda item: "~+-".index(item[0]))


def _weights(model: ir.Model) -> dict[str, ir.Value]:
    values = [v for graph in all_graphs(model) for v in graph.initializers.values()]
    values += [node.outputs[0] for node in all_nodes(model) if is_op(node, "Constant")]
    return {value.name or "?": value for value in values if constant_tensor(value) is not None}


def _change(a: ir.TensorProtocol, b: ir.TensorProtocol) -> str:
    return f"{typed(a)} → {typed(b)}" if typed(a) != typed(b) else f"{typed(a)} of other values"


def _weight(value: ir.Value, tensor: ir.TensorProtocol) -> str:
    if tensor.size <= 8 and len(tensor.shape) < 2 and tensor.dtype != ir.DataType.STRING:
        return f"{tensor.numpy().tolist()}"
    return f"{value.name} {typed(tensor)}"


def _source(value: ir.Value | None) -> str:
    if value is None:
        return "nothing"
    producer = value.producer()
    if producer is not None and not is_op(producer, "Constant"):
        return f"{label(producer)} {place(producer)}"
    tensor = constant_tensor(value)
    return _weight(value, tensor) if tensor is not None else f"{value.name}"


def _shown(attr: ir.Attr | None) -> str:
    if attr is None:
        return "nothing"
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    if attr.type == ir.AttributeType.TENSOR:
        return typed(attr.as_tensor())
    if attr.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return (
            f"[{', '.join(map(str, attr.value))}]" if len(attr.value) <= 16 else f"{len(attr.value)} values"
        )
    return f"{attr.value}"
