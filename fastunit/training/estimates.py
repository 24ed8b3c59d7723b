"""Estimates of a run's time and disk space, for ``--dry-run``."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fastunit.common.durations import duration
from fastunit.config import Config
from fastunit.training.memory import size
from fastunit.training.state import TrainState

WARM_UP = {"cpu": 1, "cuda": 8}  # steps before those timed: allocation; compiling and capturing
TIMED = 3
LONGEST = 20.0  # seconds after which no further step is timed
PAGE = 3 * 2**20  # bytes
RECORD = 1500  # bytes of one record, in metrics.jsonl and TensorBoard together

Batches = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Estimate:
    """What a run will take: seconds of a step, and bytes of a checkpoint and of the folder."""

    iterations: int
    step_seconds: float
    steps: int
    checkpoint: int
    kept: int
    disk: int

    def lines(self) -> list[str]:
        """Return the estimate in two lines."""
        whole = duration(self.iterations * self.step_seconds)
        return [
            f"expected time: about {whole} ({self.iterations:,} iterations, "
            f"{self.step_seconds:.3g} s each: {self.steps} timed), then the evaluation",
            f"expected disk space: about {size(self.disk)} ({size(self.checkpoint)} for each of "
            f"{self.kept} checkpoints)",
        ]


def estimate(state: TrainState, batches: Batches) -> Estimate:
    """Time a few steps and add up what the run's folder will hold. `state` is changed by them.

    Args:
        state: what would be trained.
        batches: returns the next batch of both domains.

    Raises:
        torch.OutOfMemoryError: the GPU's memory is too small for a step.
    """
    config, done = state.config, state.iteration
    seconds = _time_steps(state, batches)
    content = state.state()
    own, weights = _nbytes(content), _nbytes(content["unit"])
    kept = _kept(config)
    disk = (own + weights) * (kept + 1) + _grids(config) + PAGE  # one more while it is written
    disk += (config.max_iter // config.log_iter) * RECORD
    left = max(0, config.max_iter - done)
    return Estimate(left, median(seconds), len(seconds), own + weights, kept, disk)


def noise(config: Config, device: torch.device) -> Batches:
    """Return batches of noise, where there are no images yet."""
    count = config.batch_size * config.accumulate

    def batch() -> tuple[Tensor, Tensor]:
        x_a, x_b = (
            (torch.rand(count, domain.channels, *config.crop, device=device) * 2 - 1).contiguous(
                memory_format=torch.channels_last
            )
            for domain in map(config.domain, "ab")
        )
        return x_a, x_b

    return batch


def disk_shortage(needed: int, folder: Path) -> str | None:
    """Return a warning if the disk of a folder, which may not exist yet, has too little space."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed <= free:
        return None
    return (
        f"the disk of {folder} has only {size(free)} free; lower checkpoint.keep_last, raise "
        "image_save_iter, or choose another --output"
    )


def _time_steps(state: TrainState, batches: Batches) -> list[float]:
    """Return the seconds of up to `TIMED` steps after the warm-up, of at least one."""
    seconds: list[float] = []
    begin, warm_up = time.perf_counter(), WARM_UP[state.device.type]
    for _ in range(warm_up + TIMED):
        x_a, x_b = batches()
        start = time.perf_counter()
        losses = state.advance(x_a, x_b)
        float(losses["generator_total"])  # waits for the device
        seconds.append(time.perf_counter() - start)
        if time.perf_counter() - begin > LONGEST:
            break
    return seconds[warm_up:] or seconds[-1:]


def _kept(config: Config) -> int:
    """Return how many checkpoints will be kept at the end."""
    written = max(1, -(-config.max_iter // config.snapshot_save_iter))
    kept = min(written, config.checkpoint.keep_last)
    if every := config.checkpoint.keep_every:
        kept += max(0, written - kept) // every
    return kept


def _grids(config: Config) -> int:
    """Return the bytes of all sample grids: PNG's of noisy images, in samples/ and TensorBoard."""
    height, width = config.crop
    rows = 12 if config.network == "munit" else 8
    pixels = rows * config.display_size * height * width
    return 2 * 3 * pixels * (config.max_iter // config.image_save_iter + 2)


def _nbytes(value: Any) -> int:
    """Return the bytes of all tensors in nested containers, shared ones once."""
    found: dict[int, int] = {}

    def walk(part: Any) -> None:
        if isinstance(part, Tensor):
            found[part.data_ptr()] = part.numel() * part.element_size()
        elif isinstance(part, dict):
            for each in part.values():
                walk(each)
        elif isinstance(part, (list, tuple)):
            for each in part:
                walk(each)

    walk(value)
    return sum(found.values())
