"""The command line: one block for each error, with the whole text, the exit code, and nothing half written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import Rewrite, Tape, __version__, hookimpl, plugins
from graphopt.cli import main
from graphopt.text import from_text

MODEL = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,3] x) => (float[N,3] y)
<float[1] zero = {0}>
{
   a = Max (x, zero)
   b = Identity (a)
   c = Relu (b)
   y = Identity (c)
}
"""

Run = Callable[..., tuple[int, str, str]]


class Raises(Rewrite):
    """Raise at a Max."""

    anchor = "Max"

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value:
        raise KeyError("no luck")


class IsWrong(Rewrite):
    """Replace ``Relu(x)`` by ``-x``."""

    anchor = "Relu"

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value:
        return tape.op("Neg", [node.inputs[0]])


@pytest.fixture
def stranger() -> Iterator[None]:
    """A plugin with a pass that raises and one that is wrong."""
    plugins.register(SimpleNamespace(register_passes=hookimpl(lambda: [Raises, IsWrong])), "stranger")
    yield
    plugins.unregister("stranger")


@pytest.fixture
def graphopt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in a folder with a model and files that are none; return exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    ir.save(from_text(MODEL), "a.onnx")
    Path("cut.onnx").write_bytes(Path("a.onnx").read_bytes()[:100])
    Path("note.onnx").write_text("hello\n")
    Path("note.txt").write_text("hello\n")
    Path("empty.onnx").touch()
    Path("folder.onnx").mkdir()
    np.savez("name.npz", z=np.ones((2, 3), np.float32))
    np.savez("shape.npz", x=np.ones((2, 4), np.float32))
    np.savez("dtype.npz", x=np.ones((2, 3), np.int64))
    np.savez("none.npz")
    Path("note.npz").write_text("hello\n")
    Path("step.toml").write_text('pipeline = [{pas = "x"}]')
    Path("key.toml").write_text('pipline = ["simplify"]')
    Path("option.toml").write_text('pipeline = [{pass = "fold-constants", limit = 1}]')

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["graphopt", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        found = capsys.readouterr()
        return int(exit.value.code or 0), found.out, found.err

    return run


USAGE = "Usage: graphopt {}\nTry 'graphopt {} -h' for help.\n\nError: {}\n"


@pytest.mark.parametrize(
    ("command", "usage", "arguments", "message"),
    [
        ("optimize", "{IN}", [], "Missing argument 'IN'."),
        ("optimize", "{IN}", ["a.onnx"], "Missing option '--output' / '-o'."),
        (
            *("optimize", "{IN}", ["a.onnx", "-o", "o.onnx", "--pipline", "x"]),
            "No such option: --pipline (Possible options: --pipeline)",
        ),
        (
            *("optimize", "{IN}", ["a.onnx", "-o", "o.onnx", "--bisect-limit", "-1"]),
            "Invalid value for '--bisect-limit': Input should be greater than or equal to 0",
        ),
        (
            *("optimize", "{IN}", ["a.onnx", "-o", "o.onnx", "--seed", "-1"]),
            "Invalid value for '--seed': Input should be greater than or equal to 0",
        ),
        ("bench", "{A [B …]}...", [], "Missing argument 'A [B …]'."),
        ("check", "{A} {B}", ["a.onnx"], "Missing argument 'B'."),
        ("diff", "{A} {B}", ["a.onnx"], "Missing argument 'B'."),
        ("show", "{MODEL} [B]", [], "Missing argument 'MODEL'."),
        ("explain", "{MODEL} [PASS]", [], "Missing argument 'MODEL'."),
        ("plugins", "", ["x"], "Got unexpected extra argument(s) (x)"),
    ],
)
def test_wrong_usage(graphopt: Run, command: str, usage: str, arguments: list[str], message: str) -> None:
    line = f"{command} [OPTIONS] {usage}".strip()
    assert graphopt(command, *arguments) == (2, "", USAGE.format(line, command, message))


def test_an_unknown_command(graphopt: Run) -> None:
    expected = (
        "Usage: graphopt [OPTIONS] COMMAND [ARGS]...\nTry 'graphopt -h' for help.\n\n"
        "Error: No such command 'foo'.\n"
    )
    assert graphopt("foo") == (2, "", expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nofile.onnx"], "nofile.onnx: no such file; did you mean 'note.onnx' or 'folder.onnx'?"),
        (
            ["note.onnx"],
            "note.onnx: it is no ONNX model, or cut short: a field of wire type 4 at byte 2; "
            "export or download it again",
        ),
        (
            ["cut.onnx"],
            "cut.onnx: it is no ONNX model, or cut short: a field of 157 bytes at byte 2 runs over the end "
            "at byte 100; export or download it again",
        ),
        (["empty.onnx"], "empty.onnx: it is empty; export the model again"),
        (
            ["folder.onnx"],
            "folder.onnx: it cannot be read: it is no regular file; give the file of a model",
        ),
        (["a.onnx", "-o", "a.onnx"], "a.onnx: it is the input, which is never changed; name another file"),
        (
            ["a.onnx", "-o", "folder.onnx/../a.onnx"],
            "folder.onnx/../a.onnx: it is the input, which is never changed; name another file",
        ),
        (["a.onnx", "-o", "no/o.onnx"], "no/o.onnx: there is no folder 'no'; make it first"),
        (
            ["a.onnx", "-o", "note.txt/o.onnx"],
            "note.txt/o.onnx: there is no folder 'note.txt'; make it first",
        ),
        (["a.onnx", "-o", "folder.onnx"], "folder.onnx: it is a folder; name a file"),
        (["a.onnx", "--report", "note.txt"], "note.txt: it is no folder; name another"),
        (["a.onnx", "--report", "note.txt/x"], "note.txt/x: note.txt is no folder; name another"),
        (["a.onnx", "--dump-dir", "note.txt"], "note.txt: it is no folder; name another"),
        (["a.onnx", "--json", "no/x.json"], "no/x.json: there is no folder 'no'; make it first"),
        (
            ["a.onnx", "--pipeline", "fold-batchnrm"],
            "no pass or preset is called 'fold-batchnrm'; did you mean 'fold-batchnorm'?",
        ),
        (["a.onnx", "--pipeline", ""], "pipeline '': expected a name, got the end at column 1"),
        (
            ["a.onnx", "--pipeline", "fixpoint("],
            "pipeline 'fixpoint(': expected a name, got the end at column 10",
        ),
        (
            ["a.onnx", "--pipeline", "fold-constants{x=1}"],
            "fold-constants: no option is called 'x'; its options: limit_bytes",
        ),
        (
            ["a.onnx", "--pipeline", "fold-constants{limit_bytes=abc}"],
            "fold-constants: option 'limit_bytes': input should be a valid integer, unable to parse string "
            "as an integer, got 'abc'",
        ),
        (
            ["a.onnx", "--pipeline", "simplify", "--recipe", "key.toml"],
            "--pipeline and --recipe are two ways to say the same; give one of them",
        ),
        (
            ["a.onnx", "--recipe", "no.toml"],
            "recipe no.toml: cannot be read: No such file or directory; check the path",
        ),
        (
            ["a.onnx", "--recipe", "note.txt"],
            "recipe note.txt: no valid TOML: Expected '=' after a key in a key/value pair "
            "(at line 1, column 6)",
        ),
        (
            ["a.onnx", "--recipe", "step.toml"],
            "recipe step.toml: a step is a name, {pass = name, option = value} or {fixpoint = [steps]}, "
            "got {'pas': 'x'}",
        ),
        (
            ["a.onnx", "--recipe", "key.toml"],
            "recipe key.toml: unknown key 'pipline'; a recipe has one key, 'pipeline', a list",
        ),
        (
            ["a.onnx", "--recipe", "option.toml"],
            "fold-constants: no option is called 'limit'; its options: limit_bytes",
        ),
        (["a.onnx", "--inputs", "no.npz"], "no.npz: there is no such file; write one with numpy.savez"),
        (["a.onnx", "--inputs", "name.npz"], "input 'z': the model has none of this name; there are: x"),
        (["a.onnx", "--inputs", "shape.npz"], "input 'x': its shape must be [N, 3], got [2, 4]"),
        (
            ["a.onnx", "--inputs", "dtype.npz"],
            "input 'x': it must be float, got int64; convert it with .astype(...)",
        ),
        (
            ["a.onnx", "--inputs", "none.npz"],
            "none.npz: it holds no arrays; write it with numpy.savez(path, name=array)",
        ),
        (
            ["a.onnx", "--inputs", "note.npz"],
            "note.npz: it holds no .npz archive; write it with numpy.savez(path, name=array)",
        ),
        (
            ["a.onnx", "--calibration", "nomodule:f"],
            "nomodule:f: cannot import nomodule: ModuleNotFoundError: No module named 'nomodule'; "
            "run where it can be imported from",
        ),
        (
            ["a.onnx", "--target", "onnxruntime:cp"],
            "no target is called 'onnxruntime:cp'; did you mean 'onnxruntime:cpu'?",
        ),
    ],
)
def test_what_optimize_refuses(graphopt: Run, arguments: list[str], message: str) -> None:
    before = sorted(Path().rglob("*"))
    output = () if "-o" in arguments else ("-o", "o.onnx")
    assert graphopt("optimize", *arguments, *output) == (2, "", f"graphopt: {message}\n")
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "a.onnx", "zzz"], "zzz: no such file; check the path"),
        (["bench", "a.onnx", "--seconds", "0"], "the time to measure for must be positive, got 0.0 seconds"),
        (["bench", "a.onnx", "--inputs", "shape.npz"], "input 'x': its shape must be [N, 3], got [2, 4]"),
        (["check", "a.onnx", "empty.onnx"], "empty.onnx: it is empty; export the model again"),
        (["diff", "a.onnx", "zzz"], "zzz: no such file; check the path"),
        (["explain", "a.onnx", "eliminate-ded"],
         "no pass or preset is called 'eliminate-ded'; did you mean 'eliminate-dead'?"),
        (["explain", "a.onnx", "simplify", "--after", "sped"],
         "no pass or preset is called 'sped'; did you mean 'speed'?"),
        (["passes", "fold-pads"], "no pass is called 'fold-pads'; did you mean 'fold-pad'?"),
        (["backends", "--json", "folder.onnx"], "folder.onnx: it is a folder; name a file"),
        (["plugins", "--json", "no/x"], "no/x: there is no folder 'no'; make it first"),
        (["demo", "--target", "onnxruntime:cp"],
         "no target is called 'onnxruntime:cp'; did you mean 'onnxruntime:cpu'?"),
    ],
)  # fmt: skip
def test_what_the_others_refuse(graphopt: Run, arguments: list[str], message: str) -> None:
    assert graphopt(*arguments) == (2, "", f"graphopt: {message}\n")


