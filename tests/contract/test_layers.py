"""The layers of the code, as its imports tell them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import graphopt

ROOT = Path(__file__).parents[2]
LAYERS = ["errors", "query", "rewrite", "plugins", "pipeline", "driver", "cli"]
"""Each may import those before it, none may import those after it."""
HEAVY = {"torch": ["frontends", "demo"], "onnxruntime": ["backends", "runners"]}
"""Libraries that only these modules of the core may import, and only inside functions."""


def imports(path: Path, *, at_top: bool = False) -> Iterator[str]:
    """Yield the dotted names that a module imports at run time, relative ones with their dots."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(n) for block in ast.walk(tree) if _type_checking(block) for n in ast.walk(block)}
    nodes = tree.body if at_top else list(ast.walk(tree))
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ([f"{base}{alias.name}" for alias in node.names] if base in (".", "..") else [base])


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", modules("graphopt"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_knows_no_pass(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] == "graphopt_passes"]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_none_above_it(layer: str) -> None:
    above = LAYERS[LAYERS.index(layer) + 1 :]
    files = [ROOT / "graphopt" / f"{layer}.py"] if layer != "cli" else modules("graphopt/cli")
    for path in files:
        found = {name.lstrip(".").split(".")[0] for name in imports(path) if name.startswith(".")}
        assert not found.intersection(above), f"{path.name} imports {found.intersection(above)}"


@pytest.mark.parametrize("path", modules("graphopt"), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    place = path.relative_to(ROOT / "graphopt").with_suffix("").parts[0]
    for library, allowed in HEAVY.items():
        found = [name for name in imports(path) if name.split(".")[0] == library]
        assert not found or place in allowed, f"{path.name} imports {library}"
    at_top = {name.split(".")[0] for name in imports(path, at_top=True)}
    assert not at_top.intersection({"torch", "onnxruntime", "onnxscript", "rich", "networkx"})


@pytest.mark.parametrize(
    "path", [*modules("passes"), *modules("plugins")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_passes_and_plugins_use_public_names_only(path: Path) -> None:
    """Names are public where ``graphopt`` or one of the public modules gives them without an underscore."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").split(".")[0] == "graphopt"
        ):
            names = {alias.name for alias in node.names}
            assert not {name for name in names if name.startswith("_")}
            if node.module == "graphopt":
                assert names <= set(graphopt.__all__), (
                    f"{path.name}: {names - set(graphopt.__all__)} are not public"
                )
            else:
                assert node.module in PUBLIC_MODULES or "tests" in path.parts, (
                    f"{path.name} imports {node.module}"
                )


PUBLIC_MODULES = {
    "graphopt.query",
    "graphopt.calibration",
    "graphopt.closeness",
    "graphopt.scheme",
    "graphopt.testing",
    "graphopt.context",
    "graphopt.text",
    "graphopt.errors",
    "graphopt.analysis.channels",
    "graphopt.criteria",
    "graphopt.loss",
}
