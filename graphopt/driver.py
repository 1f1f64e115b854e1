"""Run a pipeline: time it, explain it, prove it, and leave out what cannot be proved."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import plugins
from .analysis.shapes import Shapes
from .context import Context
from .errors import PassError, UnavailableError, UsageError
from .interfaces import Effect, Level, Pass, PassReport
from .model.cloning import collector_paused
from .pipeline import Fixpoint, Pipeline, Preset, Step
from .query import all_graphs
from .report import PassEntry
from .rewrite import Rewrite, run_together
from .surgery import import_domains, prepare

if TYPE_CHECKING:
    import onnx_ir as ir

    from .checker import Checker

MAX_ROUNDS = 20
"""A fixpoint that still changes the graph after so many rounds is stopped, with a remark."""


@dataclass
class Plan:
    """What one execution of a pipeline leaves out. The same plan on the same model gives the same result."""

    limit: int | None = None
    left_out: set[int] = field(default_factory=set)
    skipped: dict[int, str] = field(default_factory=dict)
    """Passes that are not run, by their place in the pipeline, and why."""


@dataclass
class PassFailed(Exception):
    """A pass raised; where and what."""

    place: int
    step: Pass
    error: Exception


class Execution:
    """One run of a pipeline over a model of its own."""

    def __init__(
        self,
        model: ir.Model,
        pipeline: Pipeline,
        context: Context,
        plan: Plan,
        checker: Checker,
        dump: Path | None = None,
    ) -> None:
        self.model = model
        self.context = context
        self.plan = plan
        self.checker = checker
        self.dump = dump
        self.passes = list(pipeline.passes())
        self.entries = [PassEntry(step.name, str(Pipeline((step,)))) for step in self.passes]
        self.pipeline = pipeline
        self._settled: dict[str, int] = {}
        """Of each pass that a fixpoint ran: after how many rewrites it had nothing left to do."""
        self._dumped = 0

    def run(self) -> None:
        """Run every step.

        Raises:
            PassFailed: a pass raised something that is not the user's fault.
            Mismatch: a check failed.
        """
        declared = [
            (value.shape, value.doc_string, dict(value.metadata_props)) for value in self.model.graph.outputs
        ]
        overridable = _fix_defaults(self.model, self.context)
        import_domains(self.model)
        prepare(self.model)
        places = iter(range(len(self.passes)))
        self._steps([(step, places) for step in self.pipeline.steps])
        self.context.analysis(Shapes).forget_names()
        _redeclare(self.model.graph.outputs, declared)
        for value, default in overridable:
            value.const_value = default
            self.model.graph.initializers.add(value)
        if self.model.ir_version < 4 and any(graph.initializers for graph in all_graphs(self.model)):
            self.model.ir_version = (
                4  # the first with initializers, which passes made here, that are no inputs
            )
        self.checker.end(self.model, self.context, self.entries)

    def _steps(self, steps: Sequence[tuple[Step, Iterator[int]]]) -> None:
        for step, places in steps:
            if isinstance(step, Pass):
                self._single(next(places), step)
            elif isinstance(step, Preset):
                self._steps([(inner, places) for inner in step.steps])
            else:
                self._fixpoint(step, [next(places) for _ in Pipeline(step.steps).passes()])

    def _fixpoint(self, fixpoint: Fixpoint, places: Sequence[int]) -> None:
        groups = list(_groups([(place, self.passes[place]) for place in places]))
        for _ in range(MAX_ROUNDS):
            before = self.context.count
            for group in groups:
                self._group(group)
                done = [place for place, _ in group if place not in self.plan.skipped]
                self._settled.update((self.entries[place].text, self.context.count) for place in done)
            if self.context.count == before:
                return
        self.context.remarks.append(
            f"{fixpoint} still changed the graph after {MAX_ROUNDS} rounds and was stopped"
        )

    def _single(self, place: int, step: Pass) -> None:
        self._group([(place, step)])

    def _group(self, group: Sequence[tuple[int, Pass]]) -> None:
        """Run one pass, or several rewrites from one worklist."""
        active = [(place, step) for place, step in group if place not in self.plan.skipped]
        for place, _ in group:
            self.entries[place].rolled_back = self.plan.skipped.get(place)
        if all(self._settled.get(self.entries[place].text) == self.context.count for place, _ in active):
            return
        for _, step in active:
            self._observe("before_pass", step=step, model=self.model, context=self.context)
        self.checker.before(self.model, self.context, [step for _, step in active])
        number = self.context.count
        self.context.progress(", ".join(step.name for _, step in active), active[0][0], len(self.passes))
        start = time.perf_counter()
        reports = self._call(active)
        spent = (time.perf_counter() - start) * 1e3
        untold = spent - sum(report.milliseconds for report in reports)
        reports[0].milliseconds += max(untold, 0.0)
        if self.context.count != number:
            self.context.changed()
        for (place, step), report in zip(active, reports, strict=True):
            _add(self.entries[place], report)
            self._observe("after_pass", step=step, model=self.model, context=self.context, report=report)
        if self.dump is not None and self.context.count != number:
            self._write_dump([step for _, step in active])
        self.checker.after(self.model, self.context, [step for _, step in active], reports)

    def _call(self, active: Sequence[tuple[int, Pass]]) -> list[PassReport]:
        place, step = active[0]
        self.context.step = step.name
        try:
            if len(active) > 1:
                rewrites = [s for _, s in active if isinstance(s, Rewrite)]
                with collector_paused():
                    return run_together(rewrites, self.model, self.context)
            report = step.run(self.model, self.context)
            if step.effect is Effect.LOSSY and report.applied and not (report.reference or report.restored):
                raise PassError(
                    f"{step.name}: it is lossy and its report has no reference; return PassReport(reference=…), "
                    f"the model that its result must equal, or restored=…, its result without the loss"
                )
        except (UsageError, UnavailableError):
            raise
        except (
            Exception
        ) as error:  # a pass may be a stranger's code: whatever it raises is rolled back and named
            at = next((p for p, s in active if s.name == self.context.step), place)
            raise PassFailed(at, self.passes[at], error) from error
        return [report]

    def _observe(self, hook: str, **given: object) -> None:
        """Call every plugin's observer; one that raises is named in a remark, once, and the run goes on."""
        for observer in getattr(plugins.manager().hook, hook).get_hookimpls():
            try:
                observer.function(*(given[name] for name in observer.argnames))
            except Exception as error:  # a stranger's code
                remark = f"{hook} of plugin {observer.plugin_name!r} raised {type(error).__name__}: {error}"
                if remark not in self.context.remarks:
                    self.context.remarks.append(remark)

    def _write_dump(self, steps: Sequence[Pass]) -> None:
        from .text import to_text

        assert self.dump is not None
        self._dumped += 1
        self.dump.mkdir(parents=True, exist_ok=True)
        name = f"{self._dumped:03d}-{'+'.join(step.name for step in steps)}"[:120]
        (self.dump / f"{name}.onnxtxt").write_text(to_text(self.model, largest=16), encoding="utf-8")