def test_a_target_that_is_not_here_exits_with_3(graphopt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        type(plugins.get_backend("onnxruntime:cuda")), "unavailable", lambda _: "no GPU is here"
    )
    message = "graphopt: onnxruntime:cuda: no GPU is here; `graphopt backends` lists what can be used\n"
    assert graphopt("bench", "a.onnx", "--target", "onnxruntime:cuda") == (3, "", message)


def test_a_strict_run_names_the_wrong_rewrite(graphopt: Run, stranger: None) -> None:
    code, out, err = graphopt("optimize", "a.onnx", "-o", "o.onnx", "--pipeline", "is-wrong", "--strict")
    assert (code, out) == (1, "")
    assert err.startswith(
        "graphopt: is-wrong: rewrite 1, at c, changed what the model computes: output 'y' at "
    )
    assert not Path("o.onnx").exists()


def test_a_wrong_rewrite_is_left_out_and_named_once(graphopt: Run, stranger: None) -> None:
    code, out, err = graphopt("optimize", "a.onnx", "-o", "o.onnx", "--pipeline", "is-wrong")
    assert (code, err) == (0, "")
    assert out.count("left out rewrite 1, is-wrong at c: output 'y' at ") == 1
    assert "\nreplay   sh graphopt-reproducers/is-wrong-1/check.sh  (rewrite 1)\n" in out


