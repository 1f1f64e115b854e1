"""``graphopt demo``: a real model from PyTorch to a proved and measured ONNX file, in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import VerificationError
from .optimize import show_report
from .output import JsonFile, folder, table, write_json
from .progress import progress

if TYPE_CHECKING:
    from ..context import Feeds

NAME = "efficientnet-lite0"


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", callback=folder, help="For models and report.")
    ] = Path("demo-output"),
    pipeline: Annotated[str, typer.Option(metavar="TEXT", help="Passes and presets.")] = "speed",
    target: Annotated[str, typer.Option(metavar="NAME", help="See `graphopt backends`.")] = "onnxruntime:cpu",
    seconds: Annotated[float, typer.Option(help="Time to spend on measuring.")] = 10.0,
    json_file: JsonFile = None,
) -> None:
    """Take EfficientNet-Lite0 with its ImageNet weights from PyTorch to a proved, measured ONNX model."""
    from .. import demo as example
    from .. import measure, optimize, plugins, save, trace

    backend = plugins.get_backend(target)
    with progress() as show:
        show("making the model", 0, 0)
        module, args, kwargs, shapes = example.efficientnet_lite0()
        photos = example.photos()
        feeds: list[Feeds] = [{"inputs": picture} for picture in photos.values()]
        show("tracing", 0, 0)
        start = time.perf_counter()
        traced = trace(module, args, kwargs, dynamic_shapes=shapes)
        spent = time.perf_counter() - start
        result = optimize(traced, pipeline, inputs=feeds, target=target, progress=show)
        measured = measure(
            [traced, result.model],
            feeds[0],
            target,
            names=["traced", pipeline],
            seconds=seconds,
            progress=show,
        )
        with backend.compile(result.model) as compiled:
            found = [int(compiled.run(feed)["output"].argmax()) for feed in feeds]
        output.mkdir(parents=True, exist_ok=True)
        result.save(output / f"{NAME}.onnx", progress=show)
        save(traced, output / f"{NAME}-traced.onnx")
        result.report.save(output / "report")
    wanted = example.classes(module, photos)
    agree = sum(a == b for a, b in zip(found, wanted, strict=True))
    data: dict[str, Any] = {
        "trace_seconds": round(spent, 3),
        "report": result.report.to_json(),
        "measurement": measured.to_json(),
        "photos": [
            {"photo": photo, "torch": was, "optimized": now}
            for photo, was, now in zip(photos, wanted, found, strict=True)
        ],
    }
    if not write_json(data, json_file):
        print(f"EfficientNet-Lite0 with its ImageNet weights, from PyTorch, traced in {spent:.1f} s\n")
        show_report(result.report)
        print()
        table(None, measured.COLUMNS, measured.rows(), right=(1, 2, 3))
        facts = ", ".join(map(" ".join, measured.facts.items()))
        print(f"\ntarget   {measured.target} ({facts})")
        print(f"photos   {agree} of {len(found)} in the class that PyTorch gives: ", end="")
        print(", ".join(f"{photo} {example.label(now)}" for photo, now in zip(photos, found, strict=True)))
        print(f"written  {output / NAME}.onnx, {output / NAME}-traced.onnx, {output / 'report'}/")
    if not result.report.verified or agree < len(found):
        raise VerificationError(
            f"{NAME}: {result.report.verdict()}; {agree} of {len(found)} photos are in PyTorch's class"
        )
