"""Check a serialized model, and put what ``onnx_ir`` drops or refuses into a form that it keeps.

What is put into another form, and means the same:

- sparse initializers and sparse constants become dense ones;
- an attribute without a type (IR version 1) gets the type of the field that is filled;
- a model without operator sets (IR version 1 and 2) imports version 1; the domain ``ai.onnx`` is written ``""``;
- a negative dimension of a declared shape, which some exporters write for an unknown one, becomes unknown;
- text that is not UTF-8 has its foreign bytes escaped;
- the types of maps and opaque values, which ``onnx_ir`` does not know, are put aside, and back when saving.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import onnx
from onnx import AttributeProto, TensorProto

from ..errors import ModelError
from . import data

HIDDEN_TYPE = "graphopt.type:"
"""Denotation, with the serialized type in hexadecimal, of a type that ``onnx_ir`` does not know."""

_VALUE_FIELDS = (
    ("f", AttributeProto.FLOAT),
    ("i", AttributeProto.INT),
    ("s", AttributeProto.STRING),
    ("t", AttributeProto.TENSOR),
    ("g", AttributeProto.GRAPH),
    ("sparse_tensor", AttributeProto.SPARSE_TENSOR),
    ("tp", AttributeProto.TYPE_PROTO),
)
_LIST_FIELDS = (
    ("ints", AttributeProto.INTS),
    ("floats", AttributeProto.FLOATS),
    ("strings", AttributeProto.STRINGS),
    ("tensors", AttributeProto.TENSORS),
    ("graphs", AttributeProto.GRAPHS),
)


UNNAMED = ("?", "None", "-1")
"""What exporters call dimensions that they do not know; two of them need not be equal."""


def prepare(proto: onnx.ModelProto, name: str, locate: data.Locate) -> bool:
    """Check ``proto`` and normalize it in place; return whether it has types that were hidden.

    Raises:
        ModelError: it is malformed; the message says where and how.
    """
    intake = _Intake(name, locate)
    intake.model(proto)
    return intake.hidden


class _Intake:
    def __init__(self, name: str, locate: data.Locate) -> None:
        self.name = name
        self.locate = locate
        self.hidden = False
        self.scopes: list[set[str]] = []

    def fail(self, what: str) -> NoReturn:
        raise ModelError(f"{self.name}: {what}")

    def model(self, proto: onnx.ModelProto) -> None:
        if not proto.HasField("ir_version") or not proto.HasField("graph"):
            missing = "IR version" if proto.HasField("graph") else "graph"
            self.fail(f"it has no {missing}; it is damaged, or no ONNX model")
        if not 1 <= proto.ir_version <= onnx.IR_VERSION:
            self.fail(
                f"IR version {proto.ir_version} is not known to onnx {onnx.__version__}, which reads 1 to "
                f"{onnx.IR_VERSION}; upgrade onnx, or export for an older version"
            )
        _clean(proto, "producer_name", "producer_version", "domain", "doc_string")
        if not proto.opset_import and proto.ir_version < 3:
            proto.opset_import.add(domain="", version=1)
        self.opsets(proto.opset_import, "it")
        self.graph(proto.graph)
        seen = set()
        for function in proto.functions:
            _clean_texts(function, "name", "domain", "overload")
            identity = (function.domain, function.name, function.overload)
            if identity in seen:
                self.fail(f"function {function.domain}::{function.name} is defined twice; remove one of them")
            seen.add(identity)
            self.function(function)

    def opsets(self, imports: Iterable[onnx.OperatorSetIdProto], owner: str) -> None:
        versions: dict[str, int] = {}
        for opset in imports:
            _clean_texts(opset, "domain")
            if opset.domain == "ai.onnx":
                opset.domain = ""
            if versions.setdefault(opset.domain, opset.version) != opset.version:
                self.fail(f"{owner} imports two versions of the operator set {opset.domain!r}; keep one")

    def function(self, function: onnx.FunctionProto) -> None:
        _clean(function, "doc_string")
        _clean_names(function.input, function.output, function.attribute)
        label = f"function {function.domain}::{function.name}"
        self.opsets(function.opset_import, label)
        scope = set(function.input)
        self.unique(function.input, f"an input of {label}")
        self.nodes(function.node, scope, label)
        for attribute in function.attribute_proto:
            _clean_texts(attribute, "name", "doc_string")
            self.attribute(attribute, label)
        for output in function.output:
            if output not in scope:
                self.fail(f"output {output!r} of {label} is made by no node; the model is damaged")
        for value in function.value_info:
            self.value(value)

    def graph(self, graph: onnx.GraphProto) -> None:
        _clean(graph, "name", "doc_string")
        label = f"graph {graph.name!r}" if graph.name else "the graph"
        for values in (graph.input, graph.output, graph.value_info):
            for value in values:
                self.value(value)
        for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
            _clean(tensor, "name", "doc_string")
        inputs = [value.name for value in graph.input]
        self.unique(inputs, f"an input of {label}")
        for sparse in graph.sparse_initializer:
            graph.initializer.append(self.dense(sparse, f"sparse initializer {sparse.values.name!r}"))
        del graph.sparse_initializer[:]
        initializers = [tensor.name for tensor in graph.initializer]
        self.unique(initializers, f"an initializer of {label}")
        for tensor in graph.initializer:
            self.tensor(tensor, f"initializer {tensor.name!r}")
        scope = {*inputs, *initializers}
        self.nodes(graph.node, scope, label)
        for value in graph.output:
            if value.name not in scope:
                self.fail(f"output {value.name!r} of {label} is made by no node; the model is damaged")

    def unique(self, names: Iterable[str], what: str) -> None:
        seen = set()
        for name in names:
            if not name:
                self.fail(f"{what} has no name; name it")
            if name in seen:
                self.fail(f"{what} is named {name!r}, and so is another one; names must be unique")
            seen.add(name)

    def nodes(self, nodes: Iterable[onnx.NodeProto], scope: set[str], label: str) -> None:
        """Check nodes and add what they make to ``scope``; the order is not looked at."""
        for node in nodes:
            _clean(node, "name", "op_type", "domain", "overload", "doc_string")
            _clean_names(node.input, node.output)
            for name in node.output:
                if name in scope:
                    self.fail(f"{name!r}, an output of {_place(node)}, is defined twice; rename one of them")
                if name:
                    scope.add(name)
        self.scopes.append(scope)
        for node in nodes:
            if not node.op_type:
                self.fail(f"a node of {label} has no operator, near {_place(node)}; the model is damaged")
            for name in node.input:
                if name and name not in scope and not any(name in outer for outer in self.scopes):
                    self.fail(
                        f"{name!r}, which {_place(node)} reads, is made by no node and is no input or initializer; "
                        f"the model is damaged"
                    )
            for attribute in node.attribute:
                _clean_texts(attribute, "name", "doc_string", "ref_attr_name")
                if attribute.type not in _PLAIN:
                    self.attribute(attribute, _place(node))
        self.scopes.pop()

    def attribute(self, attribute: AttributeProto, owner: str) -> None:
        if attribute.ref_attr_name:
            return
        if not attribute.type:
            attribute.type = self.kind(attribute, owner)
        label = f"attribute {attribute.name!r} of {owner}"
        if attribute.type == AttributeProto.TENSOR:
            self.tensor(attribute.t, label)
        elif attribute.type == AttributeProto.GRAPH:
            self.graph(attribute.g)
        elif attribute.type == AttributeProto.TENSORS:
            for tensor in attribute.tensors:
                self.tensor(tensor, label)
        elif attribute.type == AttributeProto.GRAPHS:
            for graph in attribute.graphs:
                self.graph(graph)
        elif attribute.type == AttributeProto.SPARSE_TENSOR and attribute.name == "sparse_value":
            attribute.t.CopyFrom(self.dense(attribute.sparse_tensor, label))
            attribute.ClearField("sparse_tensor")
            attribute.name, attribute.type = "value", AttributeProto.TENSOR
        elif attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
            self.fail(f"{label} is sparse, which only Constant may be; make it dense")

    def kind(self, attribute: AttributeProto, owner: str) -> Any:
        """Return the type of an attribute that does not say it."""
        for field, kind in _VALUE_FIELDS:
            if attribute.HasField(field):
                return kind
        for field, kind in _LIST_FIELDS:
            if len(getattr(attribute, field)):
                return kind
        return self.fail(
            f"attribute {attribute.name!r} of {owner} has no type and no value; the model is damaged"
        )

    def value(self, value: onnx.ValueInfoProto) -> None:
        """Put aside a type that is not known to ``onnx_ir``; forget dimensions that are negative or have no name."""
        _clean(value, "name", "doc_string")
        _clean_texts(value.type, "denotation")
        kind = value.type.WhichOneof("value")
        if kind == "tensor_type":
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0:
                    dim.ClearField("dim_value")
                elif dim.dim_param in UNNAMED or dim.dim_param.isdecimal():
                    dim.ClearField("dim_param")
                _clean_texts(dim, "dim_param", "denotation")
        elif kind is not None and _is_foreign(value.type):
            text = HIDDEN_TYPE + value.type.SerializeToString(deterministic=True).hex()
            value.type.Clear()
            value.type.tensor_type.elem_type = TensorProto.UNDEFINED
            value.type.denotation = text
            self.hidden = True

    def tensor(self, tensor: TensorProto, label: str) -> None:
        try:
            data.check(tensor, self.locate)
        except ValueError as error:
            self.fail(f"{label} {error}")

    def dense(self, sparse: onnx.SparseTensorProto, label: str) -> TensorProto:
        try:
            return data.dense(sparse)
        except ValueError as error:
            return self.fail(f"{label} {error}")


def _clean(message: Any, *fields: str) -> None:
    """Make text of what is not UTF-8 in ``fields``, which the parser gives as bytes, and in the metadata."""
    _clean_texts(message, *fields)
    for entry in message.metadata_props:
        _clean_texts(entry, "key", "value")


def _clean_texts(message: Any, *fields: str) -> None:
    for field in fields:
        if type(text := getattr(message, field)) is bytes:
            setattr(message, field, _text(text))


def _clean_names(*lists: Any) -> None:
    for names in lists:
        for i, name in enumerate(names):
            if type(name) is bytes:
                names[i] = _text(name)


def _text(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")


_PLAIN = {
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.STRING,
    AttributeProto.FLOATS,
    AttributeProto.INTS,
    AttributeProto.STRINGS,
}


def _place(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or next(iter(node.output), '')!r}" if node.op_type else repr(node.name)


def unhide(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Put hidden types back."""
    values = [*graph.value_info]
    if isinstance(graph, onnx.GraphProto):
        values += [*graph.input, *graph.output]
    for value in values:
        if value.type.denotation.startswith(HIDDEN_TYPE):
            value.type.ParseFromString(bytes.fromhex(value.type.denotation.removeprefix(HIDDEN_TYPE)))
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                unhide(inner)


def _is_foreign(proto: onnx.TypeProto) -> bool:
    kind = proto.WhichOneof("value")
    if kind in ("map_type", "opaque_type"):
        return True
    return kind in ("sequence_type", "optional_type") and _is_foreign(getattr(proto, kind).elem_type)
