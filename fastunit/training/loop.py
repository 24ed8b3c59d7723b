"""The training loop: data, step, progress, samples, checkpoints, and the ways it may end."""

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
from fastunit.training.state import Session

# Takes an iteration and its losses; True stops the run.
Callback = Callable[[int, dict[str, float]], bool | None]

CHECK_EVERY = 100  # iterations between looks for NaN when losses are logged more rarely


@dataclass
class Stop:
    """A request to stop, by a signal or a callback: the loop saves and leaves."""

    signal: int | None = None
    asked: bool = False

    def __bool__(self) -> bool:
        return self.asked or self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request; the second acts as it always does."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, frame: object) -> None:
        stop.signal = number  # no output here: the main thread may be in the middle of its own
        restore()

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()


@dataclass
class Clock:
    """Throughput since the last reading."""

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
    """Drives a session over its data and keeps the run's folder.

    `shown` are the images of both domains for the sample grids; `started` is the
    time.perf_counter() at which the run began; `callback` takes the losses at every `log_iter`.
    """

    def __init__(
        self,
        session: Session,
        domains: Domains,
        run_dir: Path,
        shown: tuple[Tensor, Tensor],
        started: float,
        callback: Callback | None = None,
    ) -> None:
        self.session, self.config, self.run_dir = session, session.config, run_dir
        self.domains, self.shown, self.started = domains, shown, started
        self._earlier = dict(session.spent)
        self._monitor, self._callback = LossMonitor(), callback
        self._loop_started = started
        # A fresh run saves even iteration 0 when it is stopped, so that it can be resumed.
        self._saved = session.iteration if session.iteration else -1

    def run(self, stop: Stop) -> bool:
        """Train up to `max_iter`; returns False when it was stopped earlier.

        A checkpoint of the last iteration is written in both cases, and before an error of the
        data or the disk leaves.

        Raises:
            TrainingDiverged: a loss or weight is not finite; the checkpoints before it stay.
        """
        session = self.session
        loaders = session.loaders(self.domains)
        with (
            Metrics(self.run_dir, resume_from=session.iteration or None) as metrics,
            Gallery(self.run_dir, self.config, self.shown) as shows,
            progress.bar(
                total=self.config.max_iter, initial=session.iteration, unit="it", desc="training"
            ) as bar,
        ):
            shows.forget_after(session.iteration)
            if session.iteration == 0:
                shows.show(session.generator_pair, 0, keep=metrics)
            try:
                self._iterate(loaders, stop, metrics, shows, bar)
            except (DataError, OSError):
                self._monitor.drain()
                self._save()
                raise
            for record in self._monitor.drain():
                self._report(record, stop, metrics, bar)
            self._save()
        return stop.signal is None and session.iteration >= self.config.max_iter

    def finish(self, pairs: held_out.Pairs) -> dict[str, Any]:
        """Measure, write result.json and the page; returns the result."""
        session = self.session
        result: dict[str, Any] = {"iteration": session.iteration}
        if pairs:
            result |= measure(
                session.generator_pair, pairs, self.domains, self.config, session.device
            )
            result["pairs"] = len(pairs)
        loop_seconds = session.spent["loop_seconds"]
        images = sum(session.positions.values())
        result["images_per_s"] = images / loop_seconds if loop_seconds else 0.0
        result["seconds"] = self._earlier["seconds"] + time.perf_counter() - self.started
        files.write_json(result, self.run_dir / "result.json")
        gallery.page(self.run_dir, self.config, session.iteration, result)
        return result

    def _iterate(
        self, loaders: tuple, stop: Stop, metrics: Metrics, shows: Gallery, bar: tqdm
    ) -> None:
        session, clock = self.session, Clock()
        self._loop_started = time.perf_counter()
        while session.iteration < self.config.max_iter and not stop:
            losses = session.advance(*clock.next_batch(loaders))
            self._monitor.add(session.iteration, losses)
            bar.update()
            for record in self._read_losses(clock):
                self._report(record, stop, metrics, bar)
            if self._due("snapshot_save_iter"):
                for record in self._monitor.drain():
                    self._report(record, stop, metrics, bar)
                self._save()
            if self._due("image_save_iter"):
                shows.show(session.generator_pair, session.iteration, keep=metrics)
            elif self._due("image_display_iter"):
                shows.show(session.generator_pair, session.iteration)

    def _due(self, key: str) -> bool:
        return self.session.iteration % getattr(self.config, key) == 0

    def _read_losses(self, clock: Clock) -> list[Record]:
        if self._due("log_iter"):
            rate = {"learning_rate": self.session.step.learning_rate}
            return self._monitor.flush(rate | clock.read())
        if self.session.iteration % CHECK_EVERY == 0:
            return self._monitor.flush(None)
        return []

    def _report(self, record: Record, stop: Stop, metrics: Metrics, bar: tqdm) -> None:
        iteration, values = record
        metrics.write(iteration, values)
        bar.set_postfix_str(_postfix(values), refresh=False)
        if self._callback is not None and self._callback(iteration, dict(values)):
            stop.asked = True

    def _save(self) -> None:
        """Write a checkpoint unless this iteration has one; `drain` has checked its losses."""
        session, now = self.session, time.perf_counter()
        if session.iteration <= self._saved:
            return
        session.spent = {
            "seconds": self._earlier["seconds"] + now - self.started,
            "loop_seconds": self._earlier["loop_seconds"] + now - self._loop_started,
        }
        session.save(self.run_dir)
        checkpoint.prune(self.run_dir, self.config, session.iteration)
        self._saved = session.iteration


def _postfix(values: dict[str, float]) -> str:
    return (
        f"D {values['discriminator_total']:.3f}, G {values['generator_total']:.3f}, "
        f"{values['images_per_s']:.1f} images/s, {values['data_wait']:.0%} data wait"
    )
