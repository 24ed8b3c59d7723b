"""What every command line of fastunit shares: errors without tracebacks, the device, messages."""

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
    """Run `main` and return its exit status; what is the user's to mend is said in one message.

    A UserError, or the system's refusal of a file (disk full, no permission), is printed to
    stderr as ``error: ...`` and gives 2; Ctrl-C gives 130; a reader of our output that has gone
    gives 141. Any other exception is a bug and passes through with its traceback.
    """
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # quiet at exit, too
        return BROKEN_PIPE
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """End the program with one message when an import in the block finds a package missing."""
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
    """Return the device that ``--device`` names, made CUDA's current one where it is a GPU.

    Raises:
        UserError: another name, or a GPU that is not there.
    """
    device = devices.choose(name, "--device ")
    if device.type == "cuda":
        torch.cuda.set_device(device.index)
    return device


def setup_logging() -> None:
    """Show the messages of fastunit's loggers, from INFO up, on stderr; calling it again is safe.

    They are written through tqdm, so that a running progress bar stays whole.
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
