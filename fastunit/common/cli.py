"""Shared by the command lines: errors without tracebacks, device selection, logging."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import torch

from fastunit.common import devices, waiting
from fastunit.common.errors import StorageError, UserError
from fastunit.common.progress import STDERR
from fastunit.common.text import printable
from fastunit.common.version import version

VERSION = f"fastunit {version()}"  # what --version prints
USAGE_ERROR = 2
STORAGE_ERROR = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def guard(main: Callable[[], int]) -> int:
    """Run `main` and return its exit code; user errors are printed as one message.

    A UserError is printed to stderr as ``error: ...`` and returns 2; a StorageError or OSError
    (disk full, no permission) returns 3. Ctrl-C returns 130, other signals 128 and their number; a
    closed output pipe returns 141. Any other exception is a bug and propagates with its traceback.
    """
    try:
        return main()
    except BrokenPipeError:
        # else Python would raise it again when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (UserError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        storage = isinstance(error, (StorageError, OSError))
        return STORAGE_ERROR if storage else USAGE_ERROR
    except waiting.Interrupted as error:
        say("interrupted", sys.stderr)
        return 128 + error.number
    except KeyboardInterrupt:
        say("interrupted", sys.stderr)
        return INTERRUPTED


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line that may hold names of files: what a terminal would obey is escaped.

    Args:
        line: the text.
        stream: where to; None is stdout.
    """
    stream = stream if stream is not None else sys.stdout
    encoding = getattr(stream, "encoding", None) or "ascii"
    text = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    print(text, file=stream)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Exit with one message if an import inside the block finds a package missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(
            f"error: the package {error.name} is not installed; "
            f"pip install 'fastunit[{extra}]' brings it",
            file=sys.stderr,
        )
        raise SystemExit(USAGE_ERROR) from None


def pick_device(name: str) -> torch.device:
    """Return the device named by ``--device``; a GPU also becomes CUDA's current device.

    Raises:
        UserError: an unknown name, or a GPU that does not exist.
    """
    device = devices.choose(name, "--device ")
    if device.type == "cuda":
        torch.cuda.set_device(device.index)
    return device


def setup_logging() -> None:
    """Print messages of fastunit's loggers, from INFO up, to stderr. May be called repeatedly.

    They are written through tqdm, so that they do not break up a running progress bar.
    """
    logger = logging.getLogger("fastunit")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _BarHandler) for handler in logger.handlers):
        logger.addHandler(_BarHandler())


class _BarHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(printable(self.format(record)), file=STDERR)
        except Exception:
            self.handleError(record)
