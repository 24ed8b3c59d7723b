"""The training loop: data, step, progress, samples, checkpoints, and the ways it may end."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastunit import config, evaluate, files
from fastunit.images import Domains
from fastunit.monitor import LossMonitor
from fastunit.page import write_page
from fastunit.report import Metrics, save_grid
from fastunit.session import Session

SAMPLES = "samples"
CHECK_EVERY = 100  # iterations between looks for NaN when losses are logged more rarely


@dataclass
class Stop:
    """Set by a signal; the loop saves and leaves at the end of the iteration."""

    signal: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request; the second acts as it always does."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: object) -> None:
        stop.signal = number
        tqdm.write(f"{signal.Signals(number).name}: saving a checkpoint after this iteration")
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()


@dataclass
class Clock:
    """Throughput since the last reading, and of the whole loop."""

    images: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)
    total_images: int = 0
    total_seconds: float = 0.0

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
        self.total_images += self.images
        self.total_seconds += seconds
        self.restart()
        return rates

    def restart(self) -> None:
        """Begin anew without counting what came between: samples, checkpoints, evaluation."""
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()

    @property
    def images_per_s(self) -> float:
        return self.total_images / self.total_seconds if self.total_seconds else 0.0


class Trainer:
    """Drives a session over its data and keeps the run's folder."""

    def __init__(self, session: Session, domains: Domains, run_dir: Path) -> None:
        self.session, self.config, self.run_dir = session, session.config, run_dir
        self.domains, self.clock, self.monitor = domains, Clock(), LossMonitor()
        self._shown = self._display_images()

    def run(self, stop: Stop) -> bool:
        """Train up to `max_iter`; returns False when a signal ended it earlier.

        A checkpoint of the last iteration is written in both cases. Raises TrainingDiverged when
        a loss or weight is not finite; the checkpoints before it stay.
        """
        session, last = self.session, self.config.max_iter
        loaders = session.loaders(self.domains)
        with (
            Metrics(self.run_dir, resume_from=session.iteration or None) as metrics,
            _progress_bar(last, session.iteration) as bar,
        ):
            if session.iteration == 0:
                self._keep_samples(metrics)
            self.clock.restart()
            saved = session.iteration
            while session.iteration < last and stop.signal is None:
                losses = session.advance(*self.clock.next_batch(loaders))
                self.monitor.add(session.iteration, losses)
                bar.update()
                self._log(metrics, bar)
                if self._due("snapshot_save_iter"):
                    self._save()
                    saved = session.iteration
                self._show(metrics)
            if session.iteration > saved:
                self._save()
        return stop.signal is None

    def finish(self, started: float, pairs: evaluate.Pairs) -> dict[str, Any]:
        """Measure, write result.json and the page; returns the result.

        `started` is the time.perf_counter() at which the command began.
        """
        result: dict[str, Any] = {"iteration": self.session.iteration}
        if pairs:
            translator = self.session.translator
            result |= evaluate.paired_error(translator, pairs, self.config, self.session.device)
            result["pairs"] = len(pairs)
        result["images_per_s"] = self.clock.images_per_s
        result["seconds"] = time.perf_counter() - started
        files.write_json(result, self.run_dir / "result.json")
        self._page(result)
        return result

    def _due(self, key: str) -> bool:
        return self.session.iteration % getattr(self.config, key) == 0

    def _log(self, metrics: Metrics, bar: tqdm) -> None:
        due = self._due("log_iter")
        if not due and self.session.iteration % CHECK_EVERY:
            return
        losses = self.monitor.flush()
        if not due or not losses:
            return
        rates = self.clock.read()
        rate = self.session.step.learning_rate
        metrics.write(self.session.iteration, losses | {"learning_rate": rate} | rates)
        bar.set_postfix_str(
            f"D {losses['discriminator_total']:.3f}, G {losses['generator_total']:.3f}, "
            f"{rates['images_per_s']:.1f} images/s, {rates['data_wait']:.0%} data wait",
            refresh=False,
        )

    def _save(self) -> None:
        self.clock.read()
        self.monitor.drain()
        self.session.save(self.run_dir)
        self.clock.restart()

    def _show(self, metrics: Metrics) -> None:
        if self._due("image_save_iter"):
            self.clock.read()
            self._keep_samples(metrics)
            self._page(None)
            self.clock.restart()
        elif self._due("image_display_iter"):
            self.clock.read()
            self._grid(self.run_dir / SAMPLES / "latest.png")
            self.clock.restart()

    def _keep_samples(self, metrics: Metrics) -> None:
        path = self.run_dir / SAMPLES / f"{self.session.iteration:08d}.png"
        self._grid(path)
        metrics.image("samples", path, self.session.iteration)

    @torch.no_grad()
    def _grid(self, path: Path) -> None:
        x_a, x_b = self._shown
        save_grid(_columns(self.session.translator, x_a, x_b), path)

    def _page(self, result: dict[str, Any] | None) -> None:
        title = f"{self.run_dir.name}, iteration {self.session.iteration}"
        write_page(self.run_dir, title, config.dump_yaml(self.config), result)

    def _display_images(self) -> tuple[Tensor, Tensor]:
        """Return the images of the sample grids: test images, or training ones without a test set.

        As many of each domain as both have, `display_size` at most.
        """
        domains, size = self.domains, self.config.display_size
        if domains.test_a and domains.test_b:
            chosen = domains.test_a, domains.test_b
        else:
            chosen = domains.train_a, domains.train_b
        count = min(size, *map(len, chosen))
        return tuple(
            torch.cat(list(evaluate.crops(some[:count], name, self.config, self.session.device)))
            for some, name in zip(chosen, "ab", strict=True)
        )


def _progress_bar(total: int, done: int) -> tqdm:
    # In a log file each refresh is a line of its own.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, initial=done, unit="it", desc="training", mininterval=interval)


def _columns(pair: Any, x_a: Tensor, x_b: Tensor) -> dict[str, Tensor]:
    """Return the rows of a sample grid by their labels."""
    z_a, z_b = pair.gen_a.code(x_a), pair.gen_b.code(x_b)
    x_ab, x_ba = pair.gen_b.decode(z_a), pair.gen_a.decode(z_b)
    return {
        "input a": x_a,
        "reconstruction a": pair.gen_a.decode(z_a),
        "a to b": x_ab,
        "a to b to a": pair.gen_a.decode(pair.gen_b.code(x_ab)),
        "input b": x_b,
        "reconstruction b": pair.gen_b.decode(z_b),
        "b to a": x_ba,
        "b to a to b": pair.gen_b.decode(pair.gen_a.code(x_ba)),
    }
