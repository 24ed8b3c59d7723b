"""Shared by the command lines: errors without tracebacks, device selection, logging.

Imports no package beside fastunit, so that ``--help`` is fast and works in any installation.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastunit.common import extras
from fastunit.common.errors import UserError
from fastunit.common.progress import STDERR
from fastunit.common.version import version

if TYPE_CHECKING:
    import torch

VERSION = f"fastunit {version()}"  # what --version prints
USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def guard(main: Callable[[], int], extra: str = "train") -> int:
    """Run `main` and return its exit code; user errors are printed as one message.

    A UserError, an OSError (disk full, no permission) and a missing package, which `extra` brings,
    are printed to stderr as ``error: ...`` and return 2; Ctrl-C returns 130; a closed output pipe
    returns 141. Any other exception is a bug and propagates with its traceback.
    """
    try:
        return main()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "fastunit":
            raise
        print(
            f"error: the package {error.name} is not installed; install it with: "
            f"{extras.install(extra)}",
            file=sys.stderr,
        )
        return USAGE_ERROR
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        # else Python would raise it again when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


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
            from tqdm import tqdm

            tqdm.write(self.format(record), file=STDERR)
        except ModuleNotFoundError:
            print(self.format(record), file=STDERR)
        except Exception:
            self.handleError(record)
