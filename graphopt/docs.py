"""Pages of passes, made from docstring, options and case file: ``python -m graphopt.docs docs/passes tests/passes``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from . import plugins

if TYPE_CHECKING:
    from .interfaces import Pass

HEADER = "<!-- Made by `make docs` from the docstring, the options and the case file; edit those. -->\n\n"


def pages(owner: str, cases: Path) -> dict[str, str]:
    """Return the pages of the passes of plugin ``owner``, and an index of them: file name to Markdown."""
    known = {name: cls for name, cls in plugins.passes().items() if plugins.owner(name) == owner}
    made = {f"{name}.md": page(cls, cases / f"{name}.md") for name, cls in known.items()}
    lines = [
        f"- [`{name}`]({name}.md) ({cls.effect.value}): {markdown(summary(cls))}"
        for name, cls in known.items()
    ]
    presets = [f"- `{name}` = `{text}`" for name, text in plugins.presets().items()]
    made["README.md"] = HEADER + "\n".join(["# Passes", "", *lines, "", "# Presets", "", *presets, ""])
    return made


def page(cls: type[Pass], cases: Path) -> str:
    """Return the page of one pass; ``cases`` is its case file, which may be missing."""
    text = f"{HEADER}# {cls.name}\n\n{markdown(inspect.cleandoc(cls.__doc__ or ''))}\n"
    if cls.model_fields:
        text += "\n## Options\n\n| option | type | default | |\n| --- | --- | --- | --- |\n"
        rows = [[cell.replace("|", r"\|") for cell in row] for row in options(cls)]
        text += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    if cases.exists():
        _, _, body = cases.read_text(encoding="utf-8").partition("\n")
        text += "\n## Cases\n" + re.sub("^##", "###", body, flags=re.MULTILINE)
    return text


def options(cls: type[Pass]) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, type, default and help of each option of a pass."""
    for option, declared in cls.model_fields.items():
        kind = getattr(declared.annotation, "__name__", str(declared.annotation))
        default = (
            "required" if declared.is_required() else repr(declared.get_default(call_default_factory=True))
        )
        yield option, kind, default, declared.description or ""


def summary(cls: type[Pass]) -> str:
    """Return the first sentence of a pass's help."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


def markdown(docstring: str) -> str:
    """Return a docstring as Markdown: ``::`` blocks fenced, double back-quotes single."""
    lines: list[str] = []
    fenced = False
    for line in docstring.split("\n"):
        if fenced and line and not line.startswith(" "):
            lines[-1:] = ["```", ""]
            fenced = False
        if line.endswith("::"):
            lines += [line[:-1], "", "```"]
            fenced = True
        elif not (fenced and not line and lines[-1] == "```"):
            lines.append(line.removeprefix("    ") if fenced else line)
    if fenced:
        lines.append("```")
    return re.sub(r"``(.+?)``", r"`\1`", "\n".join(lines))


def main(folder: str, cases: str) -> None:
    """Write the pages of the built-in passes into ``folder``, and remove those of passes that are gone."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    made = pages("builtin", Path(cases))
    for old in target.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (target / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
