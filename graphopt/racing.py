"""Time executables in turns, and judge which is faster only where that is sure.

What makes a naive comparison wrong, and what is done about it:

- **The machine drifts** (other programs, heat). Candidates take turns, in a new order each round, and are compared
  within rounds: the ratio is the median of the rounds' ratios.
- **First runs are slow.** Each candidate runs until its time no longer falls before anything is counted.
- **A turn starts with the caches full of another candidate.** A turn is a burst of runs, the first of which does not
  count where more than two fit.
- **Idle threads of one candidate steal the processor from the next,** and the system may put the threads of one on a
  busier core than another's. The backend stops them from spinning, and gives each a core.
- **Noise looks like speed.** The ratio has a 95 % bootstrap interval. The verdict is that there is no significant
  difference where it contains 1, where the ratio is within 1 % of it, or where a coin could favour one side in as many
  rounds. The interval alone is too sure on a busy machine: in a simulation it told equals apart in one case of eight
  at 7 rounds and of ten at 20; with the coin, in one of 40 at most.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .context import Progress, silent
from .model.cloning import collector_paused

if TYPE_CHECKING:
    from .interfaces import Executable

Array = np.ndarray[Any, Any]

BURST_SECONDS = 0.03
"""A turn lasts at least so long, in whole runs."""
WARM_UP_SHARE = 0.3
"""Of the time to spend: what warming up may take at most."""
STEADY = 0.02
"""Warm-up ends when the best of the last three turns is not by more than this better than the best before."""
MIN_ROUNDS, MAX_ROUNDS = 7, 1000
NARROW = 0.005
"""Enough rounds: every interval reaches no farther than this from its ratio."""
CHECK_EVERY = 20
"""Rounds between looks at how narrow the intervals are."""
NEGLIGIBLE = 0.01
"""A ratio this close to 1 is no difference, however sure."""
RESOLUTION_SECONDS = 2e-7
"""A difference below this is where a session's memory happens to lie: equals of 4 µs differed by 0.06 µs."""
CHANCE = 0.025
"""What a difference may owe to chance by the sign test, which assumes nothing of how the noise is distributed."""
RESAMPLES = 2000
FASTER, SLOWER, SAME = "faster", "slower", "no significant difference"


@dataclass(frozen=True)
class Timing:
    """How long one candidate takes."""

    name: str
    median_ms: float
    """Of one run."""
    spread: float
    """Interquartile range, as a share of the median."""
    ratio: float
    """Median over the rounds of this one's time over the first one's: below 1 is faster."""
    low: float
    """Lower end of the ratio's 95 % interval."""
    high: float
    verdict: str
    """``faster``, ``slower`` or ``no significant difference``; empty for the first."""


def race(
    executables: Sequence[Executable],
    *,
    seconds: float,
    seed: int = 0,
    progress: Progress = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> Array:
    """Run bound executables in turn; return the seconds that one run took, (rounds, executables)."""
    end = clock() + seconds
    order = np.random.default_rng(seed)
    times: list[list[float]] = []
    with collector_paused():
        bursts = [
            _warm_up(executable, seconds * WARM_UP_SHARE / len(executables), clock)
            for executable in executables
        ]
        while not _enough(times, clock() >= end, seed):
            row = [0.0] * len(executables)
            for i in order.permutation(len(executables)):
                row[i] = _turn(executables[i], bursts[i], clock)
            times.append(row)
            left = max(0.0, end - clock())
            progress("measuring", round(100 * (seconds - left) / seconds), 100)
    return np.array(times)


def _warm_up(executable: Executable, seconds: float, clock: Callable[[], float]) -> int:
    """Run until the time no longer falls, for no longer than ``seconds``; return how many runs make a turn."""
    start = clock()
    executable.step()
    turns: list[float] = []
    burst = 1
    while True:
        turns.append(_turn(executable, burst, clock))
        burst = max(1, round(BURST_SECONDS / max(min(turns), 1e-9)))
        if len(turns) > 3 and min(turns[-3:]) >= (1 - STEADY) * min(turns[:-3]):
            return burst
        if clock() - start > seconds:
            return burst


def _turn(executable: Executable, runs: int, clock: Callable[[], float]) -> float:
    """Return the seconds of one run, the median of a burst; of three and more the first does not count."""
    spent = []
    for _ in range(runs):
        start = clock()
        executable.step()
        spent.append(clock() - start)
    return statistics.median(spent[1:] if runs > 2 else spent)


def _enough(times: Sequence[Sequence[float]], late: bool, seed: int) -> bool:
    rounds = len(times)
    if rounds < MIN_ROUNDS:
        return False
    if late or rounds >= MAX_ROUNDS:
        return True
    if rounds % CHECK_EVERY:
        return False
    return all(
        max(high - ratio, ratio - low) <= NARROW for ratio, low, high in _ratios(np.array(times), seed)
    )


def judge(names: Sequence[str], times: Array, seed: int = 0) -> list[Timing]:
    """Return what the times of a race say, (rounds, candidates): the first against each other one."""
    lower, median, upper = np.quantile(times, [0.25, 0.5, 0.75], axis=0)
    timings = []
    for i, (ratio, low, high) in enumerate(_ratios(times, seed)):
        called = verdict(ratio, low, high, _chance(times[:, i] / times[:, 0])) if i else ""
        if i and abs(median[i] - median[0]) < RESOLUTION_SECONDS:
            called = SAME
        spread = float((upper[i] - lower[i]) / median[i])
        timings.append(Timing(names[i], float(1000 * median[i]), spread, ratio, low, high, called))
    return timings


def _ratios(times: Array, seed: int) -> list[tuple[float, float, float]]:
    """Return each candidate's ratio to the first: the median over the rounds, and its 95 % bootstrap interval.

    A resample draws stretches of rounds, as long as the root of their number: what one round shares stays paired, and
    what disturbs several rounds in a row counts as one disturbance.
    """
    paired, rounds = times / times[:, :1], len(times)
    length = math.isqrt(rounds)
    starts = np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, -(-rounds // length), 1))
    drawn = ((starts + np.arange(length)) % rounds).reshape(RESAMPLES, -1)[:, :rounds]
    found = []
    for ratios in paired.T:
        low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
        found.append((float(np.median(ratios)), float(low), float(high)))
    return found


def _chance(ratios: Array) -> float:
    """Return the probability that a coin favours one side, either, in as many rounds.

    Where there are rounds enough, in stretches of rounds, of which each has the vote of its median.
    """
    stretches = len(ratios) // math.isqrt(len(ratios))
    if stretches >= MIN_ROUNDS:
        ratios = np.array([np.median(part) for part in np.array_split(ratios, stretches)])
    won, lost = int((ratios < 1).sum()), int((ratios > 1).sum())
    tails = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1))
    return float(min(1.0, tails / 2 ** (won + lost - 1)))


def verdict(ratio: float, low: float, high: float, chance: float) -> str:
    """Say whether there is a difference: only where all doubts are met."""
    if low <= 1 <= high or abs(ratio - 1) <= NEGLIGIBLE or chance > CHANCE:
        return SAME
    return FASTER if ratio < 1 else SLOWER