def test_a_pass_that_raises_is_one_block(graphopt: Run, stranger: None) -> None:
    arguments = ("optimize", "a.onnx", "-o", "o.onnx", "--pipeline", "raises", "--strict")
    message = (
        "graphopt: KeyError: 'no luck'; this is a fault in the code, and --debug shows where\n"
        "  while running raises, pass 1 of 1\n"
    )
    assert graphopt(*arguments) == (1, "", message)


def test_a_disk_that_fails_is_one_block(graphopt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "report/report.json")

    monkeypatch.setattr("graphopt.report.Report.save", full)
    message = "graphopt: report/report.json: no space left on device\n"
    assert graphopt("optimize", "a.onnx", "-o", "o.onnx", "--report", "report") == (2, "", message)


def test_explain_says_that_a_pass_raised(graphopt: Run, stranger: None) -> None:
    expected = "raises: applies at 0 places, stopped at 0 places\n  rolled back: KeyError: 'no luck'\n"
    assert graphopt("explain", "a.onnx", "raises") == (0, expected, "")


@pytest.mark.parametrize("arguments", [["--debug", "show", "no.onnx"], ["show", "no.onnx", "--debug"]])
def test_debug_raises_wherever_it_stands(
    graphopt: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["graphopt", *arguments])
    with pytest.raises(ValueError, match="no such file"):
        main()


