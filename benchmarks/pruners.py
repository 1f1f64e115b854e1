"""One pruner on one model, in a process of its own: ``python pruners.py TOOL MODEL SOURCE FOLDER [global]``.

Writes ``FOLDER/model.onnx``, and ``FOLDER/figures.json`` with the seconds that analysis and surgery took (neither
reading nor exporting). Half of the channels of each group go, the classifier stays; with ``global`` the ranking is
over all layers. SOURCE is the .onnx file that is pruned; Torch-Pruning takes torchvision's MODEL instead.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = {"onnxsim": ["onnxsim==0.8.1", "onnx", "onnxruntime"]}
"""What to install for each peer, in an environment of its own; Torch-Pruning shares torch with this one."""
TORCH_PRUNING = "torch-pruning==1.6.1"
HERE = Path(__file__).resolve().parent
RATIO = 0.5


def torch_pruning(model: str, source: Path, folder: Path, everywhere: bool) -> float:
    sys.path[:0] = [
        str(HERE.parent / ".cache" / "peers" / "torch-pruning"),
        str(HERE.parent / "tests" / "models"),
    ]
    import torch
    import torch_pruning as tp
    import zoo

    module, (x,), _, _ = zoo.torchvision(model)()
    x = x[:1]
    classifiers = [m for m in module.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1000]
    heads = {m: m.num_heads for m in module.modules() if isinstance(m, torch.nn.MultiheadAttention)}
    start = time.perf_counter()
    pruner = tp.pruner.MetaPruner(
        module,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        global_pruning=everywhere,
        ignored_layers=classifiers,
        num_heads=heads,
    )
    pruner.step()
    seconds = time.perf_counter() - start
    write(module.eval(), x, folder / "model.onnx")
    return seconds


def write(module: Any, x: Any, path: Path, dynamo: bool = True) -> None:
    """Export a module as it is pruned, for one picture."""
    import torch

    torch.backends.mha.set_fastpath_enabled(
        False
    )  # one operator for all of attention, which no exporter knows
    with torch.no_grad():
        torch.onnx.export(
            module, (x,), path, dynamo=dynamo, opset_version=18 if dynamo else 17, verbose=False
        )


def onnxsim(model: str, source: Path, folder: Path, everywhere: bool) -> float:
    import onnx
    import onnxsim as tool

    given = onnx.load(source)
    start = time.perf_counter()
    made = tool.apply_structured_pruning(given, sparsity=RATIO, global_sparsity=everywhere)
    seconds = time.perf_counter() - start
    onnx.save(made, folder / "model.onnx")
    return seconds


def graphopt(model: str, source: Path, folder: Path, everywhere: bool, macs: float | None = None) -> float:
    import networkx  # noqa: F401  (the others' imports do not count either)

    import graphopt as tool
    from graphopt.plugins import get_pass

    references: list[float] = []
    module: Any = sys.modules[get_pass("prune-channels").__module__]
    make = module.masked

    def masked(*arguments: Any) -> Any:
        start = time.perf_counter()
        made = make(*arguments)
        references.append(time.perf_counter() - start)
        return made

    module.masked = masked  # what a proof needs is neither analysis nor surgery
    given = tool.optimize(source, "simplify", verify=False).model
    goal = f"macs={macs:g},scope=global" if everywhere else f"ratio={RATIO:g}"
    result = tool.optimize(given, f"prune-channels{{{goal}}}", strict=True)
    result.save(folder / "model.onnx")
    return result.report.passes[0].milliseconds / 1e3 - sum(references)


def main() -> None:
    tool, model, source, folder, *rest = sys.argv[1:]
    more: dict[str, Any] = {"everywhere": bool(rest)}
    if len(rest) > 1:
        more["macs"] = float(rest[1])
    prune = {"torch-pruning": torch_pruning, "onnxsim": onnxsim, "graphopt": graphopt}[tool]
    seconds = prune(model, Path(source), Path(folder), **more)
    (Path(folder) / "figures.json").write_text(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
