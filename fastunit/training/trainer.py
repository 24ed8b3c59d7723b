"""The loop over two domains of images: data, step, samples, throughput and the run's result."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fastunit.common import files
from fastunit.common.errors import StorageError
from fastunit.data.discovery import Domains
from fastunit.report import gallery
from fastunit.report.gallery import Gallery
from fastunit.report.metrics import Metrics
from fastunit.training import checkpoint, held_out
from fastunit.training.best import NAME, Best
from fastunit.training.evaluate import measure
from fastunit.training.loop import Callback, Loop
from fastunit.training.objective import Losses
from fastunit.training.state import TrainState
from fastunit.training.stopping import Stop

_logger = logging.getLogger(__name__)


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


class Trainer(Loop[TrainState]):
    """Trains a `TrainState` on its data and keeps the run's folder.

    `shown` are the images of both domains for the sample grids; `started` is the
    time.perf_counter() at which the run began; `callback` takes the losses at every `log_iter`;
    `best` keeps the best checkpoint, every `evaluate_every` iterations, and `patience` of them
    without a better one end the run.
    """

    def __init__(
        self,
        state: TrainState,
        domains: Domains,
        run_dir: Path,
        shown: tuple[Tensor, Tensor],
        started: float,
        callback: Callback | None = None,
        best: Best | None = None,
    ) -> None:
        self.config = state.config
        super().__init__(state, self.config, self.config.max_iter, run_dir, started, callback)
        self.domains, self.shown, self._best = domains, shown, best
        if best is not None:
            best.resume(run_dir, state.iteration)

    def finish(self, pairs: held_out.Pairs) -> dict[str, Any]:
        """Measure, write result.json and the page; returns the result."""
        state = self.state
        result: dict[str, Any] = {"iteration": state.iteration}
        if pairs:
            result |= measure(state.generator_pair, pairs, self.domains, self.config, state.device)
            result["pairs"] = len(pairs)
        if self._best is not None and self._best.iteration:
            result["best"] = self._measure_best(pairs)
        loop_seconds = state.spent["loop_seconds"]
        images = sum(state.positions.values())
        result["images_per_s"] = images / loop_seconds if loop_seconds else 0.0
        result["seconds"] = self.seconds()
        files.write_json(result, self.run_dir / "result.json")
        gallery.page(self.run_dir, self.config, state.iteration, result)
        return result

    def _measure_best(self, pairs: held_out.Pairs) -> dict[str, Any]:
        """Return the best checkpoint's iteration, held-out value and errors of test pairs."""
        assert self._best is not None
        found: dict[str, Any] = {
            "iteration": self._best.iteration,
            "held_out": self._best.value,
        }
        if pairs:
            path = self.run_dir / checkpoint.FOLDER / NAME
            pair = checkpoint.load_generators(path)[0].to(self.state.device)
            found |= measure(pair, pairs, self.domains, self.config, self.state.device)
        return found

    def _run(self, stop: Stop) -> None:
        self._loaders = self.state.loaders(self.domains)
        super()._run(stop)

    @contextmanager
    def _showing(self, metrics: Metrics) -> Iterator[None]:
        state = self.state
        with Gallery(self.run_dir, self.config, self.shown) as self._shows:
            self._shows.forget_after(state.iteration)
            due = state.iteration == 0 or self._due(self.config.image_save_iter)
            if due and not self._shows.kept(state.iteration):  # or a run was killed before it
                self._shows.show(state.generator_pair, state.iteration, keep=metrics)
            self._clock = Clock()
            yield

    def _advance(self) -> Losses:
        return self.state.advance(*self._clock.next_batch(self._loaders))

    def _measure(self) -> dict[str, float] | None:
        if not self._due(self.config.log_iter):
            return None
        return {"learning_rate": self.state.step.learning_rate} | self._clock.read()

    def _postfix(self, values: dict[str, float]) -> str:
        return (
            f"D {values['discriminator_total']:.3f}, G {values['generator_total']:.3f}, "
            f"{values['images_per_s']:.1f} images/s, {values['data_wait']:.0%} data wait"
        )

    def _out_of_patience(self, best: int) -> bool:
        """Return whether `patience` ends the run, and say so; `best` is the best iteration."""
        patience, now = self.config.patience, self.state.iteration
        if not patience or now - best < patience * self.config.evaluate_every:
            return False
        _logger.warning(
            "stopping at iteration %d: the last %d measurements on held-out images were no better "
            "than that of iteration %d (patience=%d)",
            *(now, patience, best, patience),
        )
        return True

    def _after_iteration(self, metrics: Metrics) -> None:
        state = self.state
        if self._best is not None and self._due(self.config.evaluate_every):
            values = self._best.measure(state.generator_pair)
            metrics.write(state.iteration, values)
            try:
                self._best.keep(values["held_out"], state.state(), self.run_dir)
            except StorageError as error:
                _logger.warning("%s; the run goes on", self._refused(error))
            self._enough = self._out_of_patience(self._best.since)
        if self._due(self.config.image_save_iter):
            self._shows.show(state.generator_pair, state.iteration, keep=metrics)
        elif self._due(self.config.image_display_iter):
            self._shows.show(state.generator_pair, state.iteration)
