"""Asynchronous reading of losses from the device, and checks for NaN and infinity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastunit.common.errors import TrainingDiverged
from fastunit.training.objective import Losses

Record = tuple[int, dict[str, float]]  # an iteration, and the values that belong to it


@dataclass
class _Block:
    """The losses of some iterations, being copied to the host."""

    iterations: list[int]
    values: Tensor  # [iterations, losses], float64
    ready: torch.cuda.Event | None
    extra: dict[str, float] | None  # not None if this block completes a record


class LossMonitor:
    """Collects every iteration's losses and returns their means as records.

    `add` only queues device work. `flush` starts copying the added losses to the host and returns
    the complete records. On CUDA these do not include the copy just started, which would make the
    host wait; it is returned by the next `flush` or by `drain`. No record is lost, and each has its
    own iteration.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._iterations: list[int] = []
        self._rows: list[Tensor] = []
        self._pending: list[_Block] = []
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, iteration: int, losses: Losses) -> None:
        """Add an iteration's scalar losses; the names are the same in every call."""
        self._names = list(losses)
        self._iterations.append(iteration)
        self._rows.append(torch.stack([loss.double() for loss in losses.values()]))

    def flush(self, extra: dict[str, float] | None) -> list[Record]:
        """Start copying the added losses; return the complete records.

        With `extra`, the current record ends here and includes these values. With None, the losses
        are only checked, and the record continues.

        Raises:
            TrainingDiverged: a loss is not finite; the message names the first and its iteration.
        """
        self._start(extra)
        on_cuda = bool(self._pending) and self._pending[-1].ready is not None
        return self._finish(keep=1 if on_cuda else 0)

    def drain(self) -> list[Record]:
        """Wait for all added losses, check them, and return the records that they complete."""
        self._start(None)
        return self._finish(keep=0)

    def _start(self, extra: dict[str, float] | None) -> None:
        if not self._rows:
            return
        values, iterations = torch.stack(self._rows), self._iterations
        self._rows, self._iterations = [], []
        ready = None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            values, ready = host, torch.cuda.Event()
            ready.record()
        self._pending.append(_Block(iterations, values, ready, extra))

    def _finish(self, keep: int) -> list[Record]:
        """Process all pending blocks but the `keep` newest."""
        done = self._pending[: len(self._pending) - keep]
        self._pending = self._pending[len(done) :]
        records = []
        for block in done:
            if block.ready is not None:
                block.ready.synchronize()
            self._check(block)
            total = block.values.sum(0)
            self._sum = total if self._sum is None else self._sum + total
            self._count += len(block.iterations)
            if block.extra is not None:
                means = dict(zip(self._names, (self._sum / self._count).tolist(), strict=True))
                records.append((block.iterations[-1], means | block.extra))
                self._sum, self._count = None, 0
        return records

    def _check(self, block: _Block) -> None:
        bad = (~block.values.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise TrainingDiverged(
                f"{self._names[column]} became {block.values[row, column].item()} at iteration "
                f"{block.iterations[row]}"
            )
