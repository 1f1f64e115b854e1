"""Keep what measures no slower: families of fusions, and the settings that the target runs the result with.

``speed{measured=true}`` asks for it. Each family of passes that did something is left out once; where the model then
measures faster, it stays out. Then the result races against itself under each choice of settings that the target
offers, and the fastest one that is significantly faster than the default is noted in the model's metadata, where the
target finds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .context import Feeds, Progress
from .measuring import measure
from .model import clone
from .report import Trial
from .settings import note

if TYPE_CHECKING:
    import onnx_ir as ir

    from .interfaces import Backend
    from .racing import Timing

SECONDS = 4.0
"""To spend on one comparison."""


class Tuner:
    """Races alternatives of one model on one target."""

    def __init__(self, target: Backend, feed: Feeds, seed: int, progress: Progress) -> None:
        self.target, self.feed, self.seed, self.progress = target, feed, seed, progress
        self.trials: list[Trial] = []

    def faster(self, what: str, before: ir.Model, after: ir.Model) -> bool:
        """Return whether ``after`` is significantly faster than ``before``."""
        timing = self._race([before, after], ["before", what])[1]
        return self._record(what, timing, timing.verdict == "faster")

    def settings(self, model: ir.Model) -> None:
        """Note the settings under which ``model`` is fastest in its metadata, if they are not the default ones."""
        choices = list(self.target.choices())
        if not choices:
            return
        variants = [model, *(_with(model, self.target, choice) for choice in choices)]
        race = self._race(variants, ["default", *map(_text, choices)])
        best = min(race[1:], key=lambda timing: timing.ratio)
        for choice, timing in zip(choices, race[1:], strict=True):
            if self._record(f"settings {timing.name}", timing, timing is best and timing.verdict == "faster"):
                note(model, self.target.name, choice)

    def _race(self, models: Sequence[ir.Model], names: Sequence[str]) -> Sequence[Timing]:
        seconds = SECONDS * len(models) / 2
        return measure(
            list(models),
            self.feed,
            self.target,
            names=names,
            seconds=seconds,
            seed=self.seed,
            progress=self.progress,
        ).timings

    def _record(self, what: str, timing: Timing, taken: bool) -> bool:
        self.trials.append(Trial(what, timing.ratio, timing.low, timing.high, taken))
        return taken


def _with(model: ir.Model, target: Backend, settings: Mapping[str, Any]) -> ir.Model:
    variant = clone(model)
    note(variant, target.name, settings)
    return variant


def _text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())
