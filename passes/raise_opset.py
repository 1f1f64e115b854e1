"""Convert a model to a newer version of ONNX's operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir
from pydantic import Field

from graphopt import Context, Decline, Names, Pass, PassReport, Shapes, all_graphs, all_nodes
from graphopt.query import constant_tensor, has_subgraphs, is_op, opset

if TYPE_CHECKING:
    import onnx

OLDEST = 13
"""ONNX's converter gives what is older another meaning: a Resize of opset 10 comes out with other coordinates."""
SMALL = 64
DIFFERENT = {"GroupNormalization": (21, "its scale counts groups before opset 21, and channels from then on")}
"""Operators that ONNX's converter leaves as they are though they mean something else since a version, and what."""


class RaiseOpset(Pass):
    """Raise the opset of a model, so that operators of newer ones can be made: RMSNormalization-23, Attention-23.

    ::

        ReduceMean(x, axes = [1])                  ->  ReduceMean(x, [1])                       18
        Split(x) of three parts                    ->  Split(x, num_outputs = 3)                18
        GridSample(x, grid, mode = bilinear)       ->  GridSample(x, grid, mode = linear)       20

    and so on for each operator of which there is a newer version: ONNX's own converter is asked for each, without its
    weights. Where one node cannot be converted, or the converter is known to be wrong, nothing is.

    Exact. Source: onnx.version_converter, ONNX 1.23; the changelog of ONNX's operators, 13 to 25.
    """

    to: int = Field(
        23, ge=OLDEST, le=25, description="the opset; models of this one or a newer one are left alone"
    )
    where: str = Field("", description="raise only models that have an operator of this type")

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Convert the model, or say which node cannot be converted."""
        report = PassReport()
        if not any(_imported(graph) < self.to for graph in all_graphs(model) if "" in graph.opset_imports):
            return report
        if self.where and not any(is_op(node, self.where) for node in all_nodes(model)):
            report.notes.append(f"the opset stays {_imported(model.graph)}: the model has no {self.where}")
            return report
        shapes = context.analysis(Shapes)
        for node in all_nodes(model):
            shapes.infer(node)  # the converter wants types
        try:
            replaced = self._plan(model, report)
        except Decline as reason:
            report.notes.append(f"the opset stays {_imported(model.graph)}: {reason}")
            return report
        if report.declined or not context.admit(
            report, f"opset {_imported(model.graph)}", f"opset {self.to}"
        ):
            return report
        names = Names(model)
        for node, made in replaced:
            _replace(node, made, names)
        self._declare(model)
        return report

    def _plan(self, model: ir.Model, report: PassReport) -> list[tuple[ir.Node, Sequence[ir.Node]]]:
        """Return what each node that is written otherwise in the new opset becomes; decline those without a form."""
        by_version: dict[int, list[ir.Node]] = {}
        for node in all_nodes(model):
            if node.domain != "" or opset(node) >= self.to:
                continue
            reason = self._refusal(node)
            if reason is not None:
                report.decline(node, reason)
            elif self._is_redefined(node):
                by_version.setdefault(opset(node), []).append(node)
        if report.declined:
            return []
        return [pair for version, nodes in by_version.items() for pair in self._converted(nodes, version)]

    def _refusal(self, node: ir.Node) -> str | None:
        version, name = opset(node), node.op_type
        if version < OLDEST:
            return f"it is of opset {version}, and only those from {OLDEST} on can be raised"
        old, new = _schema(name, version), _schema(name, self.to)
        if old is None or new is None or new.deprecated:
            return f"ONNX has no {name} in opset {version if old is None else self.to}"
        since, meaning = DIFFERENT.get(name, (0, ""))
        if version < since <= self.to:
            return meaning
        if old.since_version != new.since_version and any(attr.is_ref() for attr in node.attributes.values()):
            return "an attribute of it is a parameter of the function"
        return None

    def _is_redefined(self, node: ir.Node) -> bool:
        """Return whether there is a newer version of the operator that allows for more than other types."""
        if node.op_type == "Constant" or has_subgraphs(node):
            return False  # only types were added since opset 13
        old, new = _schema(node.op_type, opset(node)), _schema(node.op_type, self.to)
        assert old is not None and new is not None, "otherwise it was refused"
        return bool(old.since_version != new.since_version)

    def _converted(self, nodes: Sequence[ir.Node], version: int) -> list[tuple[ir.Node, Sequence[ir.Node]]]:
        """Return the nodes that are written otherwise, and how."""
        import onnx.shape_inference
        import onnx.version_converter

        copies = _Copies(nodes, version)
        try:
            proto = onnx.version_converter.convert_version(copies.model(), self.to)
        except (
            RuntimeError,
            onnx.version_converter.ConvertError,
            onnx.shape_inference.InferenceError,
        ) as error:
            raise Decline(f"ONNX's converter says {str(error).strip().splitlines()[0]!r}") from error
        return copies.read(ir.from_proto(proto))

    def _declare(self, model: ir.Model) -> None:
        import onnx.helper

        for graph in all_graphs(model):
            if graph.opset_imports.get("", self.to) < self.to:
                graph.opset_imports[""] = self.to
        for node in all_nodes(model):
            if node.domain == "" and node.version is not None:
                node.version = max(node.version, self.to)
        least = onnx.helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", self.to), 0)
        model.ir_version = max(model.ir_version, least)


class _Copies:
    """Nodes beside each other in one graph, each with inputs of its own."""

    def __init__(self, nodes: Sequence[ir.Node], version: int) -> None:
        self.nodes = nodes
        self.version = version
        self.origins: dict[str, ir.Value] = {}

    def model(self) -> onnx.ModelProto:
        """Return them as a model in ONNX's own form, with constants only where they are small."""
        inputs: list[ir.Value] = []
        copies = [self._copy(i, node, inputs) for i, node in enumerate(self.nodes)]
        outputs = [value for copy in copies for value in copy.outputs if value.name]
        held = [value for value in inputs if value.const_value is not None]
        free = [value for value in inputs if value.const_value is None]
        graph = ir.Graph(free, outputs, nodes=copies, initializers=held, opset_imports={"": self.version})
        return ir.to_proto(ir.Model(graph, ir_version=10))

    def _copy(self, i: int, node: ir.Node, inputs: list[ir.Value]) -> ir.Node:
        def named(value: ir.Value, name: str) -> ir.Value:
            kind = value.type or ir.TensorType(ir.DataType.FLOAT)
            tensor = constant_tensor(value)
            small = tensor if tensor is not None and tensor.size <= SMALL else None
            # a symbol is one size only within one node
            dims = (
                [d if isinstance(d, int) else None for d in value.shape] if value.shape is not None else None
            )
            copy = ir.Value(name=name, type=kind, shape=ir.Shape(dims) if dims is not None else None)
            if small is not None:
                copy.const_value = ir.tensor(small.numpy(), dtype=small.dtype, name=name)
            return copy

        read: list[ir.Value | None] = []
        for j, value in enumerate(node.inputs):
            copy = named(value, f"node{i}_input{j}") if value is not None else None
            if value is not None and copy is not None:
                self.origins[f"node{i}_input{j}"] = value
                inputs.append(copy)
            read.append(copy)
        made = [
            ir.Value(name=f"node{i}_output{j}" if value.name else "", type=value.type, shape=value.shape)
            for j, value in enumerate(node.outputs)
        ]
        return ir.Node("", node.op_type, read, node.attributes.values(), outputs=made, version=self.version)

    def read(self, model: ir.Model) -> list[tuple[ir.Node, Sequence[ir.Node]]]:
        """Return those that came back written otherwise, with their new nodes, which read the original values."""
        values = {value.name: value for node in model.graph for value in node.outputs if value.name}
        model.graph.outputs.clear()
        found: list[tuple[ir.Node, Sequence[ir.Node]]] = []
        for i, node in enumerate(self.nodes):
            roots = [values[f"node{i}_output{j}"] for j, value in enumerate(node.outputs) if value.name]
            made = _upwards(value.producer() for value in roots)
            if len(made) == 1 and _is_same(made[0], node, f"node{i}_input"):
                continue
            for new in made:
                model.graph.remove(new)
                for j, value in enumerate(new.inputs):
                    if value is not None and value.producer() is None:
                        new.replace_input_with(j, self.origins[value.name or ""])
            found.append((node, made))
        return found


