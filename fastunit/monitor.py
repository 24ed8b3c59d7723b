"""Losses read off the device without making it wait, and the watch for NaN and infinity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastunit.errors import TrainingDiverged
from fastunit.objective import Losses


@dataclass
class _Block:
    """The losses of the iterations since the block before, on their way to the host."""

    iterations: list[int]
    values: Tensor  # [iterations, losses], float64 on the host
    ready: torch.cuda.Event | None


class LossMonitor:
    """Collects every iteration's losses and gives back their means, one block late on CUDA.

    `add` only queues device work. `flush` starts the copy of what was added to the host and
    returns the block flushed before, which the device has long finished; on the CPU there is
    nothing to wait for and `flush` returns the block itself.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._iterations: list[int] = []
        self._rows: list[Tensor] = []
        self._pending: _Block | None = None

    def add(self, iteration: int, losses: Losses) -> None:
        """Remember an iteration's scalar losses; every call has the same names."""
        self._names = list(losses)
        self._iterations.append(iteration)
        self._rows.append(torch.stack([loss.double() for loss in losses.values()]))

    def flush(self) -> dict[str, float]:
        """Return the mean of each loss over a finished block, {} when there is none yet.

        Raises TrainingDiverged naming the first loss and iteration that is not finite.
        """
        before, self._pending = self._pending, self._start()
        if self._pending is not None and self._pending.ready is None:
            before, self._pending = self._pending, None
        return self._finish(before)

    def drain(self) -> None:
        """Wait for everything added so far and check it; raises TrainingDiverged."""
        self.flush()
        self._finish(self._pending)
        self._pending = None

    def _start(self) -> _Block | None:
        if not self._rows:
            return None
        values, iterations = torch.stack(self._rows), self._iterations
        self._rows, self._iterations = [], []
        if values.device.type != "cuda":
            return _Block(iterations, values, None)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return _Block(iterations, host, ready)

    def _finish(self, block: _Block | None) -> dict[str, float]:
        if block is None:
            return {}
        if block.ready is not None:
            block.ready.synchronize()
        bad = (~block.values.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise TrainingDiverged(
                f"{self._names[column]} became {block.values[row, column].item()} at iteration "
                f"{block.iterations[row]}"
            )
        return dict(zip(self._names, block.values.mean(0).tolist(), strict=True))
