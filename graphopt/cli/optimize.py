"""``graphopt optimize``: smaller, faster, proved, explained."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .output import JsonFile, folder, table, writable, write_json
from .progress import progress

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..report import Report

TOP_DRIFT = 10
"""So many values are shown of each pass; the report has all."""


def optimize(
    source: Annotated[str, typer.Argument(metavar="IN", help=".onnx, .pt2 or package.module:callable")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", callback=writable, help="Where to write the model."),
    ],
    pipeline: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Passes and presets. [default: speed]")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="The pipeline as TOML.")] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Sample inputs to prove the result on; else drawn."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FILE.npz|DIR|module:function", help="Inputs that lossy passes may look at."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="module:function", help="Judge the model before and after, by a number."),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="What the result is for; see `graphopt backends`.")
    ] = "onnxruntime:cpu",
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", callback=folder, help="Write report.json and report.md there."),
    ] = None,
    dump_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", callback=folder, help="Write the graph after each pass that changed it."),
    ] = None,
    bisect_limit: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Do only the first N rewrites.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the result with the original.")
    ] = True,
    verify_each: Annotated[bool, typer.Option("--verify-each", help="Compare after every pass.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="A wrong rewrite is an error instead of left out.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all that is drawn.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Rewrite a model, prove the result, write it.

    The result is compared with the original on sample inputs; a rewrite that changes what the model computes is
    found and left out.
    """
    from .. import optimizer, samples

    if output.exists() and Path(source).exists() and output.samefile(source):
        raise UsageError(f"{output}: it is the input, which is never changed; name another file")
    steps = _pipeline(pipeline, recipe)
    with progress() as show:
        result = optimizer.optimize(
            source,
            steps,
            inputs=samples.load(inputs) if inputs is not None else None,
            calibration=samples.calibration(calibration) if calibration is not None else None,
            metric=metric,
            target=target,
            verify="each" if verify_each else verify,
            strict=strict,
            bisect_limit=bisect_limit,
            seed=seed,
            dump_dir=dump_dir,
            progress=show,
        )
        result.save(output, progress=show)
    if report is not None:
        result.report.save(report)
    if not write_json(result.report.to_json(), json_file):
        show_report(result.report, output)


def _pipeline(text: str | None, recipe: Path | None) -> Pipeline:
    from .. import pipeline as pipelines

    if text is not None and recipe is not None:
        raise UsageError("--pipeline and --recipe are two ways to say the same; give one of them")
    if recipe is not None:
        return pipelines.load_recipe(recipe)
    return pipelines.parse("speed" if text is None else text)


def show_report(report: Report, output: Path | None = None) -> None:
    """Print what a run did."""
    passes = report.passes
    columns = ["pass", "ms", "rewrites", "declined"]
    rows = [[p.text, f"{p.milliseconds:.1f}", len(p.applied), len(p.declined)] for p in passes]
    if any(p.rolled_back for p in passes):
        columns.append("rolled back")
        rows = [[*row, p.rolled_back or ""] for row, p in zip(rows, passes, strict=True)]
    table(None, columns, rows, right=(1, 2, 3))
    _show_loss(report)
    before, after = report.before, report.after
    print(f"\nnodes    {before.nodes} → {after.nodes}")
    print(f"weights  {before.weights_bytes / 1e6:.2f} MB → {after.weights_bytes / 1e6:.2f} MB")
    print(f"passes   {report.pass_milliseconds:.0f} ms")
    print(f"proof    {report.verdict()}")
    for text in report.loss.text():
        print(f"metric   {text}")
    for entry in passes:
        for note in entry.notes:
            print(f"note     {entry.name}: {note}")
    for trial in report.trials:
        taken = "taken" if trial.taken else "not faster"
        print(f"tried    {trial.what}: ratio {trial.ratio:.3f} ({trial.low:.3f} … {trial.high:.3f}), {taken}")
    for remark in report.remarks:
        print(f"remark   {remark}")
    for blame in report.blamed:
        print(f"left out rewrite {blame.number}, {blame.pass_name} at {blame.where}: {blame.reason}")
        if blame.reproducer:
            print(f"replay   sh {blame.reproducer}/check.sh  (rewrite {blame.number})")
    if output is not None:
        print(f"written  {output}")


def _show_loss(report: Report) -> None:
    """Print how far lossy passes moved values, each against what it was given, and all together."""
    for entry in report.passes:
        if entry.drift:
            print()
            table(
                f"{entry.name}, against what it was given",
                entry.DRIFT_COLUMNS,
                islice(entry.drift_rows(), TOP_DRIFT),
            )
            if (more := len(entry.drift) - TOP_DRIFT) > 0:
                print(f"… {more} more in the report")
    if report.loss.outputs:
        print()
        table(
            f"the result against the original, {report.loss.samples}", report.loss.COLUMNS, report.loss.rows()
        )
