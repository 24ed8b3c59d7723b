"""Progress bars: where they and messages go, and whether bars are shown."""

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
    """stderr for bars and messages: a reader that has gone (``| tee``) ends no training."""

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
        """Be the same as stderr to tqdm, which clears a bar for messages to the bar's own file."""
        return other is sys.stderr or isinstance(other, LastingStderr)

    __hash__ = object.__hash__


STDERR = LastingStderr()  # one for all, so that tqdm knows messages and bars share a terminal


@contextmanager
def shown(yes: bool) -> Iterator[None]:
    """Show the bars that are made inside the block, or do not."""
    token = _shown.set(yes)
    try:
        yield
    finally:
        _shown.reset(token)


def bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return a progress bar on stderr, with tqdm's own `options`; needs tqdm."""
    from tqdm import tqdm

    # In a log file each refresh is a line of its own.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(items, mininterval=interval, file=STDERR, disable=not _shown.get(), **options)
