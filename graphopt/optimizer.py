"""``graphopt.optimize``: from any source to a proved model, with the report that says how."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import checker, driver, lowering, plugins, reproducer, samples
from . import pipeline as pipelines
from .checker import Checker, Mismatch
from .context import Context, Feeds, Progress, silent
from .driver import Execution, PassFailed, Plan
from .errors import GraphoptError, VerificationError
from .loss import Judge, Loss, Metric
from .model import clone
from .report import Blame, CheckEntry, Report, Size, Trial
from .tuning import Tuner
from .verify import Baseline

if TYPE_CHECKING:
    import onnx_ir as ir

    from .interfaces import Backend, Pass

Verify = bool | Literal["each"]
MAX_BLAMED = 16
"""A pass with so many rewrites to blame is left out as a whole."""


@dataclass(repr=False)
class Result:
    """An optimized model and how it came to be."""

    model: ir.Model
    report: Report
    original: ir.Model
    """What the passes started from: the source as it was read, or as it was lowered."""
    samples: Sequence[Feeds]
    """The inputs that the result was proved on; empty where it was not."""

    def __repr__(self) -> str:
        """Return one line: models and reports are too long for a prompt."""
        before, after = self.report.before.nodes, self.report.after.nodes
        return f"<Result of {self.report.pipeline}: {before} → {after} nodes, {self.report.verdict()}>"

    def save(
        self, path: str | Path, *, external_data: str | None = None, progress: Progress = silent
    ) -> None:
        """Write the model to ``path``, whole or not at all; weights beside it above 2 GB or where asked for."""
        from .model import save

        save(
            self.model,
            path,
            external_data=external_data,
            progress=lambda done, total: progress("saving", done, total),
        )


def optimize(
    source: object,
    pipeline: object = "speed",
    *,
    inputs: Feeds | Sequence[Feeds] | None = None,
    calibration: Iterable[Feeds] | None = None,
    metric: str | Metric | None = None,
    target: str = "onnxruntime:cpu",
    verify: Verify = True,
    strict: bool = False,
    bisect_limit: int | None = None,
    seed: int = 0,
    dump_dir: str | Path | None = None,
    reproducers: str | Path | None = "graphopt-reproducers",
    progress: Progress = silent,
) -> Result:
    """Run ``pipeline`` over ``source`` and prove the result; the source is never changed.

    Args:
        source: a path (``.onnx``, ``.pt2``, ``package.module:callable``), an ``onnx_ir.Model``, an
            ``onnx.ModelProto``, or a torch module or exported program (see :func:`graphopt.trace` for options).
        pipeline: pipeline text, a list of passes, or a :class:`~graphopt.pipeline.Pipeline`.
        inputs: sample inputs by name to prove the result on, one dictionary or several; drawn where not given.
        calibration: inputs that lossy passes may look at.
        metric: judges the original and the result: ``module:function``, or a function. It is given a function that
            runs the model (arrays by name in and out) and returns a number, such as an accuracy.
        target: the backend that the result is for.
        verify: compare the result with the original; ``"each"`` after every pass.
        strict: an unproved rewrite or a failing pass is an error instead of being left out.
        bisect_limit: do only the first so many rewrites.
        seed: of everything that is drawn.
        dump_dir: write the graph's text after each pass that changed it.
        reproducers: folder for the model before and after a rewrite that was to blame; ``None`` for no such thing.
        progress: called with (what, done, total).

    Raises:
        UsageError: the source, the pipeline, the inputs, the metric or the target make no sense.
        VerificationError: ``strict``, and a rewrite changed what the model computes.
        Exception: ``strict``, and a pass raised it; a note says in which pass of how many.
    """
    steps = pipelines.parse(pipeline)
    fx_head, _ = driver.check_order(list(steps.passes()))
    backend, remarks = plugins.get_backend(target), list[str]()
    if reason := backend.unavailable():
        remarks.append(f"{target} cannot be used here, so nothing ran on it: {reason}")
    progress("reading", 0, 0)
    original, start, name = _read(source, fx_head)
    feeds = samples.check(original, inputs) if inputs is not None else None
    steps = _without(steps, fx_head)
    judge = Judge(original, backend, metric, inputs=feeds, calibration=calibration, progress=progress)
    decisions: dict[Hashable, Any] = {}
    run = _Run(
        original=original,
        start=start,
        pipeline=steps,
        make_context=lambda model, plan: Context(
            model,
            samples=feeds if feeds is not None else lambda: run.samples(),
            calibration=calibration,
            target=backend,
            seed=seed,
            progress=progress,
            limit=plan.limit,
            left_out=plan.left_out,
            decisions=decisions,
        ),
        target=backend,
        judge=judge,
        verify=verify,
        strict=strict,
        limit=bisect_limit,
        dump=Path(dump_dir) if dump_dir is not None else None,
        reproducers=Path(reproducers) if reproducers is not None else None,
        progress=progress,
        feeds=feeds,
        seed=seed,
    )
    run.remarks += remarks
    return run.result(name)


def _read(source: object, fx_head: Sequence[Pass]) -> tuple[ir.Model, ir.Model, str]:
    """Return the original, the model to start from (another one where FX passes ran) and the source's name."""
    from . import frontends

    head = source[0] if isinstance(source, tuple) and source else source
    name = head if isinstance(head, (str, Path)) else type(head).__name__
    if not fx_head:
        model = frontends.read(source)
        return model, model, str(name)
    from .frontends import torch as torch_frontend

    program = torch_frontend.export(source)
    changed = program
    for step in fx_head:
        changed = torch_frontend.apply_fx(changed, step)
    return torch_frontend.lower(program), torch_frontend.lower(changed), str(name)


