"""Tests for passes: a pytest plugin that runs case files, and a conformance kit.

A case file is Markdown in a folder called ``passes``, named after the pass. Each ``##`` heading is a case, a
sentence about the outcome; fenced blocks give the graphs in ONNX's textual syntax::

    ```onnx before      the graph that the pass gets
    ```onnx after       what it must become, printed by graphopt.text.to_text
    ```options          options of the pass, as in a pipeline: limit_bytes=16,strict=true
    ```declined         instead of, or beside, an after block: lines "operator place: reason"
    ```calibration      calibration data for a pass that needs them: each line one sample, as JSON

A case without an after block must leave the graph as it is. ``pytest --accept`` writes the after and declined
blocks anew; read the diff.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from . import pipeline as pipelines
from . import plugins
from .checker import Unchecked
from .context import Context
from .driver import Execution, Plan
from .interfaces import Effect, Pass, PassReport
from .model import clone
from .query import all_nodes
from .report import PassEntry
from .samples import draw
from .text import from_text, to_text

BLOCK = re.compile(r"^```(onnx before|onnx after|declined|options|calibration)\n(.*?)^```$", re.M | re.S)
RTOL = {ir.DataType.FLOAT16: 2e-3, ir.DataType.BFLOAT16: 2e-2}
"""Relative to the largest element of the output; 1e-5 for all other types."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--accept``."""
    parser.addoption(
        "--accept", action="store_true", help="rewrite the 'after' blocks of graphopt case files"
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> CaseFile | None:
    """Collect case files."""
    if file_path.suffix == ".md" and file_path.parent.name == "passes":
        return CaseFile.from_parent(parent, path=file_path)
    return None


class CaseFile(pytest.File):
    """One file a pass; the stem is the pass's name."""

    def collect(self) -> Iterator[Case]:
        """Yield the cases."""
        for section in re.split(r"(?m)^## ", self.path.read_text(encoding="utf-8"))[1:]:
            yield Case.from_parent(self, name=section.partition("\n")[0].strip(), section=section)


class Case(pytest.Item):
    """One section: the graph before, and the graph after or the reasons for leaving it alone."""

    def __init__(self, *, section: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.section = section
        self.blocks = dict(BLOCK.findall(section))

    def runtest(self) -> None:
        """Check the text, the reasons, the numbers, and that a second run changes nothing."""
        options = self.blocks.get("options", "").strip()
        (step,) = pipelines.parse(f"{self.path.stem}{{{options}}}").passes()
        before = from_text(self.blocks["onnx before"])
        unchanged = to_text(before)
        calibration = _calibration(self.blocks.get("calibration"), before)
        after, entry, reference = run(step, before, calibration=calibration)
        declined = "".join(f"{d.op_type} {d.where}: {d.reason}\n" for d in entry.declined)
        text = to_text(after)
        if self.config.getoption("--accept"):
            self._accept(text, unchanged, declined)
        else:
            if "onnx after" in self.blocks:
                same("after", self.blocks["onnx after"], text)
            else:
                same("after", _untyped(before), _untyped(after))
            if "declined" in self.blocks:
                same("declined", self.blocks["declined"], declined)
        same("input model", unchanged, to_text(before))
        check_result(step, before, after, reference, calibration)

    def _accept(self, text: str, unchanged: str, declined: str) -> None:
        section = self.section
        for block, content in (("onnx after", text), ("declined", declined)):
            opening, _, rest = section.partition(f"\n```{block}\n")
            if rest:
                section = f"{opening}\n```{block}\n{content}```{rest.partition('```')[2]}"
        if "onnx after" not in self.blocks and "declined" not in self.blocks and text != unchanged:
            section = section.rstrip() + f"\n\n```onnx after\n{text}```\n\n"
        self.path.write_text(
            self.path.read_text(encoding="utf-8").replace(self.section, section), encoding="utf-8"
        )

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show a diff as it is, without a traceback."""
        if isinstance(excinfo.value, AssertionError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Name the pass and the case."""
        return self.path, None, f"{self.path.stem}: {self.name}"


def _calibration(text: str | None, model: ir.Model) -> list[dict[str, Any]] | None:
    """Return the samples of a calibration block, in the types that the model declares."""
    types = {value.name: value.dtype.numpy() for value in model.graph.inputs if value.dtype is not None}
    lines = [json.loads(line) for line in (text or "").splitlines()]
    return [{k: np.array(v, types[k]) for k, v in line.items()} for line in lines] or None


def run(
    step: Pass,
    model: ir.Model,
    limit: int | None = None,
    *,
    calibration: Iterable[Mapping[str, Any]] | None = None,
) -> tuple[ir.Model, PassEntry, ir.Model | None]:
    """Run one pass on a copy of ``model`` as the driver does; return the result, the report and the reference."""
    copy = clone(model)
    target = plugins.get_backend("onnxruntime:cpu")
    context = Context(copy, samples=lambda: draw(model), calibration=calibration, target=target, limit=limit)
    keeper = _Keeper()
    execution = Execution(copy, pipelines.Pipeline((step,)), context, Plan(limit), keeper)
    execution.run()
    return copy, execution.entries[0], keeper.reference


class _Keeper(Unchecked):
    reference: ir.Model | None = None

    def after(
        self, model: ir.Model, context: Context, steps: Sequence[Pass], reports: Sequence[PassReport]
    ) -> None:
        """Keep the reference of a lossy pass."""
        self.reference = reports[-1].reference


def check_result(
    step: Pass,
    before: ir.Model,
    after: ir.Model,
    reference: ir.Model | None,
    calibration: Iterable[Mapping[str, Any]] | None = None,
) -> None:
    """Raise AssertionError where ``after`` is invalid, computes something else, or is not a fixed point of ``step``."""
    valid(after)
    if step.effect is Effect.EXACT:
        same_outputs(before, after)
    elif reference is not None:
        same_outputs(reference, after)
    again, entry, _ = run(step, after, calibration=calibration)
    if step.effect is Effect.EXACT:
        same("result of a second run", to_text(after), to_text(again))
        assert not entry.applied, f"a second run applied {len(entry.applied)} rewrites and changed nothing"


def valid(model: ir.Model) -> None:
    """Raise AssertionError where ``model`` breaks an invariant of ONNX."""
    from .invariants import problems

    found = problems(model)
    assert not found, "the result is broken:\n" + "\n".join(map(str, found))
    try:
        onnx.checker.check_model(_without_foreign(ir.to_proto(model)), full_check=False)
    except onnx.checker.ValidationError as error:
        raise AssertionError(f"the result is no valid ONNX: {error}") from error


def _without_foreign(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Move what onnxruntime adds to ONNX's own domain to another, of which the checker asks nothing."""
    opset = next((entry.version for entry in proto.opset_import if entry.domain == ""), 1)
    foreign = {"SimplifiedLayerNormalization", *(("LayerNormalization",) if opset < 17 else ())}
    graphs = [proto.graph]
    while graphs:
        for node in graphs.pop().node:
            if node.op_type in foreign and not node.domain:
                node.domain = "com.microsoft"
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    if "com.microsoft" not in {entry.domain for entry in proto.opset_import}:
        proto.opset_import.add(domain="com.microsoft", version=1)
    return proto


def same(what: str, want: str, got: str) -> None:
    """Raise AssertionError with a diff where two texts differ."""
    if want != got:
        lines = difflib.unified_diff(want.splitlines(), got.splitlines(), "expected", "got", lineterm="")
        raise AssertionError(f"{what} differs (--accept takes the new text):\n" + "\n".join(lines))


_EVALUATOR_FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What onnx's reference evaluator raises on what it does not implement."""


def same_outputs(before: ir.Model, after: ir.Model, feeds: Iterable[Mapping[str, Any]] | None = None) -> None:
    """Run both on seeded inputs; raise AssertionError where an output differs.

    By onnx's reference evaluator, or by onnxruntime where that cannot run a graph.
    """
    for feed in feeds if feeds is not None else draw(before):
        want, got = _run_both(before, after, dict(feed))
        assert len(want) == len(got), f"{len(want)} outputs became {len(got)}"
        for value, a, b in zip(before.graph.outputs, want, got, strict=True):
            _same_array(value, a, b)


def _run_both(before: ir.Model, after: ir.Model, feed: dict[str, Any]) -> tuple[Any, Any]:
    want = _evaluated(before, feed)
    if want is None:
        return _executed(before, feed), _executed(after, feed)
    got = _evaluated(after, feed)
    return want, _executed(after, feed) if got is None else got


def _evaluated(model: ir.Model, feed: dict[str, Any]) -> Any:
    """Run on onnx's reference evaluator; ``None`` where that does not know an operator."""
    from onnx.reference import ReferenceEvaluator

    try:
        return ReferenceEvaluator(ir.to_proto(model)).run(None, feed)
    except _EVALUATOR_FAULTS:
        return None


def _executed(model: ir.Model, feed: dict[str, Any]) -> Any:
    from .backends.session import create

    return create(model, optimize="none").run(None, feed)


def _same_array(value: ir.Value, want: Any, got: Any) -> None:
    if isinstance(want, list):
        assert len(want) == len(got), f"output {value.name}: {len(want)} elements became {len(got)}"
        for a, b in zip(want, got, strict=True):
            _same_array(value, a, b)
        return
    if want is None or got is None:
        assert want is got, f"output {value.name}: {want!r} became {got!r}"
        return
    a, b = np.asarray(want), np.asarray(got)
    assert a.shape == b.shape and a.dtype == b.dtype, (
        f"output {value.name}: {a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
    )
    if a.dtype.kind in "OSUbiu":
        np.testing.assert_array_equal(b, a, err_msg=f"output {value.name}")
        return
    rtol = RTOL.get(value.dtype, 1e-5) if value.dtype is not None else 1e-5
    finite = np.abs(a[np.isfinite(a)].astype(np.float64))
    atol = rtol * float(finite.max(initial=0.0))
    np.testing.assert_allclose(
        b.astype(np.float64), a.astype(np.float64), rtol, atol, err_msg=f"output {value.name}"
    )


# --- the conformance kit ----------------------------------------------------------------------------------------------


def conformance(
    step: Pass | type[Pass], models: Iterable[ir.Model | str] = (), *, calibrated: bool = False
) -> None:
    """Hold a pass to everything that graphopt asks of one; raise AssertionError that says what it breaks.

    Args:
        step: the pass, or its class where no option is required.
        models: graphs, or their text, on each of which the pass must find something to do. A few graphs that
            every pass must survive are added.
        calibrated: give it the inputs drawn for each graph as calibration data.

    Checked on every graph: the pass does not raise, its result is valid, computes the same (lossy: as its
    reference), the given model is untouched, a second run changes nothing, two runs give the same text, each
    bisect limit gives a sound model, and ``replace`` does not edit the graph. Checked once: help of the pass and
    of each option, and that the pass prints as text that parses back to it.
    """
    if isinstance(step, type):
        step = step()
    documented(step)
    fires = [from_text(m) if isinstance(m, str) else m for m in models]
    for model in fires:
        _, entry, _ = run(step, model, calibration=draw(model) if calibrated else None)
        assert entry.applied, f"{step.name} finds nothing to do in\n{to_text(model)}\n" + "\n".join(
            f"{d.op_type} {d.where}: {d.reason}" for d in entry.declined
        )
    for model in [*fires, *(from_text(text) for text in SURVIVED)]:
        _conforms(step, model, draw(model) if calibrated else None)


def documented(step: Pass) -> None:
    """Raise AssertionError where the help of a pass or of an option is missing, or its text form does not parse."""
    cls = type(step)
    assert (cls.__doc__ or "").strip(), f"{step.name} has no docstring, which is its help"
    for option, declared in cls.model_fields.items():
        assert declared.description, f"option {option!r} of {step.name} has no description"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", step.name), f"{step.name!r} is not kebab case"
    if step.name in plugins.passes():
        text = str(pipelines.Pipeline((step,)))
        assert pipelines.parse(text).steps == (step,), f"{text} does not parse back to {step!r}"


def _conforms(step: Pass, model: ir.Model, calibration: Sequence[Mapping[str, Any]] | None = None) -> None:
    text = to_text(model)
    after, entry, reference = run(step, model, calibration=calibration)
    same(f"{step.name} changed the model it was given, which", text, to_text(model))
    for declined in entry.declined:
        assert declined.reason.strip(), f"{step.name} declined {declined.where} without a reason"
    check_result(step, model, after, reference, calibration)
    again, _, _ = run(step, model, calibration=calibration)
    same(f"{step.name} run twice on one model gives two results, which", to_text(after), to_text(again))
    assert [a.number for a in entry.applied] == list(range(1, len(entry.applied) + 1)), (
        "rewrites are misnumbered"
    )
    for limit in range(len(entry.applied)):
        limited, some, partial = run(step, model, limit, calibration=calibration)
        assert len(some.applied) == limit, (
            f"{step.name}: {len(some.applied)} rewrites at bisect limit {limit}"
        )
        if limit == 0:
            same(f"{step.name}: the model at bisect limit 0", _untyped(model), _untyped(limited))
        valid(limited)
        if step.effect is Effect.EXACT or partial is not None:
            same_outputs(model if partial is None else partial, limited)


def _untyped(model: ir.Model) -> str:
    """Print ``model`` without the inner types and shapes, which a pass that only looks may infer."""
    model = clone(model)
    for node in all_nodes(model):
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
    return to_text(model)


SURVIVED = (
    """<ir_version: 10, opset_import: ["" : 20]>
    chain (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
    <float[4, 3, 1, 1] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4] b = {1,2,3,4}, float[4] s = {1,2,1,2},
     float[4] m = {0,1,0,1}, float[4] v = {1,1,4,4}>
    {
        c = Conv (x, w, b)
        n = BatchNormalization (c, s, b, m, v)
        y = Relu (n)
    }""",
    """<ir_version: 10, opset_import: ["" : 20]>
    residual (float16[2, 4] x, bool go) => (float16[2, 4] y, float16[4, 2] t)
    <float16[4, 4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}>
    {
        a = MatMul (x, w)
        b = Add (a, x)
        y = If (go) <
            then_branch = g () => (float16[2, 4] p) { p = Identity (b) },
            else_branch = h () => (float16[2, 4] q) { q = Mul (b, x) }
        >
        t = Transpose <perm = [1, 0]> (b)
    }""",
    """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
    caller (float[2, 3] x) => (float[2, 3] y) {
        z = local.twice (x)
        y = Neg (z)
    }
    <domain: "local", opset_import: ["" : 20]>
    twice (x) => (y) {
        one = Constant <value_float = 1.0> ()
        s = Mul (x, one)
        y = Add (s, s)
    }""",
    """<ir_version: 10, opset_import: ["" : 20]>
    empty (float[2, 3] x) => (float[2, 3] y) { y = Identity (x) }""",
)
"""Graphs that every pass must survive: a convolution net, half precision with a branch, a function, nothing."""
