"""Shared by the command lines: errors without tracebacks, device selection, logging."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fastunit.common import devices
from fastunit.common.errors import UserError
from fastunit.common.progress import STDERR
from fastunit.common.version import version

VERSION = f"fastunit {version()}"  # what --version prints
USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def guard(main: Callable[[], int]) -> int:
    """Run `main` and return its exit code; user errors are printed as one message.

    A UserError or OSError (disk full, no permission) is printed to stderr as ``error: ...`` and
    returns 2; Ctrl-C returns 130; a closed output pipe returns 141. Any other exception is a bug
    and propagates with its traceback.
    """
    try:
        return main()
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
            tqdm.write(self.format(record), file=STDERR)
        except Exception:
            self.handleError(record)
