"""A process that calls functions one after the other when asked, in its main thread.

CUDA graphs need the main thread. What the process prints goes to a file of its own, the end of
which is part of every error. It and all that it starts end with `Worker.stop`.
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

LIMIT = 300.0  # seconds for an answer; later, a worker counts as hung
TAIL = 25  # lines of its output in an error
_DEATH_SIGNAL = 1  # Linux's PR_SET_PDEATHSIG


class WorkerError(RuntimeError):
    """What the process raised, or that it died or gave no answer; with the end of its output."""


class WorkerOutOfMemory(WorkerError):
    """The GPU's memory was not enough."""


class WorkerTimeout(WorkerError):
    """There was no answer in time."""


class Worker:
    """Calls functions in a process of its own; a context manager that ends it."""

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
        """Return the function's result, as `ask` and `answer` do."""
        self.ask(function, *args)
        return self.answer()

    def ask(self, function: Callable, *args: Any) -> None:
        """Let the process begin a function; its `answer` must be fetched before the next."""
        self._asked = function.__name__
        with suppress(OSError):  # it has died: `answer` says so
            self._pipe.send((function, args))

    def answer(self, limit: float = LIMIT) -> Any:
        """Return the function's result.

        Raises WorkerTimeout after `limit` seconds, WorkerError for whatever the function raised
        and where the process has died.
        """
        if not self._pipe.poll(limit):
            self._signal(signal.SIGUSR1)  # faulthandler writes where it is
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
        """End the process and all that it started, whatever they are doing."""
        self._signal(signal.SIGKILL)
        self._process.kill()  # before it has its own group
        self._process.join()
        self._pipe.close()
        self._output.close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended, or has not begun
            if os.getpgid(self._process.pid) == self._process.pid:
                os.killpg(self._process.pid, number)

    def _told(self, what: str) -> str:
        """Return a message with the end of what the process has printed."""
        lines = Path(self._output.name).read_text(errors="replace").splitlines()
        return "\n".join([what, *(f"  | {line}" for line in lines[-TAIL:])])


def _serve(pipe: Connection, output: str) -> None:
    """Be the process: answer until the other end is closed."""
    os.setpgid(0, 0)  # Ctrl-C is for pytest alone, which then ends the group
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
