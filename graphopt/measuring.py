"""The one way to time anything: models side by side on one target, and the nodes of each.

How the timing is done and judged is in :mod:`graphopt.racing`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .context import Feeds, Progress, silent
from .errors import InputError, ModelError, UsageError
from .racing import Timing, judge, race

if TYPE_CHECKING:
    import onnx_ir as ir

    from .interfaces import Backend, Executable


@dataclass(frozen=True)
class Measurement(Sequence[Timing]):
    """What was measured: one timing a candidate, the first of which the others are compared with."""

    timings: tuple[Timing, ...]
    target: str
    facts: Mapping[str, str]
    """Of the target: version, device."""
    inputs: Mapping[str, str]
    """Type and shape of each input."""
    rounds: int
    seconds: float
    """What measuring took, warm-up included."""

    COLUMNS = ("model", "median ms", "spread", "ratio", "95 % interval", "verdict")

    def __getitem__(self, index: Any) -> Any:
        return self.timings[index]

    def __len__(self) -> int:
        return len(self.timings)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield a row of text a candidate, under :attr:`COLUMNS`."""
        for i, t in enumerate(self.timings):
            compared = (f"{t.ratio:.3f}", f"{t.low:.3f} … {t.high:.3f}", t.verdict) if i else ("", "", "")
            yield (t.name, f"{t.median_ms:.3f}", f"{100 * t.spread:.1f} %", *compared)

    def __str__(self) -> str:
        table = [self.COLUMNS, *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.COLUMNS))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as plain data."""
        return asdict(self)


def measure(
    models: object,
    inputs: Feeds | Sequence[Feeds] | None = None,
    target: str | Backend = "onnxruntime:cpu",
    *,
    names: Sequence[str] | None = None,
    seconds: float = 10.0,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **settings: Any,
) -> Measurement:
    """Time ``models`` side by side on one target.

    Args:
        models: a list of sources as :func:`graphopt.optimize` takes them, or one; the first is what the others are
            compared with.
        inputs: by name; the first where there are several, drawn where not given.
        target: see ``graphopt backends``.
        names: what to call the models.
        seconds: time to spend in all; less where the intervals are narrow before, more where it does not suffice
            for seven rounds.
        threads: of one operator; all cores where not given.
        seed: of the order, the resampling and what is drawn.
        progress: called with (what, done, total).
        settings: further ones for the backend.

    Raises:
        UsageError: a model cannot be read, two models have different inputs, or the inputs do not fit.
        UnavailableError: the target cannot be used here.
    """
    if not seconds > 0:
        raise UsageError(f"the time to measure for must be positive, got {seconds!r} seconds")
    start = time.perf_counter()
    field = _Field(models, target, names, threads, settings, progress)
    with field.compiled() as executables:
        feed = field.feed(executables, inputs, seed)
        for executable in executables:
            executable.bind(feed)
        times = race(executables, seconds=seconds, seed=seed, progress=progress)
    return Measurement(
        timings=tuple(judge(field.titles, times, seed)),
        target=field.backend.name,
        facts=dict(field.backend.describe()),
        inputs={name: _kind(array) for name, array in feed.items()},
        rounds=len(times),
        seconds=round(time.perf_counter() - start, 3),
    )


class _Field:
    """The candidates, read and named, and what they run on."""

    def __init__(
        self,
        models: object,
        target: str | Backend,
        names: Sequence[str] | None,
        threads: int | None,
        settings: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        from . import frontends, plugins

        sources = list(models) if isinstance(models, (list, tuple)) else [models]
        if not sources:
            raise UsageError("there is no model to measure, got []; name one or more")
        self.backend = plugins.get_backend(target) if isinstance(target, str) else target
        self.titles = list(names) if names is not None else _titles(sources)
        if len(self.titles) != len(sources):
            raise UsageError(
                f"there are {len(sources)} models, but {len(self.titles)} names: {self.titles!r}"
            )
        self.settings = {**settings, **({"threads": threads} if threads is not None else {})}
        self.progress = progress
        self.models: list[ir.Model] = []
        for title, source in zip(self.titles, sources, strict=True):
            progress(f"reading {title}", 0, 0)
            self.models.append(frontends.read(source))
        _same_inputs(self.titles, self.models)

    @contextmanager
    def compiled(self) -> Iterator[list[Executable]]:
        """Compile every candidate; close them all in the end."""
        executables: list[Executable] = []
        try:
            for title, model in zip(self.titles, self.models, strict=True):
                self.progress(f"compiling {title}", 0, 0)
                executables.append(self.backend.compile(model, **self.settings))
            yield executables
        finally:
            for executable in executables:
                executable.close()

    def feed(
        self, executables: Sequence[Executable], inputs: Feeds | Sequence[Feeds] | None, seed: int
    ) -> Feeds:
        """Return the inputs to run on: given ones that fit every model, or drawn ones that every model runs on."""
        from . import samples

        if inputs is not None:
            first, *_ = [samples.check(model, inputs)[0] for model in self.models]
            return _present(first)
        reason = ""
        for feed in map(_present, samples.candidates(self.models[0], seed)):
            refused = [
                refusal
                for title, executable in zip(self.titles, executables, strict=True)
                if (refusal := _refusal(title, executable, feed))
            ]
            if not refused:
                return feed
            reason = reason or refused[0]
        raise InputError(f"no drawn inputs suit {', '.join(self.titles)}; give inputs; {reason}")


def _refusal(title: str, executable: Executable, feed: Feeds) -> str:
    """Return why ``executable`` does not run on ``feed``, ``""`` where it does."""
    try:
        executable.run(feed)
    except (InputError, ModelError) as error:
        return f"{title}: {error}"
    return ""


@dataclass(frozen=True)
class NodeShare:
    """What one node takes of a run."""

    node: str
    """Of the model; as the runtime calls it, where it made one."""
    op_type: str
    scope: str
    """The torch module that it came from, where that is known."""
    provider: str
    milliseconds: float
    share: float
    """Of the time of all nodes."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def profile(
    models: object,
    inputs: Feeds | Sequence[Feeds] | None = None,
    target: str | Backend = "onnxruntime:cpu",
    *,
    runs: int = 20,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **settings: Any,
) -> dict[str, list[NodeShare]]:
    """Return for each model what its nodes take, in the order of execution; arguments as of :func:`measure`."""
    from .interfaces import place
    from .origin import scope
    from .query import all_nodes

    field = _Field(models, target, None, threads, settings, progress)
    with field.compiled() as executables:
        feed = field.feed(executables, inputs, seed)
    found = {}
    for title, model in zip(field.titles, field.models, strict=True):
        progress(f"profiling {title}", 0, 0)
        times = field.backend.profile(model, feed, runs, **field.settings)
        total = sum(each.milliseconds for each in times) or 1.0
        scopes = {place(node): scope(node) for node in all_nodes(model)}
        found[title] = [
            NodeShare(
                each.node,
                each.op_type,
                scopes.get(each.node, ""),
                each.provider,
                each.milliseconds,
                each.milliseconds / total,
            )
            for each in times
        ]
    return found


def _titles(sources: Sequence[object]) -> list[str]:
    """Return a name for each source: its path, or what it is; numbered where two have the same."""
    named = [str(s) if isinstance(s, (str, Path)) else type(s).__name__ for s in sources]
    seen: Counter[str] = Counter()
    titles = []
    for name in named:
        seen[name] += 1
        titles.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return titles


def _same_inputs(titles: Sequence[str], models: Sequence[ir.Model]) -> None:
    from . import samples

    asked = [sorted(value.name or "" for value in samples.inputs(model)) for model in models]
    for title, names in zip(titles, asked, strict=True):
        if names != asked[0]:
            raise InputError(
                f"{title}: its inputs are {', '.join(names) or 'none'}, those of {titles[0]} are "
                f"{', '.join(asked[0]) or 'none'}; only models with the same inputs can be compared"
            )


def _present(feed: Feeds) -> Feeds:
    """Return ``feed`` without the optional inputs that are absent."""
    return {name: given for name, given in feed.items() if given is not None}


def _kind(array: Any) -> str:
    found = np.asarray(array)
    return f"{found.dtype}[{','.join(map(str, found.shape))}]"
