"""The training loop: records, progress, checkpoints, stopping."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tqdm import tqdm

from fastunit.common import progress, waiting
from fastunit.common.errors import DataError, StorageError, TrainingDiverged
from fastunit.report.metrics import Metrics
from fastunit.training import checkpoint
from fastunit.training.loss_monitor import LossMonitor, Record
from fastunit.training.objective import Losses
from fastunit.training.stopping import Stop

# Called with an iteration and its losses; returning True stops the run.
Callback = Callable[[int, dict[str, float]], bool | None]

CHECK_EVERY = 100  # iterations between checks for NaN if losses are logged less often
RETRY = 60.0  # seconds until a checkpoint that could not be written is tried again
_logger = logging.getLogger(__name__)


class Trained(Protocol):
    """What a loop trains and saves."""

    spent: dict[str, float]  # "seconds" and "loop_seconds", by all processes of the run

    @property
    def iteration(self) -> int: ...
    def save(self, run_dir: Path) -> Path: ...


S = TypeVar("S", bound=Trained)


class Loop(ABC, Generic[S]):
    """Drives what is trained to its last iteration and keeps the run's folder.

    A subclass says what an iteration trains on and what is measured.

    Args:
        state: what is trained; it may have iterations behind it.
        schedule: when checkpoints are written and which are kept.
        total: the last iteration.
        run_dir: the run's folder.
        started: the time.perf_counter() at which the run began.
        callback: takes the losses of every record.
    """

    title = "training"  # of the progress bar

    def __init__(
        self,
        state: S,
        schedule: checkpoint.Schedule,
        total: int,
        run_dir: Path,
        started: float,
        callback: Callback | None = None,
    ) -> None:
        self.state, self._schedule, self._total = state, schedule, total
        self.run_dir, self._started, self._callback = run_dir, started, callback
        self._earlier = dict(state.spent)
        self._loop_started = started
        self._monitor = LossMonitor()
        # A new run saves even iteration 0 when it is stopped, so that it can be resumed.
        self._saved = state.iteration if state.iteration else -1
        self._saved_at, self._retry_at = time.monotonic(), math.inf
        self._enough = False  # a subclass sets it to end training before the last iteration

    @abstractmethod
    def _advance(self) -> Losses:
        """Make one iteration on the next batches; return its losses."""

    @abstractmethod
    def _measure(self) -> dict[str, float] | None:
        """Return what joins the losses in a record of this iteration; None: there is no record."""

    @abstractmethod
    def _postfix(self, values: dict[str, float]) -> str:
        """Return what the progress bar shows of a record."""

    def _showing(self, metrics: Metrics) -> AbstractContextManager[None]:
        """Return a context for all iterations."""
        return nullcontext()

    def _after_iteration(self, metrics: Metrics) -> None:
        """Do what else is due after an iteration."""

    def run(self, stop: Stop) -> bool:
        """Train up to the last iteration, or until it is enough; returns False if it was stopped.

        A checkpoint of the iteration reached is written in both cases, and before a data or disk
        error propagates.

        Raises:
            TrainingDiverged: a loss or weight is not finite; earlier checkpoints are kept.
            StorageError: a checkpoint cannot be written; the message names the last good one.
        """
        stop.graceful = True
        try:
            self._run(stop)
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}; {_last_good(self.run_dir)}") from error
        finally:
            stop.graceful = False
        done = self._enough or self.state.iteration >= self._total
        return stop.signal is None and done

    def seconds(self) -> float:
        """Return how long the run has taken so far, its earlier parts included."""
        return self._earlier["seconds"] + time.perf_counter() - self._started

    def _run(self, stop: Stop) -> None:
        first = self.state.iteration
        with (
            Metrics(self.run_dir, resume_from=first or None) as metrics,
            self._showing(metrics),
            progress.bar(total=self._total, initial=first, unit="it", desc=self.title) as bar,
        ):

            def report(records: list[Record]) -> None:
                for iteration, values in records:
                    metrics.write(iteration, values)
                    bar.set_postfix_str(self._postfix(values), refresh=False)
                    if self._callback is not None and self._callback(iteration, dict(values)):
                        stop.asked = True

            try:
                self._iterate(stop, report, metrics, bar)
            except (DataError, OSError):
                self._monitor.drain()
                self._save()
                raise
            report(self._monitor.drain())
            self._save()
            waiting.progress()

    def _iterate(
        self, stop: Stop, report: Callable[[list[Record]], None], metrics: Metrics, bar: tqdm
    ) -> None:
        self._loop_started = time.perf_counter()
        with suppress(waiting.Interrupted):  # while waiting for files: `stop` is set
            while self.state.iteration < self._total and not stop and not self._enough:
                with waiting.on(lambda: "the training step", interrupt=False):
                    losses = self._advance()
                waiting.progress()
                self._monitor.add(self.state.iteration, losses)
                bar.update()
                report(self._read_losses())
                if self._due(self._schedule.snapshot_save_iter) or self._overdue():
                    report(self._monitor.drain())
                    self._save(final=False)
                self._after_iteration(metrics)

    def _overdue(self) -> bool:
        """Return whether the last checkpoint is old, or one that failed is to be tried again."""
        now, minutes = time.monotonic(), self._schedule.checkpoint.minutes
        return now > self._retry_at or bool(minutes and now > self._saved_at + 60 * minutes)

    def _due(self, every: int) -> bool:
        return self.state.iteration % every == 0

    def _read_losses(self) -> list[Record]:
        measured = self._measure()
        if measured is not None or self._due(CHECK_EVERY):
            return self._monitor.flush(measured)
        return []

    def _save(self, final: bool = True) -> None:
        """Write a checkpoint unless this iteration has one; `drain` has checked the losses.

        Where it cannot be written, `checkpoint.on_save_error` decides: "stop" raises StorageError;
        "retry" warns and tries again later, `final` ones until a signal comes.
        """
        state = self.state
        if state.iteration <= self._saved:
            return
        loop_seconds = self._earlier["loop_seconds"] + time.perf_counter() - self._loop_started
        state.spent = {"seconds": self.seconds(), "loop_seconds": loop_seconds}
        while True:
            try:
                with waiting.on(self._saving, interrupt=False):
                    state.save(self.run_dir)
                break
            except StorageError as error:
                told = self._refused(error)
                _logger.warning("%s; trying again in %.0f s", told, RETRY)
                self._retry_at = self._saved_at = time.monotonic() + RETRY
                if not final:
                    return
                try:
                    with waiting.on(self._saving):
                        time.sleep(RETRY)
                except waiting.Interrupted:
                    raise told from error
        checkpoint.prune(self.run_dir, self._schedule, state.iteration)
        self._saved, self._saved_at, self._retry_at = state.iteration, time.monotonic(), math.inf
        waiting.progress()

    def _refused(self, error: StorageError) -> StorageError:
        """Return an error that names the last good checkpoint; raise it if it ends the run."""
        told = StorageError(f"{error}; {_last_good(self.run_dir)}")
        if self._schedule.checkpoint.on_save_error == "stop":
            raise told from error
        return told

    def _saving(self) -> str:
        return f"the disk: writing {checkpoint.path_of(self.run_dir, self.state.iteration)}"


def _last_good(folder: Path) -> str:
    kept = checkpoint.iterations(folder)
    if not kept:
        return "no checkpoint had been saved before"
    return f"the last good checkpoint is {checkpoint.path_of(folder, kept[-1])}"
