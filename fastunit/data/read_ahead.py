"""Reading files ahead of their use, in threads that a dead mount may block for ever."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from fastunit.common import text, waiting
from fastunit.common.errors import DataError
from fastunit.data import passed
from fastunit.data.image_io import Limits, content

PREFETCH = 2  # batches prepared ahead of the one asked for
CHANGED = (
    "If it passed the check before the run, it has changed since: restore it, or start again, "
    "which checks all files anew"
)
R = TypeVar("R")


class Sample(NamedTuple):
    """An image of a batch: its file, the crop's x and y in [0, 1), and whether it is mirrored."""

    file: Path
    x: float
    y: float
    flip: bool


def checked_content(file: Path, limits: Limits) -> bytes:
    """Return a file's bytes; raises DataError if they are not those that passed the check."""
    data = content(file, limits)
    passed.verify(file, data)
    return data


@contextmanager
def named(file: Path) -> Iterator[None]:
    """Name the file in a DataError that is raised inside the block."""
    try:
        yield
    except DataError as error:
        raise DataError(f"cannot read {text.name(file)} ({error}). {CHANGED}") from error


class ReadAhead(Generic[R]):
    """What `load` makes of batches of samples, in order; the next PREFETCH ones are in work.

    The threads are daemons: neither a wait nor the end of the process waits for a blocked one.
    """

    def __init__(
        self, batches: Iterator[list[Sample]], load: Callable[[Sample], R], *, threads: int
    ) -> None:
        self._batches = batches
        self._pending: deque[list[tuple[Sample, Future[R]]]] = deque()
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = max(1, threads)
        for _ in range(self._threads):
            threading.Thread(target=_work, args=(self._jobs, load), daemon=True).start()

    def __iter__(self) -> ReadAhead[R]:
        return self

    def __next__(self) -> list[R]:
        """Return the next batch's results, or raise what `load` raises for a sample."""
        while len(self._pending) <= PREFETCH:
            batch = next(self._batches, None)
            if batch is None:
                break
            jobs = [(sample, Future()) for sample in batch]
            for job in jobs:
                self._jobs.put(job)
            self._pending.append(jobs)
        if not self._pending:
            raise StopIteration
        batch = self._pending.popleft()

        def awaited() -> str:
            late = [text.name(sample.file) for sample, future in batch if not future.done()]
            return f"the files {', '.join(late[:5])}{' and others' if len(late) > 5 else ''}"

        with waiting.on(awaited):
            return [waiting.result(future) for _, future in batch]

    def close(self) -> None:
        """End the threads when their reads are done."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def __del__(self) -> None:
        self.close()


def _work(jobs: queue.SimpleQueue, load: Callable) -> None:
    while (job := jobs.get()) is not None:
        sample, future = job
        try:
            future.set_result(load(sample))
        except BaseException as error:
            future.set_exception(error)
        del job, future
