"""Where progress bars and messages go."""

from __future__ import annotations

import sys
from contextlib import suppress


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
