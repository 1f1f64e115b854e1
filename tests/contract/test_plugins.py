"""The plugin contract: what breaks it is named with the reason, and everything else keeps working."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import onnx_ir as ir
import pytest
from pydantic import Field

import graphopt
from graphopt import Context, Decline, OpInfo, Pass, PassReport, PluginError, Rewrite, Tape, hookimpl, plugins
from graphopt.cli import main
from graphopt.ops import op_info
from graphopt.text import from_text, to_text

PASS = '''
from graphopt import Rewrite, hookimpl

class {name}(Rewrite):
    """Replace a Max by a Relu."""
    anchor = "Max"
    def replace(self, node, tape):
        return tape.op("Relu", [node.inputs[0]])

@hookimpl
def register_passes():
    return [{name}]
'''

BROKEN = {
    "imports": (
        "import no_such_module",
        "it fails to import: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "syntax": ("def", "it fails to import: SyntaxError: invalid syntax (broken_syntax.py, line 1)"),
    "misspelt": (
        "from graphopt import hookimpl\n@hookimpl\ndef register_pases():\n    return []",
        "no hook is called 'register_pases'; did you mean 'register_passes'?",
    ),
    "signature": (
        "from graphopt import hookimpl\n@hookimpl\ndef before_pass(step, graph):\n    pass",
        "wrong hook signature: ",
    ),
    "raises": (
        "from graphopt import hookimpl\n@hookimpl\ndef register_passes():\n    return [1 / 0]",
        "its register_passes raises: ZeroDivisionError: division by zero",
    ),
    "presets": (
        "from graphopt import hookimpl\n@hookimpl\ndef register_presets():\n    return [1 / 0]",
        "its register_presets raises: ZeroDivisionError: division by zero",
    ),
    "backends": (
        "from graphopt import hookimpl\n@hookimpl\ndef register_backends():\n    return [1 / 0]",
        "its register_backends raises: ZeroDivisionError: division by zero",
    ),
    "frontends": (
        "from graphopt import hookimpl\n@hookimpl\ndef register_frontends():\n    return None",
        "its register_frontends raises: TypeError: 'NoneType' object is not iterable",
    ),
    "preset": (
        "from graphopt import hookimpl\n@hookimpl\ndef register_presets():\n    return {'speed': 'simplify'}",
        "preset 'speed' is offered twice: by plugin 'builtin' and by plugin 'preset'",
    ),
    "taken": (
        PASS.format(name="FoldPad"),
        "pass 'fold-pad' is offered twice: by plugin 'builtin' (graphopt_passes.fold_pad) and by plugin 'taken' "
        "(broken_taken)",
    ),
}
"""Name of a plugin: its source, and what ``graphopt plugins`` must say of it."""


def install(folder: Path, name: str, module: str, source: str) -> None:
    """Lay out a distribution as pip would."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[graphopt]\n{name} = {module}\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A folder with a sound plugin and every broken one; run the command line where they are installed."""
    folder = tmp_path_factory.mktemp("site-packages")
    install(folder, "sound", "sound", PASS.format(name="MaxToRelu"))
    for name, (source, _) in BROKEN.items():
        install(folder, name, f"broken_{name}", source)
    model = '<ir_version: 10, opset_import: ["" : 20]> main (float[3] x) => (float[3] y)'
    ir.save(from_text(model + "<float zero = {0}> { y = Max (x, zero) }"), folder / "max.onnx")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "graphopt", *arguments], cwd=folder, capture_output=True, text=True
        )

    return run


