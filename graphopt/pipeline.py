"""Pipelines: text, TOML and Python lists of passes, which print back to one text form.

Grammar::

    pipeline = step {"," step}
    step     = name [options] | "fixpoint" "(" pipeline ")"
    options  = "{" key "=" value {"," key "=" value} "}"
    value    = number | true | false | null | word | "quoted text" | "[" [value {"," value}] "]"

``name`` is a pass or a preset; a preset takes one option, ``measured=true`` (:mod:`graphopt.tuning`). ``fixpoint``
repeats its steps until a round changes nothing. White space and line ends between tokens do not matter; ``#`` starts a
comment.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from . import plugins
from .errors import OptionError, PipelineError
from .interfaces import Pass

PREFIX = "pipeline"


@dataclass(frozen=True)
class Fixpoint:
    """Steps that are repeated until a round of them changes nothing."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"fixpoint({','.join(map(_step_text, self.steps))})"


@dataclass(frozen=True)
class Preset:
    """A pipeline known by a name."""

    name: str
    steps: tuple[Step, ...]
    measured: bool = False
    """Keep a family of its passes only where the model measures no slower with it; see :mod:`graphopt.tuning`."""

    def __str__(self) -> str:
        return f"{self.name}{{measured=true}}" if self.measured else self.name


Step = Pass | Fixpoint | Preset


@dataclass(frozen=True)
class Pipeline:
    """A list of steps; ``str`` gives the text form, which parses back to the same."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return ",".join(map(_step_text, self.steps))

    @property
    def measured(self) -> bool:
        """Whether a preset in it asks for measuring."""
        return any(isinstance(step, Preset) and step.measured for step in self.steps)

    def passes(self) -> Iterator[Pass]:
        """Yield every pass in it, in order, those of presets and fixpoints too."""
        yield from _passes(self.steps)


def _passes(steps: Iterable[Step]) -> Iterator[Pass]:
    for step in steps:
        if isinstance(step, Pass):
            yield step
        else:
            yield from _passes(step.steps)


def parse(source: object) -> Pipeline:
    """Return the pipeline that ``source`` stands for.

    ``source`` is pipeline text, a :class:`Pipeline`, a pass (instance or class), any ``onnx_ir.passes`` pass,
    ``onnxscript`` rule set or ``GraphModule -> GraphModule`` callable, or a sequence of all these.

    Raises:
        PipelineError: it cannot be parsed, or names an unknown pass.
        OptionError: a pass does not take an option, or not that value.
    """
    if isinstance(source, Pipeline):
        return source
    if isinstance(source, str):
        return Pipeline(tuple(_Parser(source).pipeline()))
    if isinstance(source, (Pass, Fixpoint, Preset)):
        return Pipeline((source,))
    if isinstance(source, type) and issubclass(source, Pass):
        return Pipeline((build(source, {}),))
    if isinstance(source, Sequence):
        return Pipeline(tuple(step for item in source for step in parse(item).steps))
    from .adapters import adapt

    return Pipeline((adapt(source),))


def load_recipe(path: str | Path) -> Pipeline:
    """Read a recipe: TOML with ``pipeline``, a list of names, of tables ``{pass = name, option = value …}`` and of
    ``{fixpoint = [...]}``.

    Raises:
        PipelineError: the file is missing, is no TOML, or holds no pipeline.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineError(f"recipe {path}: cannot be read: {error.strerror}; check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PipelineError(f"recipe {path}: no valid TOML: {error}") from error
    return from_recipe(data, f"recipe {path}")


def from_recipe(data: dict[str, Any], subject: str = "recipe") -> Pipeline:
    """Return the pipeline of a recipe that is already read."""
    if unknown := data.keys() - {PREFIX}:
        raise PipelineError(
            f"{subject}: unknown key {min(unknown)!r}; a recipe has one key, 'pipeline', a list"
        )
    items = data.get(PREFIX)
    if not isinstance(items, list):
        raise PipelineError(f"{subject}: 'pipeline' must be a list of passes, got {items!r}")
    return Pipeline(tuple(step for item in items for step in _recipe_steps(item, subject)))


def _recipe_steps(item: object, subject: str) -> Sequence[Step]:
    if isinstance(item, str):
        return parse(item).steps
    if isinstance(item, dict) and item.keys() == {"fixpoint"} and isinstance(item["fixpoint"], list):
        return [Fixpoint(tuple(step for inner in item["fixpoint"] for step in _recipe_steps(inner, subject)))]
    if isinstance(item, dict) and isinstance(item.get("pass"), str):
        options = {key.replace("-", "_"): value for key, value in item.items() if key != "pass"}
        return [_named(item["pass"], options)]
    raise PipelineError(
        f"{subject}: a step is a name, {{pass = name, option = value}} or {{fixpoint = [steps]}}, got {item!r}"
    )


def to_recipe(pipeline: Pipeline) -> str:
    """Return ``pipeline`` as the text of a TOML recipe, which :func:`load_recipe` reads back."""
    return "pipeline = [\n" + "".join(f"    {_recipe_text(step)},\n" for step in pipeline.steps) + "]\n"


def _recipe_text(step: Step) -> str:
    if isinstance(step, Fixpoint):
        return f"{{fixpoint = [{', '.join(map(_recipe_text, step.steps))}]}}"
    options = chosen(step) if isinstance(step, Pass) else {"measured": True} if step.measured else {}
    if not options:
        return json.dumps(step.name)
    pairs = "".join(f", {key} = {json.dumps(value)}" for key, value in options.items() if value is not None)
    return f"{{pass = {json.dumps(step.name)}{pairs}}}"


def chosen(step: Pass) -> dict[str, Any]:
    """Return the options of ``step`` that differ from their defaults."""
    return {k: v for k, v in step.model_dump(mode="json").items() if getattr(step, k) != _default(step, k)}


def _default(step: Pass, option: str) -> Any:
    return type(step).model_fields[option].get_default(call_default_factory=True)


def _step_text(step: Step) -> str:
    if not isinstance(step, Pass):
        return str(step)
    options = chosen(step)
    if not options:
        return step.name
    return f"{step.name}{{{','.join(f'{key}={_value_text(value)}' for key, value in options.items())}}}"


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_value_text, value))}]"
    if isinstance(value, str) and WORD.fullmatch(value) and not _is_literal(value):
        return value
    return json.dumps(value)


