"""Waiting that signals can interrupt, and that says what is awaited.

A read from a dead network mount cannot be interrupted, so it happens in another thread, and the
main thread waits for it here, in short steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from typing import TypeVar

STEP = 0.5  # seconds
T = TypeVar("T")
_awaited: list[tuple[Callable[[], str], bool]] = []
_progress = time.monotonic()


class Interrupted(KeyboardInterrupt):
    """A signal has ended a wait; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def on(what: Callable[[], str], *, interrupt: bool = True) -> Iterator[None]:
    """Say what the main thread waits for inside the block.

    Args:
        what: returns it, for messages.
        interrupt: whether a signal may end the wait by an exception.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _awaited.append((what, interrupt))
    try:
        yield
    finally:
        _awaited.pop()


def current() -> str | None:
    """Return what the main thread waits for; None if for nothing that is known."""
    awaited = list(_awaited)  # other threads ask
    return awaited[-1][0]() if awaited else None


def interruptible() -> bool:
    """Return whether the main thread is in a wait that a signal may end."""
    return bool(_awaited) and _awaited[-1][1]


def progress() -> None:
    """Note that the run has made progress: `last_progress` is now."""
    global _progress
    _progress = time.monotonic()


def last_progress() -> float:
    """Return the time.monotonic() of the last progress."""
    return _progress


def result(future: Future[T]) -> T:
    """Return a future's result; signal handlers run while it is awaited."""
    while True:
        try:
            return future.result(STEP)
        except NotYet:
            if future.done():  # on Python 3.11 and later a task's own TimeoutError is the same type
                return future.result()
