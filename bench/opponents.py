"""Implementations of a task against each other, each in a process of its own.

They take turns, so that whatever slows the machine slows all; pytest-benchmark's own table shows
the turns of the first. extra_info has for each the milliseconds of a run, images/s and peak
memory, and, for instance, "baseline_ratio": how many times as long as the first's turn the
baseline's of the same round took; the median. Under "opponents" it lists the names, the first's
first. In place of its times an opponent that could not be timed has the reason as a text.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch

from bench import worker
from bench.worker import GPU, Worker
from fastunit.config import Config

TURN_SECONDS = 0.1  # a turn is so many runs of the quickest; slower ones take longer
WARM_UP = 5 if GPU else 1  # runs: ours is captured as a CUDA graph by then
FEWEST, MOST = 3, 15  # rounds


class Opponent(NamedTuple):
    """An implementation that `worker.begin` knows, its configuration, the savings it lacks."""

    implementation: str
    settings: Config
    without: tuple[str, ...] = ()


def compare(
    benchmark: Any,
    task: str,
    opponents: Mapping[str, Opponent],
    images: int,
    *,
    seconds: float = 25,
    patience: float | None = None,
    together: bool = False,
) -> None:
    """Time a task of `worker.TASKS` as each opponent does it.

    Args:
        benchmark: pytest-benchmark's fixture; its extra_info is filled.
        opponents: by the names for the report; the first one is ours.
        images: of a run, of both domains.
        seconds: for the rounds, within `FEWEST` and `MOST`.
        patience: seconds for the warm-up of each but the first; slower ones are left out.
        together: warm all but the first up at the same time. Compiling is quicker so, but what is
            chosen by timing, such as cuDNN's kernels, may be chosen worse.
    """
    names = list(opponents)
    first = names[0]
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker()) for name in names}
        left_out = _warm_up(workers, task, opponents, patience, together)
        pace = {name: process.call(worker.seconds, 1) for name, process in workers.items()}
        count = max(1, round(TURN_SECONDS / min(pace.values())))
        turns: dict[str, list[float]] = {name: [] for name in workers}

        def turn(*names: str) -> None:
            for name in names:
                turns[name].append(workers[name].call(worker.seconds, count) / count)

        benchmark.pedantic(
            turn,
            args=(first,),
            setup=lambda: turn(*(name for name in turns if name != first)),
            rounds=min(max(round(seconds / count / sum(pace.values())), FEWEST), MOST),
        )
        peaks = {name: process.call(worker.peak_mib) for name, process in workers.items()}
    facts = benchmark.extra_info
    facts["opponents"] = names
    facts.update(left_out)
    facts.update(summary(turns, peaks, first, images))
    facts["images_per_s"] = facts[first]["images_per_s"]


def _warm_up(
    workers: dict[str, Worker],
    task: str,
    opponents: Mapping[str, Opponent],
    patience: float | None,
    together: bool,
) -> dict[str, str]:
    """Run each opponent's first runs; remove those that cannot, and return why, by name."""
    first, *others = opponents
    left_out = {}
    for names in [[first], others] if together else [[name] for name in opponents]:
        for name in names:
            workers[name].ask(worker.begin, task, *opponents[name], WARM_UP)
        for name in names:
            try:
                workers[name].answer(None if name == first else patience)
            except (RuntimeError, TimeoutError) as error:  # RuntimeError: out of memory, too
                if name == first:
                    raise
                workers.pop(name).stop()  # leave its memory to the others
                left_out[name] = _reason(error)
                warnings.warn(f"{name} is left out: {error}", stacklevel=1)
    return left_out


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return "out of time" if isinstance(error, TimeoutError) else "failed"


def summary(
    turns: Mapping[str, Sequence[float]],
    peaks: Mapping[str, float | None],
    first: str,
    images: int,
) -> dict[str, Any]:
    """Return the facts of all opponents from the seconds of their runs, round by round."""
    facts: dict[str, Any] = {}
    for name, times in turns.items():
        low, median, high = 1e3 * np.percentile(times, (20, 50, 80))
        found = {"p20_ms": low, "median_ms": median, "p80_ms": high}
        found["images_per_s"] = 1e3 * images / median
        facts[name] = {key: round(float(value), 3) for key, value in found.items()}
        facts[name]["peak_mib"] = peaks[name]
        if name != first:
            ratios = np.divide(times, turns[first])
            facts[f"{name}_ratio"] = round(float(np.median(ratios)), 3)
    return facts
