"""Progress bars on stderr, and whether they are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

_shown = ContextVar("_shown", default=True)


class LastingStderr:
    """stderr for bars and messages; a closed pipe (``2>&1 | tee``) does not end training."""

    def write(self, text: str) -> None:
        with suppress(BrokenPipeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(BrokenPipeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()

    def __eq__(self, other: object) -> bool:
        """Compare equal to stderr: tqdm clears a bar only for messages to the bar's own file."""
        return other is sys.stderr or isinstance(other, LastingStderr)

    __hash__ = object.__hash__


STDERR = LastingStderr()  # one instance, so that tqdm sees messages and bars share a terminal


@contextmanager
def shown(yes: bool) -> Iterator[None]:
    """Show or hide the bars created inside the block."""
    token = _shown.set(yes)
    try:
        yield
    finally:
        _shown.reset(token)


def bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return a progress bar on stderr; `options` are tqdm's. Needs tqdm."""
    from tqdm import tqdm

    # In a log file each refresh adds a line.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(items, mininterval=interval, file=STDERR, disable=not _shown.get(), **options)