def test_optimize_says_what_it_did(graphopt: Run) -> None:
    code, out, err = graphopt("optimize", "a.onnx", "-o", "o.onnx", "--pipeline", "eliminate-no-ops")
    assert (code, err) == (0, "")
    assert out.split("\n\n")[1] == (
        "nodes    4 → 2\nweights  0.00 MB → 0.00 MB\n" + out.splitlines()[-3] + "\n"
        "proof    verified against the original: 1 output equal bit for bit, on 2 sample inputs\n"
        "written  o.onnx\n"
    )


def test_a_bisect_limit_stops_the_rewrites(graphopt: Run) -> None:
    code, out, _ = graphopt("optimize", "a.onnx", "-o", "o.onnx", "--bisect-limit", "1")
    assert code == 0
    assert "nodes    4 → 3\n" in out


def test_a_recipe_is_a_pipeline(graphopt: Run) -> None:
    Path("recipe.toml").write_text('pipeline = ["simplify", {pass = "fold-constants", limit_bytes = 0}]')
    code, out, _ = graphopt("optimize", "a.onnx", "-o", "o.onnx", "--recipe", "recipe.toml", "--json", "-")
    assert code == 0
    assert json.loads(out)["pipeline"] == "simplify,fold-constants{limit_bytes=0}"


def test_reports_and_dumps_are_written(graphopt: Run) -> None:
    arguments = ("--report", "made/report", "--dump-dir", "made/dumps", "--json", "made.json")
    code, out, err = graphopt("optimize", "a.onnx", "-o", "o.onnx", *arguments)
    assert (code, err) == (0, "")
    assert "written  o.onnx\n" in out
    assert sorted(path.name for path in Path("made/report").iterdir()) == ["report.json", "report.md"]
    assert [path.name for path in Path("made/dumps").iterdir()]
    assert json.loads(Path("made.json").read_text()) == json.loads(
        Path("made/report/report.json").read_text()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimize", "a.onnx", "-o", "o.onnx"],
        ["bench", "a.onnx", "--seconds", "0.1"],
        ["check", "a.onnx", "a.onnx"],
        ["diff", "a.onnx", "a.onnx"],
        ["show", "a.onnx"],
        ["explain", "a.onnx"],
        ["explain", "a.onnx", "simplify"],
        ["passes"],
        ["passes", "fold-constants"],
        ["passes", "speed"],
        ["backends"],
        ["plugins"],
    ],
    ids=" ".join,
)
def test_json_alone_is_on_standard_output(graphopt: Run, arguments: list[str]) -> None:
    code, out, err = graphopt(*arguments, "--json", "-")
    assert (code, err) == (0, "")
    assert json.loads(out)


def test_help_fits_80_columns_and_cuts_no_sentence(graphopt: Run) -> None:
    code, out, err = graphopt("--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    ours = [line for line in out.partition("Commands:\n")[2].splitlines() if not line.startswith("  demo")]
    assert all(line.endswith(".") and not line.endswith("...") for line in ours)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["passes", "passes fold-batchnorm", "backends", "plugins"])
def test_tables_fit_the_terminal(
    graphopt: Run, monkeypatch: pytest.MonkeyPatch, command: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = graphopt(*command.split())
    assert max(map(len, out.splitlines())) <= columns
    assert not [line for line in out.splitlines() if line != line.rstrip()]


def test_a_pipe_gets_whole_lines(graphopt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    _, out, _ = graphopt("passes")
    wide = [line for line in out.splitlines() if line.startswith("speed ")]
    assert wide and wide[0].endswith(" fuse-affine, eliminate-dead, infer-shapes")


def test_version(graphopt: Run) -> None:
    assert graphopt("--version") == (0, f"graphopt {__version__}\n", "")


@pytest.mark.parametrize("command", [["passes"], ["passes", "--json", "-"]])
def test_a_reader_that_has_seen_enough_is_no_error(command: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "graphopt", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, "")
    process.stderr.close()
