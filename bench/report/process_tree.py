"""Peak memory of this process and its descendants, by sampling."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

INTERVAL = 0.2  # seconds
_PAGE = os.sysconf("SC_PAGE_SIZE")


def members(pid: int) -> Iterator[int]:
    """Yield a process and its living descendants."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from members(int(child))


def resident_mib(pid: int) -> float:
    """Return the sum of the processes' resident memory; shared pages count for each."""
    pages = 0
    for member in members(pid):
        with suppress(OSError, IndexError):  # it has ended
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return pages * _PAGE / 2**20


class PeakMemory:
    """A context manager that samples `resident_mib` of this process; `mib` is the peak so far."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.mib = max(self.mib, resident_mib(os.getpid()))
            if self._over.wait(INTERVAL):
                return
