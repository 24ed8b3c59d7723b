"""Comparison of implementations of a task (contenders), each in its own process.

The first contender, fastunit, is compared with the others one after the other, so that there are
never more than two processes; each process is started for its comparison and ended after it. The
two take turns, so that whatever slows the machine slows both. pytest-benchmark's own table shows
the first contender's turns in the first comparison.

extra_info has for each contender the milliseconds of a run, images/s and peak memory. Ratios such
as "baseline_ratio" are the baseline's time divided by the first contender's in the same round: the
median, with the 20th and 80th percentiles in "baseline_spread". The names are under "opponents" (a
key that results of earlier runs have too), fastunit's first. A contender that could not be timed
has the reason, a string, in place of its times.
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

TURN_SECONDS = 0.1 if GPU else 0.5  # of the faster contender; the slower runs as often
WARM_UP = 5 if GPU else 1  # runs; by then fastunit's step is captured as a CUDA graph
FEWEST, MOST = 3, 15  # rounds
COMPILING_LIMIT = 1800.0  # seconds

Round = Mapping[str, float]  # an implementation's name: seconds of a run


class Contender(NamedTuple):
    """An implementation known to `tasks.begin`, its configuration, and changes by ablations.py."""

    implementation: str
    settings: Config
    without: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def tiny(self) -> Contender:
        """Return the same with tiny networks, to check that it runs."""
        replace, settings = dataclasses.replace, self.settings
        gen = replace(settings.gen, dim=4, n_res=1)
        dis = replace(settings.dis, dim=4, n_layer=2, num_scales=1)
        return self._replace(settings=replace(settings, gen=gen, dis=dis))


def compare(
    benchmark: Any,
    task: str,
    contenders: Mapping[str, Contender],
    images: int,
    *,
    seconds: float = 25,
    patience: float | None = None,
    together: bool = False,
) -> None:
    """Time a task of `tasks.TASKS` for each contender.

    Args:
        benchmark: pytest-benchmark's fixture; its extra_info is filled.
        task: a key of `tasks.TASKS`.
        contenders: by their names in the report; the first one is fastunit.
        images: number of images in a run, of both domains.
        seconds: for all rounds; there are `FEWEST` to `MOST` rounds for each pair.
        patience: seconds for the warm-up of each but the first; slower ones are left out.
        together: start all but the first at the same time, and let all take turns: for a GPU,
            where contenders compile for a long time. On a CPU each would take a gigabyte.

    Raises:
        WorkerError: a contender failed during its turn, or (raised after timing the others) in its
            warm-up for a reason other than the GPU's memory or `patience`.
    """
    first, *others = contenders
    groups = [others] if together else [[name] for name in others]
    rounds: list[dict[str, float]] = []
    peaks: dict[str, float | None] = {}
    failures: dict[str, WorkerError] = {}
    run = benchmark.pedantic
    try:
        with Worker() as ours:
            _begin({first: ours}, task, contenders, None)
            for names in groups:
                with ExitStack() as stack:
                    workers = {name: stack.enter_context(Worker()) for name in names}
                    failed = _begin(workers, task, contenders, patience)
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
            facts["opponents"] = list(contenders)
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
    contenders: Mapping[str, Contender],
    patience: float | None,
) -> dict[str, WorkerError]:
    """Warm up all at the same time; end those that fail, and return their errors by name."""
    failures = {}
    for name, worker in workers.items():
        worker.ask(tasks.begin, task, *contenders[name], WARM_UP)
    for name, worker in workers.items():
        compiles = GPU or contenders[name].implementation == "strongest"
        try:
            worker.answer(patience or (COMPILING_LIMIT if compiles else LIMIT))
        except WorkerError as error:
            if name == next(iter(contenders)):
                raise
            worker.stop()  # frees its memory for the others
            failures[name] = error
    return failures


def _reason(error: WorkerError, patience: float | None) -> str:
    if isinstance(error, WorkerOutOfMemory):
        return "out of memory"
    return "out of time" if isinstance(error, WorkerTimeout) and patience else "failed"


def _take_turns(
    workers: Mapping[str, Worker], seconds: float, run: Callable[..., None]
) -> list[dict[str, float]]:
    """Return the rounds of all workers; the first worker's turn, timed by `run`, is last."""
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
    """Replace pytest-benchmark's `pedantic`, which can only be called once."""
    for _ in range(rounds):
        setup()
        turn(*args)


def summary(
    rounds: Sequence[Round], peaks: Mapping[str, float | None], first: str, images: int
) -> dict[str, Any]:
    """Return extra_info's values for all contenders from their seconds per run in each round."""
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
