"""Implementations of a task against each other, each in a process of its own.

The first, ours, meets the others one after the other, so that there are never more than two
processes; each is begun when its turn comes and ended after it. The two take turns, so that
whatever slows the machine slows both. pytest-benchmark's own table shows the turns of the first
against its first opponent.

extra_info has for each the milliseconds of a run, images/s and peak memory, and, for instance,
"baseline_ratio": how many times as long as the first's turn the baseline's of the same round took;
the median, with the 20th and 80th percentiles in "baseline_spread". Under "opponents" it lists the
names, the first's first. In place of its times an opponent that could not be timed has the reason
as a text.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from bench.step import tasks
from bench.step.tasks import GPU
from bench.step.worker import LIMIT, Worker, WorkerError, WorkerOutOfMemory, WorkerTimeout
from fastunit.config import Config

TURN_SECONDS = 0.1 if GPU else 0.5  # a turn is so many runs of the quicker; the slower's is longer
WARM_UP = 5 if GPU else 1  # runs: ours is captured as a CUDA graph by then
FEWEST, MOST = 3, 15  # rounds
COMPILING_LIMIT = 1800.0  # seconds

Round = Mapping[str, float]  # an implementation's name: seconds of a run


class Contender(NamedTuple):
    """An implementation that `tasks.begin` knows, its configuration, the savings it lacks."""

    implementation: str
    settings: Config
    without: tuple[str, ...] = ()

    def tiny(self) -> Contender:
        """Return the same with networks that take no time: does it run, not how fast."""
        replace, settings = dataclasses.replace, self.settings
        gen = replace(settings.gen, dim=4, n_res=1)
        dis = replace(settings.dis, dim=4, n_layer=2, num_scales=1)
        return self._replace(settings=replace(settings, gen=gen, dis=dis))


def compare(
    benchmark: Any,
    task: str,
    opponents: Mapping[str, Contender],
    images: int,
    *,
    seconds: float = 25,
    patience: float | None = None,
    together: bool = False,
) -> None:
    """Time a task of `tasks.TASKS` as each opponent does it.

    Args:
        benchmark: pytest-benchmark's fixture; its extra_info is filled.
        opponents: by the names for the report; the first one is ours.
        images: of a run, of both domains.
        seconds: for all rounds, within `FEWEST` and `MOST` of each pair.
        patience: seconds for the warm-up of each but the first; slower ones are left out.
        together: begin all but the first at the same time, and let all take turns. For a GPU,
            where opponents compile for long; on a CPU that is a gigabyte for each.

    Raises WorkerError where one fails otherwise than by the GPU's memory or `patience`, the others
    being timed first; or where one fails in its turn.
    """
    first, *others = opponents
    groups = [others] if together else [[name] for name in others]
    rounds: list[dict[str, float]] = []
    peaks: dict[str, float | None] = {}
    failures: dict[str, WorkerError] = {}
    run = benchmark.pedantic
    try:
        with Worker() as ours:
            _begin({first: ours}, task, opponents, None)
            for names in groups:
                with ExitStack() as stack:
                    workers = {name: stack.enter_context(Worker()) for name in names}
                    failed = _begin(workers, task, opponents, patience)
                    failures |= failed
                    workers = {first: ours} | {n: workers[n] for n in names if n not in failed}
                    if len(workers) > 1:
                        rounds += _take_turns(workers, seconds / len(groups), run)
                        run = _repeat
                        peaks |= {name: w.call(tasks.peak_mib) for name, w in workers.items()}
            if not rounds:
                rounds += _take_turns({first: ours}, seconds, run)
                peaks[first] = ours.call(tasks.peak_mib)
    finally:
        if rounds:
            facts = benchmark.extra_info
            facts["opponents"] = list(opponents)
            facts.update({name: _reason(error, patience) for name, error in failures.items()})
            facts.update(summary(rounds, peaks, first, images))
            facts["images_per_s"] = facts[first]["images_per_s"]
    for name, error in failures.items():
        if _reason(error, patience) == "failed":
            raise WorkerError(f"{name}: {error}") from error
        warnings.warn(f"{name} is left out: {error}", stacklevel=1)


def _begin(
    workers: Mapping[str, Worker],
    task: str,
    opponents: Mapping[str, Contender],
    patience: float | None,
) -> dict[str, WorkerError]:
    """Let all warm up at the same time; end those that cannot, and return why, by name."""
    failures = {}
    for name, worker in workers.items():
        worker.ask(tasks.begin, task, *opponents[name], WARM_UP)
    for name, worker in workers.items():
        compiles = GPU or opponents[name].implementation == "strongest"
        try:
            worker.answer(patience or (COMPILING_LIMIT if compiles else LIMIT))
        except WorkerError as error:
            if name == next(iter(opponents)):
                raise
            worker.stop()  # leave its memory to the others
            failures[name] = error
    return failures


def _reason(error: WorkerError, patience: float | None) -> str:
    if isinstance(error, WorkerOutOfMemory):
        return "out of memory"
    return "out of time" if isinstance(error, WorkerTimeout) and patience else "failed"


def _take_turns(
    workers: Mapping[str, Worker], seconds: float, run: Callable[..., None]
) -> list[dict[str, float]]:
    """Return the rounds of all workers, the first one's turn the last; `run` repeats it."""
    first, *others = workers
    pace = {name: worker.call(tasks.seconds, 1) for name, worker in workers.items()}
    count = max(1, round(TURN_SECONDS / min(pace.values())))
    rounds: list[dict[str, float]] = []

    def turn(*names: str) -> None:
        for name in names:
            rounds[-1][name] = workers[name].call(tasks.seconds, count) / count

    def setup() -> None:
        rounds.append({})
        turn(*others)

    number = round(seconds / count / sum(pace.values()))
    run(turn, args=(first,), setup=setup, rounds=min(max(number, FEWEST), MOST))
    return rounds


def _repeat(turn: Callable, *, args: Sequence[str], setup: Callable, rounds: int) -> None:
    """Do what pytest-benchmark's `pedantic` does, which can be called only once."""
    for _ in range(rounds):
        setup()
        turn(*args)


def summary(
    rounds: Sequence[Round], peaks: Mapping[str, float | None], first: str, images: int
) -> dict[str, Any]:
    """Return the facts of all opponents from the seconds of their runs, round by round."""
    facts: dict[str, Any] = {}
    for name in dict.fromkeys(name for found in rounds for name in found):
        of_name = [found for found in rounds if name in found]
        low, median, high = 1e3 * np.percentile([found[name] for found in of_name], (20, 50, 80))
        found = {"p20_ms": low, "median_ms": median, "p80_ms": high}
        found["images_per_s"] = 1e3 * images / median
        facts[name] = {key: round(float(value), 3) for key, value in found.items()}
        facts[name]["peak_mib"] = peaks.get(name)
        if name != first:
            ratios = [found[name] / found[first] for found in of_name]
            low, median, high = (float(x) for x in np.percentile(ratios, (20, 50, 80)))
            facts[f"{name}_ratio"] = round(median, 3)
            facts[f"{name}_spread"] = [round(low, 3), round(high, 3)]
    return facts
