"""Shared by the command lines: errors without tracebacks, device selection, logging.

Imports no package beside fastunit, so that ``--help`` is fast and works in any installation.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from fastunit.common import extras, waiting
from fastunit.common.errors import ResourceError, StorageError, UserError
from fastunit.common.progress import STDERR
from fastunit.common.text import printable
from fastunit.common.version import version

if TYPE_CHECKING:
    import torch

VERSION = f"fastunit {version()}"  # what --version prints
USAGE_ERROR = 2
STORAGE_ERROR = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def _missing(error: ModuleNotFoundError, extra: str) -> str:
    return (
        f"error: the package {error.name} is not installed; install it with: "
        f"{extras.install(extra)}"
    )


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Exit with one message if an import inside the block finds a package missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        say(_missing(error, extra), sys.stderr)
        raise SystemExit(USAGE_ERROR) from None


def guard(main: Callable[[], int], extra: str = "train") -> int:
    """Run `main` and return its exit code; user errors are printed as one message.

    A UserError and a missing package, which `extra` brings, are printed to stderr as ``error: ...``
    and return 2; a StorageError, ResourceError or OSError (disk full, no permission) returns 3.
    Ctrl-C returns 130, other signals 128 and their number; a closed output pipe returns 141. Any
    other exception is a bug and propagates with its traceback.
    """
    try:
        return main()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "fastunit":
            raise
        say(_missing(error, extra), sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        # else Python would raise it again when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (UserError, OSError) as error:
        say(f"error: {_reason(error)}", sys.stderr)
        storage = isinstance(error, (StorageError, ResourceError, OSError))
        return STORAGE_ERROR if storage else USAGE_ERROR
    except waiting.Interrupted as error:
        say("interrupted", sys.stderr)
        return 128 + error.number
    except KeyboardInterrupt:
        say("interrupted", sys.stderr)
        return INTERRUPTED


def _reason(error: Exception) -> str:
    """Return an error's text; of an OSError the file and the reason, without Python's notation."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


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


def pick_device(name: str) -> torch.device:
    """Return the device named by ``--device``; a GPU also becomes CUDA's current device.

    Raises:
        UserError: an unknown name, or a GPU that does not exist.
    """
    import torch

    from fastunit.common import devices

    device = devices.choose(name, "--device ")
    if device.type == "cuda":
        torch.cuda.set_device(device.index)
    return device


def count(text: str) -> int:
    """Return a whole number, written as 200000, 200_000 or 2e5; a type for argparse."""
    try:
        number = float(text)
        if number.is_integer():
            return int(text) if text.lstrip("+-").replace("_", "").isdecimal() else int(number)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, such as 200000 or 2e5")


def positive(text: str) -> int:
    """As `count`, for numbers of at least 1."""
    if (number := count(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return number


def positive_number(text: str) -> float:
    """Return a number above 0, for arguments of a parser."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0, such as 2 or 0.5")
    return number


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
        try:
            text = printable(self.format(record))
            try:
                from tqdm import tqdm
            except ModuleNotFoundError:
                print(text, file=STDERR)
            else:
                tqdm.write(text, file=STDERR)
        except Exception:
            self.handleError(record)
