"""The training loop: data, steps, progress, samples, checkpoints, stopping."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from fastunit.common import files, progress
from fastunit.common.errors import DataError
from fastunit.data.discovery import Domains
from fastunit.report import gallery
from fastunit.report.gallery import Gallery
from fastunit.report.metrics import Metrics
from fastunit.training import checkpoint, held_out
from fastunit.training.evaluate import measure
from fastunit.training.loss_monitor import LossMonitor, Record
from fastunit.training.state import TrainState

# Called with an iteration and its losses; returning True stops the run.
Callback = Callable[[int, dict[str, float]], bool | None]

CHECK_EVERY = 100  # iterations between checks for NaN if losses are logged less often


@dataclass
class Stop:
    """A request to stop, by a signal or a callback: the loop saves a checkpoint and returns."""

    signal: int | None = None
    asked: bool = False

    def __bool__(self) -> bool:
        return self.asked or self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a stop request; the second has its usual effect."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, frame: object) -> None:
        stop.signal = number  # no output here: the main thread may be writing
        restore()

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()


@dataclass
class Clock:
    """Throughput and data wait since the last `read`."""

    images: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def next_batch(self, loaders: tuple) -> tuple[Tensor, Tensor]:
        """Return the next batch of each domain, timing the wait."""
        start = time.perf_counter()
        x_a, x_b = (next(loader) for loader in loaders)
        self.waited += time.perf_counter() - start
        self.images += len(x_a) + len(x_b)
        return x_a, x_b

    def read(self) -> dict[str, float]:
        """Return images/s (both domains counted) and the share of time spent waiting for data."""
        seconds = time.perf_counter() - self.since
        rates = {"images_per_s": self.images / seconds, "data_wait": self.waited / seconds}
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()
        return rates


class Trainer:
    """Trains a `TrainState` on its data and writes the run's folder.

    `shown` holds the images of both domains for the sample grids; `started` is time.perf_counter()
    at the start of the run; `callback` receives the losses every `log_iter` iterations.
    """

    def __init__(
        self,
        state: TrainState,
        domains: Domains,
        run_dir: Path,
        shown: tuple[Tensor, Tensor],
        started: float,
        callback: Callback | None = None,
    ) -> None:
        self.state, self.config, self.run_dir = state, state.config, run_dir
        self.domains, self.shown, self.started = domains, shown, started
        self._earlier = dict(state.spent)
        self._monitor, self._callback = LossMonitor(), callback
        self._loop_started = started
        # A new run saves even iteration 0 when it is stopped, so that it can be resumed.
        self._saved = state.iteration if state.iteration else -1

    def run(self, stop: Stop) -> bool:
        """Train up to `max_iter`; returns False if it was stopped earlier.

        A checkpoint of the last iteration is written in both cases, and before a data or disk
        error propagates.

        Raises:
            TrainingDiverged: a loss or weight is not finite; earlier checkpoints are kept.
        """
        state = self.state
        loaders = state.loaders(self.domains)
        with (
            Metrics(self.run_dir, resume_from=state.iteration or None) as metrics,
            Gallery(self.run_dir, self.config, self.shown) as shows,
            progress.bar(
                total=self.config.max_iter, initial=state.iteration, unit="it", desc="training"
            ) as bar,
        ):
            shows.forget_after(state.iteration)
            if state.iteration == 0:
                shows.show(state.generator_pair, 0, keep=metrics)
            try:
                self._iterate(loaders, stop, metrics, shows, bar)
            except (DataError, OSError):
                self._monitor.drain()
                self._save()
                raise
            for record in self._monitor.drain():
                self._report(record, stop, metrics, bar)
            self._save()
        return stop.signal is None and state.iteration >= self.config.max_iter

    def finish(self, pairs: held_out.Pairs) -> dict[str, Any]:
        """Evaluate, write result.json and the page, and return the result."""
        state = self.state
        result: dict[str, Any] = {"iteration": state.iteration}
        if pairs:
            result |= measure(state.generator_pair, pairs, self.domains, self.config, state.device)
            result["pairs"] = len(pairs)
        loop_seconds = state.spent["loop_seconds"]
        images = sum(state.positions.values())
        result["images_per_s"] = images / loop_seconds if loop_seconds else 0.0
        result["seconds"] = self._earlier["seconds"] + time.perf_counter() - self.started
        files.write_json(result, self.run_dir / "result.json")
        gallery.page(self.run_dir, self.config, state.iteration, result)
        return result

    def _iterate(
        self, loaders: tuple, stop: Stop, metrics: Metrics, shows: Gallery, bar: tqdm
    ) -> None:
        state, clock = self.state, Clock()
        self._loop_started = time.perf_counter()
        while state.iteration < self.config.max_iter and not stop:
            losses = state.advance(*clock.next_batch(loaders))
            self._monitor.add(state.iteration, losses)
            bar.update()
            for record in self._read_losses(clock):
                self._report(record, stop, metrics, bar)
            if self._due("snapshot_save_iter"):
                for record in self._monitor.drain():
                    self._report(record, stop, metrics, bar)
                self._save()
            if self._due("image_save_iter"):
                shows.show(state.generator_pair, state.iteration, keep=metrics)
            elif self._due("image_display_iter"):
                shows.show(state.generator_pair, state.iteration)

    def _due(self, key: str) -> bool:
        return self.state.iteration % getattr(self.config, key) == 0

    def _read_losses(self, clock: Clock) -> list[Record]:
        if self._due("log_iter"):
            rate = {"learning_rate": self.state.step.learning_rate}
            return self._monitor.flush(rate | clock.read())
        if self.state.iteration % CHECK_EVERY == 0:
            return self._monitor.flush(None)
        return []

    def _report(self, record: Record, stop: Stop, metrics: Metrics, bar: tqdm) -> None:
        iteration, values = record
        metrics.write(iteration, values)
        bar.set_postfix_str(_postfix(values), refresh=False)
        if self._callback is not None and self._callback(iteration, dict(values)):
            stop.asked = True

    def _save(self) -> None:
        """Write a checkpoint unless this iteration has one; `drain` has checked the losses."""
        state, now = self.state, time.perf_counter()
        if state.iteration <= self._saved:
            return
        state.spent = {
            "seconds": self._earlier["seconds"] + now - self.started,
            "loop_seconds": self._earlier["loop_seconds"] + now - self._loop_started,
        }
        state.save(self.run_dir)
        checkpoint.prune(self.run_dir, self.config, state.iteration)
        self._saved = state.iteration


def _postfix(values: dict[str, float]) -> str:
    return (
        f"D {values['discriminator_total']:.3f}, G {values['generator_total']:.3f}, "
        f"{values['images_per_s']:.1f} images/s, {values['data_wait']:.0%} data wait"
    )
