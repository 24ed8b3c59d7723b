"""A thread that notices when a run makes no progress, and says what it waits for."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from pathlib import Path

from fastunit.common import waiting

STALLED = 4  # exit code
FILE = "stalls.txt"  # in the run's folder: stack traces of all threads
_logger = logging.getLogger(__name__)


class Watchdog:
    """Warns inside the block after `seconds` without progress, as `waiting.progress` tells it.

    The warning says what is awaited, and the stack traces of all threads are appended to FILE in
    `folder`. It comes again after as many seconds more. With `exit` the process ends then, with
    exit code STALLED; files are whole, and the run can be resumed from its last checkpoint.
    """

    def __init__(self, folder: Path, seconds: float, action: str) -> None:
        self._folder, self._seconds, self._exit = folder, seconds, action == "exit"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchdog:
        waiting.progress()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        said = 0.0
        while not self._done.wait(min(1.0, self._seconds / 4)):
            since = max(waiting.last_progress(), said)
            if time.monotonic() - since < self._seconds:
                continue
            said = time.monotonic()
            self._report(said - waiting.last_progress())
            if self._exit:
                os._exit(STALLED)

    def _report(self, seconds: float) -> None:
        what = waiting.current() or "unknown"
        path = self._folder / FILE
        kept = f"stack traces are in {path}"
        try:
            with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%F %T')} no progress for {seconds:.0f} s: {what}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            kept = f"stack traces could not be written: {error}"
        ends = "; the run ends (stall_action=exit)" if self._exit else ""
        _logger.warning("no progress for %.0f s: waiting for %s; %s%s", seconds, what, kept, ends)