def test_each_broken_plugin_is_listed_with_the_reason(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = installed("plugins", "--json", "-")
    assert (done.returncode, done.stderr) == (0, "")
    states = {state["name"]: state for state in json.loads(done.stdout)}
    assert {"builtin", "core", "sound"} <= {
        name for name, state in states.items() if state["problem"] is None
    }
    for name, (_, problem) in BROKEN.items():
        assert states[name]["problem"].startswith(problem), name
        assert (states[name]["distribution"], states[name]["version"]) == (f"broken_{name}", "1.0")
    assert "Argument(s) {'graph'}" in states["signature"]["problem"]


def test_everything_else_keeps_working(installed: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = installed(
        "optimize", "max.onnx", "-o", "relu.onnx", "--pipeline", "max-to-relu,speed", "--json", "-"
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["after"]["operators"] == {"Relu": 1}
    assert report["passes"][0]["name"] == "max-to-relu"


def test_a_name_that_nobody_offers_names_the_plugins_that_failed(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = installed("passes", "no-such-pass")
    assert done.returncode == 2
    assert done.stderr.startswith("graphopt: no pass is called 'no-such-pass'; there are: ")
    problem = BROKEN["imports"][1]
    assert f"\n  plugin 'imports' cannot be used in full: {problem}\n" in done.stderr


@pytest.fixture
def offer() -> Iterator[Callable[..., None]]:
    """Register a plugin called ``stranger`` with the hooks that are given."""

    def register(**hooks: Callable[..., Any]) -> None:
        plugin = SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()})
        plugins.register(plugin, "stranger")

    yield register
    plugins.unregister("stranger")


class Sound(Rewrite):
    """Decline at each Max."""

    anchor = "Max"
    strict: bool = Field(False, description="decline more")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value:
        raise Decline("it is a test")


class Undocumented(Sound):
    __doc__ = None


class Abstract(Pass):
    """Lack a ``run``."""


class Undescribed(Sound):
    """Have an option that says nothing."""

    depth: int = 3


class Taken(Sound):
    """Take the name of a built-in pass."""

    name: ClassVar = "fold-pad"


@pytest.mark.parametrize(
    ("offered", "problem"),
    [
        ([Undocumented], "pass 'undocumented' has no docstring, which is its help"),
        ([Abstract], "pass 'abstract' is abstract: it lacks run"),
        ([Undescribed], "option 'depth' of pass 'undescribed' has no description"),
        ([Sound()], "register_passes must give subclasses of graphopt.Pass, got Sound"),
        ([int], "register_passes must give subclasses of graphopt.Pass, got <class 'int'>"),
        (None, "its register_passes raises: TypeError: 'NoneType' object is not iterable"),
        (
            [Taken],
            "pass 'fold-pad' is offered twice: by plugin 'builtin' (graphopt_passes.fold_pad) and by plugin "
            f"'stranger' ({__name__})",
        ),
        (
            [Sound, Sound],
            f"pass 'sound' is offered twice: by plugin 'stranger' ({__name__}) and by plugin 'stranger' "
            f"({__name__})",
        ),
    ],
)
def test_passes_that_break_the_contract(offer: Callable[..., None], offered: Any, problem: str) -> None:
    before = plugins.passes()
    with pytest.raises(PluginError) as caught:
        offer(register_passes=lambda: offered)
    assert str(caught.value).startswith(f"plugin 'stranger': {problem}")
    assert plugins.passes() == before
    assert "stranger" not in [state.name for state in plugins.states()]


def test_a_misspelt_hook_names_the_nearest(offer: Callable[..., None]) -> None:
    with pytest.raises(PluginError) as caught:
        offer(register_pases=lambda: [Sound])
    assert (
        str(caught.value)
        == "plugin 'stranger': no hook is called 'register_pases'; did you mean 'register_passes'?"
    )


def test_a_wrong_hook_signature(offer: Callable[..., None]) -> None:
    with pytest.raises(PluginError, match=r"^plugin 'stranger': wrong hook signature: .*'graph'"):
        offer(before_pass=lambda step, graph: None)


@pytest.mark.parametrize(
    ("hooks", "problem"),
    [
        (
            {"register_presets": lambda: {"fold-pad": "simplify"}},
            "preset 'fold-pad' has the name of a pass of plugin 'builtin'; rename it",
        ),
        (
            {"register_presets": lambda: {"speed": "simplify"}},
            "preset 'speed' is offered twice: by plugin 'builtin' and by plugin 'stranger'",
        ),
        (
            {"register_presets": lambda: ["simplify"]},
            "its register_presets raises: AttributeError: 'list' object has no attribute 'items'",
        ),
        (
            {"register_backends": lambda: [SimpleNamespace(name="onnxruntime:cpu")]},
            "target 'onnxruntime:cpu' is offered twice: by plugin 'core' and by plugin 'stranger'",
        ),
        (
            {"register_operators": lambda: 3},
            "its register_operators raises: TypeError: 'int' object is not iterable",
        ),
        (
            {"register_frontends": lambda: None},
            "its register_frontends raises: TypeError: 'NoneType' object is not iterable",
        ),
    ],
)
def test_other_offers_that_break_the_contract(
    offer: Callable[..., None], hooks: dict[str, Callable[..., Any]], problem: str
) -> None:
    with pytest.raises(PluginError) as caught:
        offer(**hooks)
    assert str(caught.value) == f"plugin 'stranger': {problem}"
    assert plugins.presets()["speed"] != "simplify"
    assert "fold-pad" in plugins.passes()
    assert "onnxruntime:cpu" in plugins.backends()


def test_a_preset_of_a_plugin_stands_in_a_pipeline(offer: Callable[..., None]) -> None:
    offer(
        register_passes=lambda: [Sound],
        register_presets=lambda: {"mine": "sound{strict=true}, eliminate-dead"},
    )
    assert plugins.owner("sound") == "stranger"
    result = graphopt.optimize(from_text(CLIP), "mine", verify=False)
    assert [entry.text for entry in result.report.passes] == ["sound{strict=true}", "eliminate-dead"]


CLIP = """<ir_version: 10, opset_import: ["" : 20]>
main (float[3] x) => (float[3] y)
<float zero = {0}>
{
   y = Clip (x, zero)
}
"""


def test_the_example_plugin_is_installed() -> None:
    state = next(state for state in plugins.states() if state.name == "example")
    assert (state.distribution, state.problem) == ("graphopt-example", None)
    assert plugins.owner("clip-to-relu") == "example"


def test_the_example_plugin_works_as_the_built_in_passes_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ir.save(from_text(CLIP), "clip.onnx")
    pipeline = "simplify,clip-to-relu"
    arguments = ["optimize", "clip.onnx", "-o", "relu.onnx", "--pipeline", pipeline, "--report", "report"]
    monkeypatch.setattr(sys, "argv", ["graphopt", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    assert not exit.value.code
    assert "\nclip-to-relu " in capsys.readouterr().out
    assert ir.load("relu.onnx").graph[0].op_type == "Relu"
    assert "## clip-to-relu\n\n- 1: y\n" in Path("report/report.md").read_text()
    assert json.loads(Path("report/report.json").read_text())["pipeline"] == pipeline


def test_the_example_plugin_passes_its_cases() -> None:
    folder = Path(__file__).parents[2] / "plugins" / "graphopt-example"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_observers_see_each_pass(offer: Callable[..., None]) -> None:
    seen: list[tuple[str, str, object]] = []

    def before_pass(step: Pass, model: ir.Model) -> None:
        seen.append(("before", step.name, model.graph[0].op_type))

    def after_pass(step: Pass, model: ir.Model, context: Context, report: PassReport) -> None:
        seen.append(("after", step.name, len(report.applied)))

    offer(before_pass=before_pass, after_pass=after_pass)
    graphopt.optimize(from_text(CLIP), "clip-to-relu,eliminate-dead", verify=False)
    assert seen == [
        ("before", "clip-to-relu", "Clip"),
        ("after", "clip-to-relu", 1),
        ("before", "eliminate-dead", "Relu"),
        ("after", "eliminate-dead", 0),
    ]


def test_register_operators_extends_the_operator_table(offer: Callable[..., None]) -> None:
    model = from_text(
        '<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>\n'
        "main (float[3] x) => (float[3] y) { y = mine.Swish (x) }"
    )
    node = model.graph[0]
    assert not op_info(node).elementwise
    offer(register_operators=lambda: {("mine", "Swish"): OpInfo(elementwise=True)})
    assert op_info(node).elementwise
    plugins.unregister("stranger")
    assert not op_info(node).elementwise
    assert to_text(model)


def test_an_observer_that_raises_is_named_and_the_run_goes_on(offer: Callable[..., None]) -> None:
    @hookimpl
    def before_pass(step: Pass) -> None:
        raise RuntimeError(f"no eyes for {step.name}")

    offer(before_pass=before_pass)
    result = graphopt.optimize(from_text(CLIP), "fold-constants", strict=True)
    (remark,) = result.report.remarks
    assert remark.startswith("before_pass of plugin ")
    assert remark.endswith(" raised RuntimeError: no eyes for fold-constants")
    assert result.report.verified
