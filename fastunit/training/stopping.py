"""Requests to stop a run: signals are heard at any moment, a second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from fastunit.common import waiting

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME = 0.5  # seconds within which a second signal is taken for the first: schedulers send several


@dataclass
class Stop:
    """A request to stop, by a signal or a callback.

    While `graceful`, a signal lets the iteration end, unless the main thread waits for files;
    otherwise it raises `waiting.Interrupted` in the main thread.
    """

    signal: int | None = None
    asked: bool = False
    graceful: bool = False

    def __bool__(self) -> bool:
        return self.asked or self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGINT, SIGTERM and SIGHUP into a stop request inside the block; in the main thread.

    A second SIGINT or SIGTERM ends the process at once, even where Python code does not run: a
    thread reads the signals' numbers from a pipe. Files are whole then, as `files.atomic` makes
    them. A signal that is ignored, as nohup has SIGHUP ignored, stays so.
    """
    stop = Stop()
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in heard}

    def request(number: int, frame: object) -> None:
        stop.signal = stop.signal or number
        if not stop.graceful or waiting.interruptible():
            raise waiting.Interrupted(stop.signal)

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    listener = threading.Thread(target=_listen, args=(reading, stop, set(heard)), daemon=True)
    old = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    listener.start()
    try:
        for number in heard:
            signal.signal(number, request)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old)
        os.close(writing)  # the listener ends, and closes the other end


def _listen(reading: int, stop: Stop, heard: set[int]) -> None:
    first: float | None = None
    while data := os.read(reading, 64):
        for number in data:
            now = time.monotonic()
            if number not in heard:
                continue
            if first is None:
                first, stop.signal = now, stop.signal or number
                if stop.graceful:
                    _say("stopping after this iteration; a second signal ends at once")
            elif now - first > SAME and number != signal.SIGHUP:
                _say("ended at once")
                os._exit(128 + number)
    os.close(reading)


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # a closed terminal; no stderr
        os.write(sys.stderr.fileno(), f"\n{text}\n".encode())