def _without(pipeline: pipelines.Pipeline, fx_head: Sequence[Pass]) -> pipelines.Pipeline:
    return pipelines.Pipeline(tuple(step for step in pipeline.steps if not any(step is fx for fx in fx_head)))


class _Run:
    """The outer loop: execute, and where a pass fails or a check does, leave out what is to blame and start again.

    Nothing is undone in place: each execution starts from the original, and a run is deterministic, so rewrite
    *k* is the same rewrite in all of them.
    """

    def __init__(
        self,
        *,
        original: ir.Model,
        start: ir.Model,
        pipeline: pipelines.Pipeline,
        make_context: Callable[[ir.Model, Plan], Context],
        target: Backend,
        judge: Judge,
        verify: Verify,
        strict: bool,
        limit: int | None,
        dump: Path | None,
        reproducers: Path | None,
        progress: Progress,
        feeds: Sequence[Feeds] | None,
        seed: int,
    ) -> None:
        self.original, self.start, self.pipeline, self.make_context = original, start, pipeline, make_context
        self.verify, self.strict, self.limit, self.dump = verify, strict, limit, dump
        self.reproducers, self.progress, self.seed = reproducers, progress, seed
        self.target, self.judge, self.trials, self.feeds = target, judge, list[Trial](), feeds
        self.plan = Plan(limit=limit)
        self.blamed: list[Blame] = []
        self.remarks: list[str] = []
        self.baseline: Baseline | None = None
        if verify:
            progress("running the original", 0, 0)
            self.baseline = Baseline(original, feeds, seed=seed)

    def samples(self) -> Sequence[Feeds]:
        """Return the user's inputs, or those drawn ones that the original was run on; others where it is not run."""
        if self.feeds is not None:
            return self.feeds
        return (
            self.baseline.feeds if self.baseline is not None else samples.draw(self.original, seed=self.seed)
        )

    def result(self, name: str) -> Result:
        """Execute until everything that is left is proved."""
        while True:
            check = Checker(self.baseline, "each" if self.verify == "each" else "end", self.target)
            try:
                execution = self._execute(self.plan, check, self.dump)
            except PassFailed as failure:
                self._skip(failure)
            except Mismatch as mismatch:
                self._blame(mismatch)
            else:
                if self.pipeline.measured and self.limit is None:
                    execution, check = self._tune(execution, check)
                return self._finish(name, execution, check.entries)

    def _tune(self, execution: Execution, check: Checker) -> tuple[Execution, Checker]:
        """Leave out each family of passes that the model is faster without, then choose the target's settings."""
        tuner = Tuner(self.target, self.samples()[0], self.seed, self.progress)
        done = [step.family for step, e in zip(execution.passes, execution.entries, strict=True) if e.applied]
        for family in dict.fromkeys(filter(None, done)):
            places = [place for place, step in enumerate(execution.passes) if step.family == family]
            reason = f"the model is faster without {family}"
            plan = Plan(None, set(self.plan.left_out), {**self.plan.skipped, **dict.fromkeys(places, reason)})
            other_check = Checker(self.baseline, target=self.target)
            try:
                other = self._execute(plan, other_check)
            except (PassFailed, Mismatch):
                continue
            if tuner.faster(f"without {family}", execution.model, other.model):
                execution, check, self.plan = other, other_check, plan
        tuner.settings(execution.model)
        self.trials = tuner.trials
        return execution, check

    def _execute(self, plan: Plan, check: Checker, dump: Path | None = None) -> Execution:
        model = clone(self.start)
        execution = Execution(model, self.pipeline, self.make_context(model, plan), plan, check, dump)
        execution.run()
        return execution

    def _skip(self, failure: PassFailed) -> None:
        passes = list(self.pipeline.passes())
        before = f", after {passes[failure.place - 1].name}" if failure.place else ""
        note = f"while running {failure.step.name}, pass {failure.place + 1} of {len(passes)}{before}"
        if self.strict:
            failure.error.add_note(note)
            raise failure.error
        reason = f"{type(failure.error).__name__}: {failure.error}"
        self.plan.skipped[failure.place] = reason
        self.remarks.append(f"{failure.step.name} raised and was rolled back: {reason}")

    def _blame(self, mismatch: Mismatch) -> None:
        if mismatch.high == mismatch.low:
            when = "before any rewrite" if self.start is self.original else "before the FX passes changed it"
            raise VerificationError(
                f"the model differs from what it was {when}: {mismatch.reason}; "
                f"compare with verify=False or other inputs"
            )
        if mismatch.whole:
            self._skip_unproved(mismatch.after, mismatch.reason)
            return
        low, high, reason, checks = mismatch.low, mismatch.high, mismatch.reason, 1
        total = max(1, math.ceil(math.log2(high - low)))
        while high - low > 1:
            middle = (low + high) // 2
            self.progress("finding the rewrite to blame", checks, total)
            failed = self._fails(middle)
            checks += 1
            if failed is None:
                low = middle
            else:
                high, reason = middle, failed
        if high in self.plan.left_out:
            why = f"it differs even without the rewrites that it numbers: {mismatch.reason}"
            self._skip_unproved(mismatch.after, why)
        else:
            self._leave_out(high, reason, checks)

    def _skip_unproved(self, name: str, reason: str) -> None:
        """Leave out a pass as a whole: it changes more than it numbers, or most of what it does is wrong."""
        if self.strict:
            raise VerificationError(f"{name}: {reason}")
        for place, step in enumerate(self.pipeline.passes()):
            if step.name == name:
                self.plan.skipped[place] = reason
        self.remarks.append(f"{name} was left out as a whole: {reason}")

    def _fails(self, limit: int) -> str | None:
        try:
            self._up_to(limit, lambda: Checker(self.baseline))
        except Mismatch as mismatch:
            return mismatch.reason
        return None

    def _up_to(self, limit: int, check: Callable[[], Checker]) -> Execution:
        """Execute the first ``limit`` rewrites, without passes that fail because the others are missing."""
        plan = Plan(limit, set(self.plan.left_out), dict(self.plan.skipped))
        while True:
            try:
                return self._execute(plan, check())
            except PassFailed as failure:
                plan.skipped[failure.place] = str(failure.error)

    def _leave_out(self, number: int, reason: str, checks: int) -> None:
        before, _ = self._unchecked(number - 1)
        after, execution = self._unchecked(number)
        place, entry = next(
            (i, e) for i, e in enumerate(execution.entries) if any(a.number == number for a in e.applied)
        )
        where = next(a.where for a in entry.applied if a.number == number)
        folder = None
        if self.reproducers is not None and self.baseline is not None:
            folder = reproducer.write(
                self.reproducers / f"{entry.name}-{number}",
                before,
                after,
                self.baseline.feeds,
                entry,
                number,
                reason,
            )
        if self.strict:
            raise VerificationError(
                f"{entry.name}: rewrite {number}, at {where}, changed what the model computes: {reason}"
                + (f"; reproducer in {folder}" if folder else "")
            )
        self.blamed.append(Blame(number, entry.name, where, reason, checks, str(folder) if folder else None))
        self.plan.left_out.add(number)
        if sum(blame.pass_name == entry.name for blame in self.blamed) >= MAX_BLAMED:
            self.plan.skipped[place] = f"{MAX_BLAMED} of its rewrites changed what the model computes"
            first = min(blame.number for blame in self.blamed if blame.pass_name == entry.name)
            self.plan.left_out = {n for n in self.plan.left_out if n < first}
            self.remarks.append(f"{entry.name} was left out as a whole: {self.plan.skipped[place]}")

    def _unchecked(self, limit: int) -> tuple[ir.Model, Execution]:
        """Return the model after the first ``limit`` rewrites, whatever it computes."""
        execution = self._up_to(limit, checker.Unchecked)
        return execution.model, execution

    def _finish(self, name: str, execution: Execution, checks: list[CheckEntry]) -> Result:
        model, text = execution.model, str(self.pipeline)
        model.metadata_props["graphopt.pipeline"] = text
        lost = self._lost(execution)
        report = Report(
            source=name,
            pipeline=text,
            before=Size.of(self.original),
            after=Size.of(model),
            passes=execution.entries,
            checks=checks,
            blamed=self.blamed,
            trials=self.trials,
            loss=lost,
            remarks=[
                *self.remarks,
                *execution.context.remarks,
                *(lowering.told(model, self.target) if driver.lost(execution) else ()),
                *(self.baseline.remarks if self.baseline is not None else ()),
            ],
            versions=versions(),
        )
        feeds = self.baseline.feeds if self.baseline is not None else ()
        return Result(model, report, self.original, feeds)

    def _lost(self, execution: Execution) -> Loss:
        """Return what the result lost: measured where it was run to be proved, or where a metric was given."""
        lossy = self.baseline is not None and driver.lost(execution) and self.target.unavailable() is None
        try:
            return self.judge.loss(execution.model, lossy=lossy)
        except GraphoptError as error:
            self.remarks.append(f"what was lost was not measured: {error}")
            return Loss()


def versions() -> dict[str, str]:
    """Return the versions of graphopt and of what its results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("graphopt", "onnx", "onnx-ir", "onnxruntime-gpu", "onnxruntime", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