def _upwards(roots: Iterable[ir.Node | None]) -> list[ir.Node]:
    """Return nodes and all that feeds them, in the order of execution."""
    order: dict[ir.Node, None] = {}

    def visit(node: ir.Node | None) -> None:
        if node is None or node in order:
            return
        for value in node.inputs:
            visit(value.producer() if value is not None else None)
        order[node] = None

    for root in roots:
        visit(root)
    return list(order)


def _is_same(made: ir.Node, node: ir.Node, prefix: str) -> bool:
    """Return whether a node came back as it was."""
    names = [value.name if value is not None else None for value in made.inputs]
    wanted = [f"{prefix}{j}" if value is not None else None for j, value in enumerate(node.inputs)]
    while wanted and wanted[-1] is None:
        wanted.pop()
    while names and names[-1] is None:
        names.pop()
    if (made.op_type, names) != (node.op_type, wanted) or made.attributes.keys() != node.attributes.keys():
        return False
    return all(_plain(attr) == _plain(node.attributes[name]) for name, attr in made.attributes.items())


def _plain(attr: ir.Attr) -> object:
    if attr.type == ir.AttributeType.TENSOR:
        return attr.as_tensor().numpy().tolist()
    return list(attr.value) if isinstance(attr.value, (list, tuple)) else attr.value


def _replace(node: ir.Node, made: Sequence[ir.Node], names: Names) -> None:
    """Put ``made`` in the place of ``node``; the last one keeps its name, and the outputs theirs."""
    graph = node.graph
    assert graph is not None
    finals = {value.name: value for new in made for value in new.outputs}
    new_outputs = []
    for old, value in zip(node.outputs, [_final(finals, j) for j in range(len(node.outputs))], strict=True):
        new_outputs.append(value if value is not None else old)
    for new in made:
        new.name = node.name if new is made[-1] else names.fresh_node(f"{node.name or 'node'}_{new.op_type}")
        new.metadata_props.update(node.metadata_props)
        for value in new.outputs:
            if value.name and value not in new_outputs:
                value.name = names.fresh(f"{node.outputs[0].name}_{new.op_type}")
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, node.outputs, new_outputs)


def _final(values: dict[str | None, ir.Value], j: int) -> ir.Value | None:
    return next((value for name, value in values.items() if name and name.endswith(f"_output{j}")), None)


def _imported(graph: ir.Graph) -> int:
    return graph.opset_imports.get("") or 1


def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    import onnx.defs

    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None
