"""Metrics of a run, written to TensorBoard and as JSON lines."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from fastunit.common import files
from fastunit.report.groups import tag

MOST_PENDING = 10_000  # records that are kept while the disk is full
_logger = logging.getLogger(__name__)


class Metrics:
    """Writes named numbers to `metrics.jsonl` and, grouped, to TensorBoard, both in `run_dir`.

    A JSONL record has "iteration", "time" (seconds since this object was created) and the numbers;
    non-finite ones are written as the strings "nan", "inf" and "-inf", since JSON has no such
    numbers. Records after iteration `resume_from` (None: 0) from an earlier run are dropped.
    """

    def __init__(self, run_dir: Path, resume_from: int | None = None) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        path, last = run_dir / "metrics.jsonl", resume_from or 0
        self._path = path
        if path.exists():
            _drop_after(path, last)
        self._start = time.perf_counter()
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._pending: list[bytes] = []
        self._size, self._warned = path.stat().st_size, False
        self._board: SummaryWriter | None = SummaryWriter(
            os.fspath(run_dir / "tensorboard"), purge_step=last + 1
        )

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append one record; what the disk refuses is kept for the next time, with a warning."""
        stamp = {"iteration": iteration, "time": round(time.perf_counter() - self._start, 3)}
        numbers = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        self._pending = [
            *self._pending[1 - MOST_PENDING :],
            (json.dumps(stamp | numbers) + "\n").encode(),
        ]
        self._flush()
        self._to_board(
            lambda board: [board.add_scalar(tag(k), v, iteration) for k, v in values.items()]
        )

    def image(self, tag: str, path: Path, iteration: int) -> None:
        """Write an image file to TensorBoard."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._to_board(lambda board: board.add_image(tag, pixels, iteration, dataformats="HWC"))

    def close(self) -> None:
        """Flush and close both files."""
        self._flush()
        try:
            self._file.close()
        except OSError as error:
            self._warn(error)
        self._to_board(lambda board: board.close())

    def _flush(self) -> None:
        if not self._pending:
            return
        data = b"".join(self._pending)
        try:
            written = self._file.write(data)
            if written != len(data):  # the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):  # no torn line
                os.ftruncate(self._file.fileno(), self._size)
            self._warn(error)
            return
        self._size += len(data)
        self._pending, self._warned = [], False

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            _logger.warning("cannot write %s: %s; training goes on", self._path, error.strerror)
        self._warned = True

    def _to_board(self, write: Callable[[SummaryWriter], object]) -> None:
        """Call `write`; TensorBoard's thread ends at its first error, and raises it later."""
        if self._board is None:
            return
        try:
            write(self._board)
        except OSError as error:
            self._board = None
            _logger.warning("cannot write to TensorBoard, which ends here: %s", error)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()


def read_metrics(run_dir: Path, most: int | None = None) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, up to an incomplete line left by a crash.

    Of more than `most` every 2nd, 4th, 8th, ... is read, so that memory is bounded: runs of a
    million records would take 1 GB.
    """
    with _lines(run_dir / "metrics.jsonl") as lines:
        return list(_records(lines if most is None else _thinned(lines, most)))


def _drop_after(path: Path, iteration: int) -> None:
    """Rewrite the file without the records of later iterations."""
    with (
        _lines(path) as lines,
        files.atomic(path) as temporary,
        open(temporary, "w", encoding="utf-8") as kept,
    ):
        for record in _records(lines):
            if record["iteration"] <= iteration:
                kept.write(json.dumps(record) + "\n")


def _lines(path: Path) -> TextIO:
    return open(path, encoding="utf-8", errors="replace")


def _thinned(lines: Iterable[str], most: int) -> list[str]:
    kept: list[str] = []
    step = 1
    for index, line in enumerate(lines):
        if index % step:
            continue
        kept.append(line)
        if len(kept) > most:
            kept, step = kept[::2], 2 * step
    return kept


def _records(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of lines, up to one that is none."""
    for line in lines:
        try:
            record = json.loads(line)
            number = record["iteration"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if not isinstance(number, int):
            return
        yield record
