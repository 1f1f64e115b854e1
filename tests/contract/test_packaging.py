"""What is installed is all there is."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_folder_with_code_is_packaged() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "packages"
    ]
    found = [
        ".".join((name, *path.parent.relative_to(ROOT / folder).parts))
        for folder, name in (("graphopt", "graphopt"), ("passes", "graphopt_passes"))
        for path in (ROOT / folder).rglob("__init__.py")
    ]
    assert sorted(packages) == sorted(found)
