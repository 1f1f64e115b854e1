"""Local rewrites, and the worklist that finds where they apply."""

from __future__ import annotations

import abc
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from .analysis.shapes import Shapes, known
from .errors import PassError
from .interfaces import Declined, Pass, PassReport, place
from .query import Decline, all_nodes
from .surgery import IN_FUNCTION, Names, import_domains, respect_interface, splice

if TYPE_CHECKING:
    from .context import Context

ANY = "*"
"""The anchor of a rewrite that looks at every node."""

Replacement = ir.Value | Sequence["ir.Value | None"] | None


class Tape(ir.tape.Tape):
    """Records the nodes and constants that a rewrite wants; the driver splices them in after success."""

    def __init__(self, anchor: ir.Node, context: Context) -> None:
        super().__init__()
        self.anchor = anchor
        self.context = context
        self.waits = False
        """Whether the anchor is left to its reader, so that no other rewrite need look at it now."""
        self.again: list[ir.Node] = []
        """Nodes to look at again though nothing is rewritten."""

    @property
    def opset(self) -> int:
        """The ONNX opset that the graph around the anchor imports."""
        graph = self.anchor.graph
        return (graph.opset_imports.get("") if graph is not None else None) or 1

    @property
    def in_function(self) -> bool:
        """Whether the anchor lies in the body of a function, where ONNX allows no initializers."""
        graph = self.anchor.graph
        return graph is not None and bool(graph.meta.get(IN_FUNCTION, False))

    def constant(self, array: np.ndarray[Any, Any], stem: str, dtype: ir.DataType | None = None) -> ir.Value:
        """Record a constant named ``stem`` (made unique) and return its value.

        ``dtype`` is needed only for types that numpy does not tell apart (strings, sub-byte integers).
        """
        whole = np.ascontiguousarray(array).reshape(np.shape(array))
        tensor = (
            ir.Tensor(whole)
            if dtype is None and whole.dtype.kind in "fiub"
            else ir.tensor(whole, dtype=dtype)
        )
        return self.initializer(tensor, name=stem)

    def initializer(self, tensor: ir.TensorProtocol, name: str | None = None) -> ir.Value:
        """Record a constant that holds ``tensor``: an initializer, or in a function's body a Constant node."""
        if not self.in_function:
            return super().initializer(tensor, name)
        value = self.op("Constant", [], {"value": tensor})
        value.name, value.const_value = name or tensor.name, tensor
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        return value

    def has(self, op_type: str, domain: str = "", dtype: ir.DataType | None = None) -> bool:
        """Return whether the target has a kernel for an operator; a run for no target in particular has ONNX's own."""
        target = self.context.target
        return domain == "" if target is None else target.supports(domain, op_type, dtype)

    def shapes(self) -> Shapes:
        """Return the shape analysis of the model, which knows the contents of shape tensors too."""
        return self.context.analysis(Shapes)

    def adopt(self, node: ir.Node) -> None:
        """Record a node that was made elsewhere and stands in no graph."""
        self._nodes.append(node)

    def wait(self) -> None:
        """Leave the anchor to its reader: nothing is rewritten, and no other rewrite looks at it before."""
        self.waits = True

    def revisit(self, node: ir.Node | None) -> None:
        """Have ``node``, which waited for what becomes of the anchor, looked at again where nothing is rewritten."""
        if node is not None:
            self.again.append(node)

    def discard(self) -> None:
        """Take back what was recorded, so that no value counts it as a use."""
        for node in self._nodes:
            for i in range(len(node.inputs)):
                node.replace_input_with(i, None)
        self._nodes.clear()
        self._initializers.clear()


