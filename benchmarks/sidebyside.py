"""What benchmarks against peers share: an environment for each, a process for each run, marks in the tables."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphopt.racing import Timing

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".cache" / "peers"


@dataclass
class Outcome:
    """What one tool made of one model."""

    tool: str
    failure: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    megabytes: float = math.nan
    timing: Timing | None = None

    @property
    def ours(self) -> bool:
        return self.tool.startswith("graphopt")

    def value(self, name: str) -> float:
        """Return a figure by name, less being better."""
        found = self.figures[name] if name in self.figures else getattr(self, name)
        return float(found) / 1e6 if name == "peak" else float(found)


def install(packages: Mapping[str, Sequence[str]]) -> None:
    """Make each peer an environment of its own, where that was not done yet."""
    for tool, wanted in packages.items():
        folder = PEERS / tool
        stamp = folder / "installed.txt"
        if stamp.exists() and stamp.read_text() == " ".join(wanted):
            continue
        print(f"installing {tool}", flush=True)
        if not (folder / "bin" / "python").exists():
            base = Path(getattr(sys, "_base_executable", sys.executable))
            subprocess.run([base, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True)
        stamp.write_text(" ".join(wanted))


def python(environment: str | None) -> Path:
    """Return the interpreter of a peer's environment, or this one."""
    return PEERS / environment / "bin" / "python" if environment else Path(sys.executable)


def attempt(
    environment: str | None,
    script: str,
    arguments: Sequence[str | Path],
    limit: float,
    folder: Path | None = None,
) -> str:
    """Run a script beside this file in a process of its own, with ``folder`` for what it leaves lying about.

    Return why it failed, ``""`` where it did not.
    """
    command = [python(environment), HERE / script, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, errors="replace", cwd=folder
        )
    except subprocess.TimeoutExpired:
        return f"no result within {limit:.0f} s"
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return f"exit code {done.returncode}, {lines[-1][:200] if lines else 'no message'}"
    return ""


def figures(folder: Path) -> tuple[dict[str, Any], float]:
    """Return what a run wrote into ``figures.json``, and the megabytes of all else that it left."""
    size = sum(f.stat().st_size for f in folder.iterdir() if f.name != "figures.json") / 1e6
    return json.loads((folder / "figures.json").read_text()), size


def bold(text: str, behind: bool) -> str:
    """Mark a figure that is behind."""
    return f"**{text}**" if behind else text
