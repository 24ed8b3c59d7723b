"""Sample grids and the run's page, written by a separate thread during training."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastunit import config
from fastunit.common import files
from fastunit.config import Config
from fastunit.models.domain_pair import DomainPair, evaluating
from fastunit.report.grid import draw_grid, to_pixels
from fastunit.report.metrics import Metrics
from fastunit.report.page import FOLDER, grids, write_page

_logger = logging.getLogger(__name__)


class Gallery:
    """Writes grids of a fixed set of images and their translations.

    `show` queues the networks' work and a copy to the host, and returns; one thread encodes and
    writes the grids. An error in it is raised by the next call or on leaving the block; what the
    disk refuses is only a warning.

    That thread runs no PyTorch operation: on the CPU it would get its own OpenMP team, and
    libgomp, seeing more threads than cores, would no longer spin between the step's many small
    parallel regions. Measured on 2 cores: the demo fell from 23 to 10 images/s for the rest of
    the run.
    """

    def __init__(self, run_dir: Path, settings: Config, shown: tuple[Tensor, Tensor]) -> None:
        self._run_dir, self._settings, self._shown = run_dir, settings, shown
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def show(self, pair: DomainPair, iteration: int, keep: Metrics | None = None) -> None:
        """Write samples/latest.png; with `keep` also samples/NNNNNNNN.png, and to TensorBoard.

        Without `keep`, the grid is skipped if the previous one is still being written.
        """
        if self._last is not None:
            if not self._last.done() and keep is None:
                return
            self._finish(self._last)
        with evaluating(pair), torch.no_grad():
            rows = {k: to_pixels(v) for k, v in pair.sample_rows(*self._shown).items()}
        rows, ready = _on_host(rows)
        self._last = self._thread.submit(self._write, rows, ready, iteration, keep)

    def forget_after(self, iteration: int) -> None:
        """Delete kept grids of later iterations; a run resumed earlier writes them again."""
        for path in grids(self._run_dir):
            if int(path.stem) > iteration:
                path.unlink()

    def kept(self, iteration: int) -> bool:
        """Return whether the grid of an iteration is there."""
        return (self._run_dir / FOLDER / f"{iteration:08d}.png").is_file()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._thread.shutdown()
        if self._last is not None and error is None:
            self._finish(self._last)

    def _finish(self, last: Future[None]) -> None:
        try:
            last.result()
        except OSError as error:  # training goes on without samples
            _logger.warning("cannot write samples: %s", error)

    def _write(
        self,
        rows: dict[str, np.ndarray],
        ready: torch.cuda.Event | None,
        iteration: int,
        keep: Metrics | None,
    ) -> None:
        if ready is not None:
            ready.synchronize()
        latest = self._run_dir / FOLDER / "latest.png"
        draw_grid(rows, latest)
        if keep is None:
            return
        with files.atomic(latest.with_name(f"{iteration:08d}.png")) as kept:
            shutil.copyfile(latest, kept)
        keep.image("samples", latest, iteration)
        page(self._run_dir, self._settings, iteration, None)


def page(run_dir: Path, settings: Config, iteration: int, result: dict[str, Any] | None) -> None:
    """Write the run's index.html; `result` is None during training."""
    title = f"{run_dir.name}, iteration {iteration}"
    text, total = config.dump_yaml(settings), settings.max_iter
    write_page(run_dir, title, text, result, iteration=iteration, total=total)


def _on_host(
    rows: dict[str, Tensor],
) -> tuple[dict[str, np.ndarray], torch.cuda.Event | None]:
    """Return the rows in host memory and, on CUDA, an event that marks the end of the copy."""
    if next(iter(rows.values())).device.type != "cuda":
        return {label: pixels.numpy() for label, pixels in rows.items()}, None
    host = {}
    for label, pixels in rows.items():
        buffer = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
        host[label] = buffer.copy_(pixels, non_blocking=True).numpy()
    ready = torch.cuda.Event()
    ready.record()
    return host, ready