class Rewrite(Pass):
    """A pass that replaces one node at a time, with whatever fed it.

    ``anchor`` names the operators it looks at (``"Conv"``, ``("Add", "Sub")``, ``"com.microsoft::Gelu"``).
    ``replace`` reads the graph and records new nodes on the tape; it never edits the graph.
    """

    anchor: ClassVar[str | tuple[str, ...]]

    @abc.abstractmethod
    def replace(self, node: ir.Node, tape: Tape) -> Replacement:
        """Return the value to use instead of ``node``'s output, or raise :class:`~graphopt.Decline`.

        A node with several outputs needs one value for each; ``None`` for those that nothing reads. Returning
        ``None`` alone says that ``node`` is not of the kind that the pass is about, which is not worth a report.
        """

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Apply the rewrite wherever it fits, until it fits nowhere."""
        return run_together([self], model, context)[0]


def run_together(rewrites: Sequence[Rewrite], model: ir.Model, context: Context) -> list[PassReport]:
    """Apply several rewrites from one worklist until none of them fits; return their reports, in their order.

    Each node is looked at by the rewrites that are anchored on its operator, in the order of ``rewrites``, and
    again when something next to it changed: the cost grows with the graph and with the number of rewrites done.

    Raises:
        PassError: the rewrites undo each other for ever, or one of them breaks the contract of ``replace``.
    """
    return _Worklist(rewrites, model, context).run()


class _Worklist:
    def __init__(self, rewrites: Sequence[Rewrite], model: ir.Model, context: Context) -> None:
        self.rewrites = rewrites
        self.model = model
        self.context = context
        self.shapes = context.analysis(Shapes)
        self.reports = [PassReport() for _ in rewrites]
        self.declined: dict[tuple[int, ir.Node], Declined] = {}
        self.index: dict[tuple[str, str], list[int]] = {}
        self.everywhere: list[int] = []
        for i, rewrite in enumerate(rewrites):
            anchors = (rewrite.anchor,) if isinstance(rewrite.anchor, str) else rewrite.anchor
            for anchor in anchors:
                if anchor == ANY:
                    self.everywhere.append(i)
                else:
                    domain, _, op_type = anchor.rpartition("::")
                    self.index.setdefault((domain, op_type), []).append(i)
        self.shapes.touched()
        self.domains: set[str] = set()
        self.names = Names(model)
        nodes = list(all_nodes(model))
        self.queue: deque[ir.Node] = deque(nodes)
        self.queued: set[ir.Node] = set(nodes)
        self.budget = 10_000 + 50 * len(nodes)

    def run(self) -> list[PassReport]:
        while self.queue:
            node = self.queue.popleft()
            self.queued.discard(node)
            if node.graph is not None:
                self._visit(node)
        for (i, node), declined in self.declined.items():
            if node.graph is not None:
                self.reports[i].declined.append(declined)
        if self.domains:
            import_domains(self.model)
        return self.reports

    def _visit(self, node: ir.Node) -> None:
        for i in self.everywhere:
            if self._timed(i, node):
                return
        if not known(node):
            self.shapes.infer(node)
        for i in self.index.get((node.domain, node.op_type), ()):
            if self._timed(i, node):
                return

    def _timed(self, i: int, node: ir.Node) -> bool:
        start = time.perf_counter()
        done = self._try(i, node)
        self.reports[i].milliseconds += (time.perf_counter() - start) * 1e3
        return done

    def _try(self, i: int, node: ir.Node) -> bool:
        rewrite, report = self.rewrites[i], self.reports[i]
        tape = Tape(node, self.context)
        self.context.step = rewrite.name
        try:
            new = rewrite.replace(node, tape)
            if new is None:
                self._enqueue(tape.again)
                return tape.waits
            outputs = _outputs(rewrite, node, new)
            outputs = respect_interface(node, outputs, tape)
        except Decline as reason:
            tape.discard()
            self.declined[i, node] = Declined(place(node), node.op_type, str(reason))
            self._enqueue(tape.again)
            return False
        if not self.context.admit(report, node):
            tape.discard()
            return False
        self.declined.pop((i, node), None)
        self.budget -= 1
        if self.budget < 0:
            raise PassError(
                f"{rewrite.name}: it does not come to an end, last at {node.op_type} {place(node)}; "
                f"it and {', '.join(r.name for r in self.rewrites if r is not rewrite) or 'itself'} undo each other"
            )
        self.domains.update(new.domain for new in tape.nodes if new.domain)
        self._enqueue(splice(node, outputs, tape, self.names, rewrite.name))
        return True

    def _enqueue(self, touched: list[ir.Node]) -> None:
        if not touched:
            return
        self.shapes.touched(touched)
        for node in reversed(list(dict.fromkeys(touched))):
            if node.graph is not None and node not in self.queued:
                self.queued.add(node)
                self.queue.appendleft(node)


def _outputs(
    rewrite: Rewrite, node: ir.Node, new: ir.Value | Sequence[ir.Value | None]
) -> list[ir.Value | None]:
    outputs = [new] if isinstance(new, ir.Value) else list(new)
    outputs += [None] * (len(node.outputs) - len(outputs))
    for old, value in zip(node.outputs, outputs, strict=True):
        if value is None and (old.uses() or old.is_graph_output()):
            raise PassError(
                f"{rewrite.name}: it gives nothing for {old.name}, an output of {node.op_type} {place(node)}; "
                f"return one value for each output"
            )
    return outputs
