"""``graphopt passes``, ``backends`` and ``plugins``: what is installed."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import JsonFile, table, write_json

if TYPE_CHECKING:
    from ..interfaces import Pass


def passes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show one pass in full.")] = None,
    json_file: JsonFile = None,
) -> None:
    """List passes and presets, or show one in full."""
    from .. import plugins

    if name is not None and name in plugins.presets():
        if not write_json({"name": name, "pipeline": plugins.presets()[name]}, json_file):
            print(f"{name} = {plugins.presets()[name]}")
        return
    if name is not None:
        cls = plugins.get_pass(name)
        if not write_json(facts(cls), json_file):
            _show(cls)
        return
    known = plugins.passes()
    data = {"passes": [facts(cls) for cls in known.values()], "presets": plugins.presets()}
    if write_json(data, json_file):
        return
    table(
        None,
        ["pass", "effect", "plugin", ""],
        [
            (cls.name, cls.effect.value, plugins.owner(cls.name), summary(cls).replace("``", ""))
            for cls in known.values()
        ],
    )
    print()
    rows = [(preset, pipeline.replace(",", ", ")) for preset, pipeline in plugins.presets().items()]
    table(None, ["preset", "pipeline"], rows)


def facts(cls: type[Pass]) -> dict[str, Any]:
    """Return what there is to know of a pass, as plain data."""
    from .. import plugins

    return {
        "name": cls.name,
        "effect": cls.effect.value,
        "level": cls.level.value,
        "plugin": plugins.owner(cls.name),
        "help": inspect.cleandoc(cls.__doc__ or ""),
        "options": cls.model_json_schema().get("properties", {}),
    }


def summary(cls: type[Pass]) -> str:
    """Return the first sentence of a pass's help."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


def _show(cls: type[Pass]) -> None:
    from .. import plugins

    print(f"{cls.name} ({cls.effect.value}, from plugin {plugins.owner(cls.name)})\n")
    print(_filled(inspect.cleandoc(cls.__doc__ or "")))
    if not cls.model_fields:
        return
    print()
    rows = []
    for option, declared in cls.model_fields.items():
        default = (
            "required" if declared.is_required() else repr(declared.get_default(call_default_factory=True))
        )
        kind = getattr(declared.annotation, "__name__", str(declared.annotation))
        rows.append((option, kind, default, declared.description))
    table(None, ["option", "type", "default", ""], rows)


def _filled(text: str) -> str:
    """Wrap the prose of a help text to the terminal; leave equations and lists as they are."""
    width = shutil.get_terminal_size().columns
    return "\n\n".join(
        part if any(line[:1] in " -*|" for line in part.splitlines()) else textwrap.fill(part, width)
        for part in text.split("\n\n")
    )


def backends(json_file: JsonFile = None) -> None:
    """List the targets, and why one cannot be used."""
    from .. import plugins

    found = [(b.name, b.unavailable(), dict(b.describe())) for b in plugins.backends().values()]
    data = [{"name": name, "unavailable": why, "facts": known} for name, why, known in found]
    if write_json(data, json_file):
        return
    rows = [
        (name, "no" if why else "yes", why or ", ".join(map(" ".join, known.items())))
        for name, why, known in found
    ]
    table(None, ["target", "available", ""], rows)


def plugins(json_file: JsonFile = None) -> None:
    """List the plugins, and what is wrong with one."""
    from .. import plugins as registry

    found = registry.states()
    if write_json([dataclasses.asdict(state) for state in found], json_file):
        return
    rows = [(s.name, f"{s.distribution} {s.version}".strip(), s.problem or "ok") for s in found]
    table(None, ["plugin", "from", "state"], rows)