def build(cls: type[Pass], options: dict[str, Any]) -> Pass:
    """Return ``cls`` with ``options``.

    Raises:
        OptionError: it has no such option, or the value does not fit.
    """
    try:
        return cls.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(cls.model_fields) or "none"
            raise OptionError(f"{cls.name}: no option is called {option!r}; its options: {known}") from None
        if first["type"] == "missing":
            raise OptionError(
                f"{cls.name}: option {option!r} is missing; write {cls.name}{{{option}=…}}"
            ) from None
        if not option:  # options that do not go together: the pass says so itself
            raise OptionError(f"{cls.name}: {first['msg'].removeprefix('Value error, ')}") from None
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise OptionError(f"{cls.name}: option {option!r}: {reason}, got {first['input']!r}") from None


def _named(name: str, options: dict[str, Any]) -> Step:
    presets = plugins.presets()
    if name in presets:
        measured = options.pop("measured", False)
        if options or not isinstance(measured, bool):
            got = ", ".join(options) or f"measured={measured!r}"
            raise OptionError(f"{name}: a preset takes one option, measured=true or false, got {got}")
        wider = f"{name}{{measured=true}}"
        return replace(_expand(name, wider if measured and wider in presets else name), measured=measured)
    if name not in plugins.passes():
        known = [*plugins.passes(), *presets]
        raise plugins.unknown("pass or preset", name, known, PipelineError)
    return build(plugins.get_pass(name), options)


_expanding: list[str] = []


def _expand(name: str, form: str) -> Preset:
    if name in _expanding:
        raise PipelineError(f"preset {name!r} contains itself: {' → '.join([*_expanding, name])}")
    _expanding.append(name)
    try:
        return Preset(name, parse(plugins.presets()[form]).steps)
    finally:
        _expanding.pop()


# --- text -------------------------------------------------------------------------------------------------------------

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./:+*-]*")
TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![A-Za-z0-9_]))"""
    r"""|(?P<word>[A-Za-z_][A-Za-z0-9_./:+*-]*)|(?P<text>"(?:[^"\\]|\\.)*")|(?P<mark>[{}\[\](),=])"""
)
LITERALS = {"true": True, "false": False, "null": None}


def _is_literal(word: str) -> bool:
    return word in LITERALS


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._scan())
        self.next = 0

    def _scan(self) -> Iterator[_Token]:
        at = 0
        while at < len(self.text):
            match = TOKEN.match(self.text, at)
            if match is None:
                raise self._error(f"unexpected {self.text[at]!r}", at)
            if match.lastgroup != "space":
                yield _Token(match.lastgroup or "", match.group(), at)
            at = match.end()

    def _error(self, what: str, at: int) -> PipelineError:
        return PipelineError(f"pipeline {self.text!r}: {what} at column {at + 1}")

    def _peek(self) -> _Token:
        return self.tokens[self.next] if self.next < len(self.tokens) else _Token("end", "", len(self.text))

    def _take(self, *wanted: str) -> _Token:
        token = self._peek()
        if wanted and token.text not in wanted and token.kind not in wanted:
            names = {"word": "a name", "end": "the end"}
            expected = " or ".join(names.get(w, repr(w)) for w in wanted)
            got = repr(token.text) if token.kind != "end" else "the end"
            raise self._error(f"expected {expected}, got {got}", token.at)
        self.next += 1
        return token

    def pipeline(self, closing: str = "") -> list[Step]:
        steps = [self._step()]
        while self._take(",", closing or "end").text == ",":
            steps.append(self._step())
        return steps

    def _step(self) -> Step:
        name = self._take("word").text
        if name == "fixpoint" and self._peek().text == "(":
            self._take("(")
            return Fixpoint(tuple(self.pipeline(closing=")")))
        return _named(name, self._options() if self._peek().text == "{" else {})

    def _options(self) -> dict[str, Any]:
        self._take("{")
        options: dict[str, Any] = {}
        if self._peek().text == "}":
            self._take("}")
            return options
        while True:
            token = self._take("word")
            key = token.text.replace("-", "_")
            if key in options:
                raise self._error(f"option {key!r} is given twice", token.at)
            self._take("=")
            options[key] = self._value()
            if self._take(",", "}").text == "}":
                return options

    def _value(self) -> Any:
        if self._peek().text == "[":
            return self._list()
        token = self._take("number", "word", "text")
        readers: dict[str, Callable[[str], Any]] = {"number": _number, "word": _word, "text": json.loads}
        try:
            return readers[token.kind](token.text)
        except ValueError as error:
            raise self._error(f"{token.text} cannot be read", token.at) from error

    def _list(self) -> list[Any]:
        self._take("[")
        items: list[Any] = []
        if self._peek().text == "]":
            self._take("]")
            return items
        while True:
            items.append(self._value())
            if self._take(",", "]").text == "]":
                return items


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _word(text: str) -> Any:
    return LITERALS.get(text, text)
