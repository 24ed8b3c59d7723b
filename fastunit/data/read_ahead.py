"""Reading files ahead of their use, in threads that a dead mount may block for ever."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from fastunit.common import text, waiting

Load = Callable[[Path], bytes]


class ReadAhead:
    """Contents of batches of files in order; the next `ahead` batches are already being read.

    The threads are daemons: neither a wait nor the end of the process waits for a blocked one.
    """

    def __init__(
        self, batches: Iterator[Sequence[Path]], load: Load, *, threads: int, ahead: int
    ) -> None:
        self._batches, self._ahead = batches, ahead
        self._pending: deque[list[tuple[Path, Future[bytes]]]] = deque()
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = max(1, threads)
        for _ in range(self._threads):
            threading.Thread(target=_work, args=(self._jobs, load), daemon=True).start()

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> list[bytes]:
        """Return the contents of the next batch's files, whatever `load` raises for one."""
        while len(self._pending) <= self._ahead:
            batch = next(self._batches, None)
            if batch is None:
                break
            jobs = [(file, Future()) for file in batch]
            for job in jobs:
                self._jobs.put(job)
            self._pending.append(jobs)
        if not self._pending:
            raise StopIteration
        batch = self._pending.popleft()

        def awaited() -> str:
            late = [text.name(file) for file, future in batch if not future.done()]
            return f"the files {', '.join(late[:5])}{' and others' if len(late) > 5 else ''}"

        with waiting.on(awaited):
            return [waiting.result(future) for _, future in batch]

    def close(self) -> None:
        """End the threads when their reads are done."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def __del__(self) -> None:
        self.close()


def _work(jobs: queue.SimpleQueue, load: Load) -> None:
    while (job := jobs.get()) is not None:
        file, future = job
        try:
            future.set_result(load(file))
        except BaseException as error:
            future.set_exception(error)
        del job, future
