"""A process that runs functions on request, in its main thread.

CUDA graphs need the main thread. The process's output goes to a file, whose end is part of every
error. `Worker.stop` ends the process and all that it has started.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

LIMIT = 300.0  # seconds without an answer after which a worker counts as hung
TAIL = 25  # last lines of its output that an error shows
_DEATH_SIGNAL = 1  # Linux's PR_SET_PDEATHSIG


class WorkerError(RuntimeError):
    """The process raised an exception, died or did not answer; with the end of its output."""


class WorkerOutOfMemory(WorkerError):
    """The GPU ran out of memory."""


class WorkerTimeout(WorkerError):
    """There was no answer in time."""


class Worker:
    """Runs functions in another process; a context manager that ends the process."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._output = tempfile.NamedTemporaryFile(prefix="fastunit-bench-")  # noqa: SIM115
        self._process = spawn.Process(target=_serve, args=(theirs, self._output.name))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def call(self, function: Callable, *args: Any) -> Any:
        """Return the function's result: `ask`, then `answer`."""
        self.ask(function, *args)
        return self.answer()

    def ask(self, function: Callable, *args: Any) -> None:
        """Start a function in the process; call `answer` before the next `ask`."""
        self._asked = function.__name__
        with suppress(OSError):  # the process has died: `answer` raises
            self._pipe.send((function, args))

    def answer(self, limit: float = LIMIT) -> Any:
        """Return the function's result.

        Raises:
            WorkerTimeout: there was no answer within `limit` seconds.
            WorkerError: the function raised an exception, or the process died.
        """
        if not self._pipe.poll(limit):
            self._signal(signal.SIGUSR1)  # faulthandler writes the stack
            time.sleep(0.5)
            raise WorkerTimeout(self._told(f"{self._asked} gave no answer in {limit:g} s"))
        try:
            problem, out_of_memory, result = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            raise WorkerError(
                self._told(f"the process of {self._asked} ended with {code}")
            ) from None
        if problem is not None:
            kind = WorkerOutOfMemory if out_of_memory else WorkerError
            raise kind(self._told(f"{self._asked}: {problem}"))
        return result

    def stop(self) -> None:
        """Kill the process and all that it has started."""
        self._signal(signal.SIGKILL)
        self._process.kill()  # if it has not made its own process group yet
        self._process.join()
        self._pipe.close()
        self._output.close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended, or has not begun
            if os.getpgid(self._process.pid) == self._process.pid:
                os.killpg(self._process.pid, number)

    def _told(self, what: str) -> str:
        """Return a message followed by the end of the process's output."""
        lines = Path(self._output.name).read_text(errors="replace").splitlines()
        return "\n".join([what, *(f"  | {line}" for line in lines[-TAIL:])])


def _serve(pipe: Connection, output: str) -> None:
    """Run in the process: answer requests until the other end is closed."""
    os.setpgid(0, 0)  # Ctrl-C reaches pytest alone, which then ends the group
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    log = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.register(signal.SIGUSR1)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        problem = result = None
        out_of_memory = False
        try:
            result = function(*args)
        except Exception as error:
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        pipe.send((problem, out_of_memory, result))
