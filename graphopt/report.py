"""What a run did: what changed, what was declined and why, what was proved; as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .interfaces import Applied, Declined, Drift
from .loss import Loss
from .query import all_nodes

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    nodes: int
    weights_bytes: int
    operators: dict[str, int]

    @classmethod
    def of(cls, model: ir.Model) -> Size:
        """Measure ``model``; weights are not read."""
        from .model import nbytes

        operators = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in all_nodes(model))
        return cls(sum(operators.values()), nbytes(model), dict(sorted(operators.items())))


@dataclass
class PassEntry:
    """What one pass of the pipeline did, all rounds together."""

    name: str
    text: str
    """The pass as pipeline text, with its options."""
    milliseconds: float = 0.0
    applied: list[Applied] = field(default_factory=list)
    declined: list[Declined] = field(default_factory=list)
    """Where the pass looked closely and left the graph alone, as of its last round."""
    notes: list[str] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    """How far a lossy pass moved values: graph outputs first, then layers, those that add most noise first."""
    rolled_back: str | None = None
    """Why everything that the pass did was taken back."""

    DRIFT_COLUMNS: ClassVar = ("moved", "value", "SQNR", "noise added")

    def drift_rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield a row of text a value, under :attr:`DRIFT_COLUMNS`."""
        for each in self.drift:
            sqnr = f"{each.sqnr_db:.1f} dB" if math.isfinite(each.sqnr_db) else "equal"
            added = f"{100 * each.added:.2g} %" if each.node else ""
            yield (each.node or "graph output", each.value, sqnr, added)


SIMULATED = "simulated rounding"
"""What the integers that the target computes are compared with."""


@dataclass(frozen=True)
class CheckEntry:
    """One comparison of the model with what it must equal."""

    after: str
    """The pass after which it was made."""
    against: str
    """``original``, ``reference of PASS`` for a lossy pass, or :data:`SIMULATED`."""
    ok: bool
    text: str
    """The verdict; where it failed, the worst element."""
    largest_error: float = 0.0
    """Of any output, relative to its largest element."""


@dataclass(frozen=True)
class Trial:
    """One choice that was measured: the model with it against the model without it."""

    what: str
    ratio: float
    """Time with the choice by the time without it: below 1 is faster."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    taken: bool


@dataclass(frozen=True)
class Blame:
    """A rewrite that changed what the model computes, found by bisection and left out."""

    number: int
    pass_name: str
    where: str
    reason: str
    checks: int
    """How many checks the bisection took."""
    reproducer: str | None = None
    """Folder with the model before and after, the inputs and the commands."""


@dataclass
class Report:
    """What a run did."""

    source: str
    pipeline: str
    before: Size
    after: Size
    passes: list[PassEntry]
    checks: list[CheckEntry] = field(default_factory=list)
    blamed: list[Blame] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    """What was measured to choose families of passes and settings of the target."""
    loss: Loss = field(default_factory=Loss)
    """What lossy passes cost, all together, and what the user's metric says; empty where there were none."""
    remarks: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def verified(self) -> bool:
        """Whether the result was compared with what it must equal, and was equal."""
        return bool(self.checks) and self.checks[-1].ok

    @property
    def pass_milliseconds(self) -> float:
        """Time spent in passes, without loading, verifying and saving."""
        return sum(entry.milliseconds for entry in self.passes)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data; ``null`` for the SQNR of what is equal."""
        data = dataclasses.asdict(self)
        drifts = [drift for entry in data["passes"] for drift in entry["drift"]]
        for each in [*drifts, *data["loss"]["outputs"]]:
            each["sqnr_db"] = each["sqnr_db"] if math.isfinite(each["sqnr_db"]) else None
        return {**data, "verified": self.verified, "pass_milliseconds": self.pass_milliseconds}

    def save(self, folder: str | Path) -> None:
        """Write ``report.json`` and ``report.md`` into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(self.markdown(), encoding="utf-8")

    def verdict(self) -> str:
        """Return one line on what was proved."""
        if not self.checks:
            return "not verified"
        *others, last = self.checks
        if not last.ok:
            return f"NOT verified: {last.text}"
        if last.against == SIMULATED and others:
            return f"verified against the {others[-1].against}: {others[-1].text}; {last.text}"
        return f"verified against the {last.against}: {last.text}"

    def markdown(self) -> str:
        """Return the report as a page."""
        lines = [
            f"# {self.source}",
            "",
            f"Pipeline: `{self.pipeline}`",
            "",
            f"{self.verdict()[0].upper()}{self.verdict()[1:]}.",
            "",
            "| | before | after |",
            "| --- | ---: | ---: |",
            f"| nodes | {self.before.nodes} | {self.after.nodes} |",
            f"| bytes of weights | {self.before.weights_bytes} | {self.after.weights_bytes} |",
        ]
        for op in sorted(self.before.operators | self.after.operators):
            was, now = self.before.operators.get(op, 0), self.after.operators.get(op, 0)
            if was != now:
                lines.append(f"| {op} | {was} | {now} |")
        lines += ["", "## Passes", "", "| pass | ms | rewrites | declined |", "| --- | ---: | ---: | ---: |"]
        lines += [
            f"| {e.text} | {e.milliseconds:.1f} | {len(e.applied)} | {len(e.declined)} |" for e in self.passes
        ]
        if self.loss.outputs:
            lines += ["", f"## What was lost, {self.loss.samples}", ""]
            lines += _table(Loss.COLUMNS, self.loss.rows())
        lines += ["", *(f"Metric {text}." for text in self.loss.text())] * bool(self.loss.score)
        for blame in self.blamed:
            lines += [
                "",
                f"**Left out:** rewrite {blame.number}, {blame.pass_name} at {blame.where}: {blame.reason}",
            ]
        if self.trials:
            lines += ["", "| tried | ratio | 95 % | |", "| --- | ---: | --- | --- |"]
            lines += [
                f"| {t.what} | {t.ratio:.3f} | {t.low:.3f} … {t.high:.3f} | {'taken' if t.taken else ''} |"
                for t in self.trials
            ]
        lines += ["", *(f"- {remark}" for remark in self.remarks)] if self.remarks else []
        for entry in self.passes:
            if entry.applied or entry.declined or entry.rolled_back or entry.notes:
                lines += ["", f"## {entry.name}", ""]
                lines += [f"Rolled back: {entry.rolled_back}", ""] if entry.rolled_back else []
                lines += [*(f"{note[:1].upper()}{note[1:]}.  " for note in entry.notes), ""] * bool(
                    entry.notes
                )
                lines += [*_table(entry.DRIFT_COLUMNS, entry.drift_rows()), ""] * bool(entry.drift)
                lines += [
                    f"- {a.number}: {a.where}{f' ({a.detail})' if a.detail else ''}" for a in entry.applied
                ]
                lines += [f"- not {d.op_type} {d.where}: {d.reason}" for d in entry.declined]
        return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
