"""What the documents show really runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import onnx_ir as ir
import pytest

import graphopt
from graphopt import pipeline
from graphopt.text import from_text

DOCS = Path(__file__).parents[2] / "docs"
MODEL = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,3] x) => (float[N,3] y)
<float zero = {0}, float one = {1}>
{
   a = Max (x, zero)
   y = Max (a, one)
}
"""


def blocks(document: str, language: str) -> list[str]:
    """Return the fenced blocks of a document that are in ``language``."""
    text = (DOCS / document).read_text(encoding="utf-8")
    return re.findall(rf"^(?:```|````){language}\n(.*?)^(?:```|````)$", text, re.M | re.S)


def example(document: str, word: str) -> str:
    """Return the only Python block with ``word`` in it."""
    (found,) = (block for block in blocks(document, "python") if word in block)
    return found


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin of the documents, installed into the folder it lies in."""
    folder = tmp_path_factory.mktemp("graphopt-max-to-relu")
    project = tomllib.loads(blocks("write-a-plugin.md", "toml")[0])["project"]
    info = folder / "graphopt_max_to_relu-0.1.0.dist-info"
    for made in (info, folder / "tests" / "passes"):
        made.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    entries = "".join(f"{k} = {v}\n" for k, v in project["entry-points"]["graphopt"].items())
    (info / "entry_points.txt").write_text(f"[graphopt]\n{entries}")
    (folder / "max_to_relu.py").write_text(example("write-a-pass.md", "def register_passes"))
    (folder / "tests" / "test_max_to_relu.py").write_text(example("write-a-pass.md", "conformance"))
    case_text = (
        (DOCS / "write-a-pass.md").read_text(encoding="utf-8").split("````")[1].removeprefix("markdown\n")
    )
    (folder / "tests" / "passes" / "max-to-relu.md").write_text(case_text)
    ir.save(from_text(MODEL), folder / "model.onnx")
    return folder


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_pass_passes_its_own_tests(plugin: Path) -> None:
    quiet = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    run(plugin, *quiet, "--accept")
    assert "y = Relu (x)" in (plugin / "tests" / "passes" / "max-to-relu.md").read_text()
    assert "3 passed" in run(plugin, *quiet)


def test_the_pass_is_a_pass_like_any_other(plugin: Path) -> None:
    for line in re.findall(
        r"^    graphopt (.*)$", (DOCS / "write-a-pass.md").read_text(encoding="utf-8"), re.M
    ):
        assert "max-to-relu" in run(plugin, "-m", "graphopt", *line.split())


def test_the_pass_runs_in_python(plugin: Path) -> None:
    (plugin / "use.py").write_text(example("write-a-pass.md", "result.save"))
    assert "- 1: a\n- not Max y: one is not the constant 0\n" in run(plugin, "use.py")


def test_the_pass_that_is_not_local() -> None:
    names: dict[str, type[graphopt.Pass]] = {}
    source = example("write-a-pass.md", "DropDocs")
    exec(compile(source, "drop_docs.py", "exec", dont_inherit=True), names)
    model = from_text(MODEL)
    model.graph[0].doc_string = "a note"
    assert graphopt.optimize(model, [names["DropDocs"]()]).model.graph[0].doc_string is None


def test_a_plugin_of_a_notebook(plugin: Path) -> None:
    shown = "\nprint(plugins.operators()['my.domain', 'MyOp'].elementwise)"
    assert run(plugin, "-c", example("write-a-plugin.md", "SimpleNamespace") + shown) == "True\n"


def test_the_text_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "text-form.md").read_text(encoding="utf-8")
    for written in re.findall(r"--pipeline '(.*)'$", text, re.M):
        assert str(pipeline.parse(written)) == written
    Path("recipe.toml").write_text(blocks("text-form.md", "toml")[0])
    recipe = str(pipeline.load_recipe(Path("recipe.toml")))
    assert recipe == "simplify,fold-constants{limit_bytes=0},fixpoint(eliminate-common,eliminate-dead)"
    ir.save(from_text(MODEL), "model.onnx")
    result = eval(example("text-form.md", "graphopt.optimize").strip(), {"graphopt": graphopt})
    assert result.report.pipeline == result.model.metadata_props["graphopt.pipeline"] == recipe
