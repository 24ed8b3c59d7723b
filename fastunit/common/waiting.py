"""Waiting that signals can interrupt, and that says what is awaited.

A read from a dead network mount cannot be interrupted, so it happens in another thread, and the
main thread waits for it here, in short steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from typing import TypeVar

STEP = 0.5  # seconds
T = TypeVar("T")
_awaited: list[Callable[[], str]] = []


class Interrupted(KeyboardInterrupt):
    """A signal has ended a wait; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def on(what: Callable[[], str]) -> Iterator[None]:
    """Say what the main thread waits for inside the block: `what` returns it, for messages."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _awaited.append(what)
    try:
        yield
    finally:
        _awaited.pop()


def current() -> str | None:
    """Return what the main thread waits for; None if for nothing that is known."""
    return _awaited[-1]() if _awaited else None


def result(future: Future[T]) -> T:
    """Return a future's result; signal handlers run while it is awaited."""
    while True:
        try:
            return future.result(STEP)
        except NotYet:
            if future.done():  # on Python 3.11 and later a task's own TimeoutError is the same type
                return future.result()