def _groups(passes: Iterable[tuple[int, Pass]]) -> Iterator[list[tuple[int, Pass]]]:
    """Put neighbouring exact rewrites together, which share one worklist; everything else stands alone."""
    group: list[tuple[int, Pass]] = []
    for place, step in passes:
        if isinstance(step, Rewrite) and step.effect is Effect.EXACT and type(step).run is Rewrite.run:
            group.append((place, step))
            continue
        if group:
            yield group
        group = []
        yield [(place, step)]
    if group:
        yield group


def _add(entry: PassEntry, report: PassReport) -> None:
    entry.milliseconds += report.milliseconds
    entry.applied += report.applied
    entry.declined = report.declined
    entry.notes += report.notes
    entry.drift = report.drift or entry.drift


def _fix_defaults(model: ir.Model, context: Context) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    """Let initializers mean constants while passes run.

    Below IR version 4 every initializer is listed among the graph inputs and none can be overridden in practice:
    they leave the inputs, and the IR version becomes 4. From 4 on, an initializer that is a graph input is a
    default that a caller may override: it is set aside, and returned for putting back.
    """
    graph = model.graph
    both = [value for value in graph.inputs if value.is_initializer()]
    if not both:
        return []
    if model.ir_version < 4:
        keep = [value for value in graph.inputs if not value.is_initializer()]
        graph.inputs.clear()
        graph.inputs.extend(keep)
        context.remarks.append(
            f"IR version {model.ir_version} became 4: its initializers are no graph inputs any more"
        )
        model.ir_version = 4
        return []
    defaults = []
    for value in both:
        graph.initializers.pop(value.name or "")
        assert value.const_value is not None
        defaults.append((value, value.const_value))
        value.const_value = None
    return defaults


def _redeclare(
    outputs: Sequence[ir.Value], declared: Sequence[tuple[ir.Shape | None, str | None, dict[str, str]]]
) -> None:
    """Give the values that the model returns now the names of sizes and the notes that it was declared with."""
    import onnx_ir as ir

    for value, (shape, doc_string, notes) in zip(outputs, declared, strict=False):
        value.doc_string = value.doc_string or doc_string
        for key, note in notes.items():
            value.metadata_props.setdefault(key, note)
        if shape is None or value.shape is None or len(shape) != len(value.shape) or value.is_graph_input():
            continue
        dims = [
            old if not isinstance(old, int) and old.value is not None and not isinstance(new, int) else new
            for old, new in zip(shape, value.shape, strict=True)
        ]
        if dims != list(value.shape):
            value.shape = ir.Shape(dims)


def lost(execution: Execution) -> bool:
    """Return whether a lossy pass did anything."""
    pairs = zip(execution.passes, execution.entries, strict=True)
    return any(step.effect is Effect.LOSSY and entry.applied for step, entry in pairs)


def check_order(passes: Sequence[Pass]) -> tuple[list[Pass], list[Pass]]:
    """Split a pipeline into its FX head and its ONNX rest.

    Raises:
        UsageError: an FX pass stands behind an ONNX pass.
    """
    head = [step for step in passes if step.level is Level.FX]
    rest = [step for step in passes if step.level is Level.ONNX]
    if list(passes) != head + rest:
        late = next(
            s
            for i, s in enumerate(passes)
            if s.level is Level.FX and any(p.level is Level.ONNX for p in passes[:i])
        )
        raise UsageError(f"{late.name} works on the exported program; put it at the head of the pipeline")
    return head, rest
