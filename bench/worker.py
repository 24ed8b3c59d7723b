"""A process that runs one implementation of a task again and again, timed when asked.

`Worker` is the near end; the functions below it run in the process.
"""

from __future__ import annotations

import multiprocessing
import re
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench import savings
from bench.baseline import BaselineStep, strongest
from fastunit import allocator, precision, session
from fastunit.config import Config
from fastunit.unit import UNIT

GPU = torch.cuda.is_available()
# Of the images, where it is not that of our networks.
FORMATS = {"baseline": torch.contiguous_format, "strongest": torch.channels_last}
SENT = (RuntimeError, ValueError, torch.OutOfMemoryError)


class Worker:
    """Calls functions in a process of its own, in its main thread, as CUDA graphs need."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs,))
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
        self._pipe.send((function, args))

    def answer(self, patience: float | None = None) -> Any:
        """Return the function's result, or raise what it raised.

        Raises TimeoutError after `patience` seconds, RuntimeError where the process has died.
        """
        if not self._pipe.poll(patience):
            raise TimeoutError(f"{self._asked} took longer than {patience:g} s")
        try:
            error, result = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(f"the process of {self._asked} ended with {code}") from None
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """End the process, whatever it is doing; its memory is then free."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


# ---- in the process

_own = SimpleNamespace()  # what a process has: work, implementation, start (bytes)


def _serve(pipe: Connection) -> None:
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:  # the benchmark is over
            return
        error = result = None
        try:
            result = function(*args)
        except Exception as raised:
            if not isinstance(raised, torch.OutOfMemoryError):
                traceback.print_exc()
            # A compiler's own exceptions may not survive the way.
            error = raised if type(raised) in SENT else RuntimeError(repr(raised))
        pipe.send((error, result))


def begin(
    task: str, implementation: str, settings: Config, without: Sequence[str], warm_up: int
) -> None:
    """Make what `seconds` is to run, a task of `TASKS` without some of our savings; warm it up."""
    savings.do_without(without)
    if implementation == "fastunit" and not GPU:
        allocator.keep_freed_memory()  # as fastunit.train
    torch.backends.cudnn.benchmark = True  # as the release
    device = torch.device("cuda" if GPU else "cpu")
    _own.implementation, _own.start = implementation, memory("VmRSS")
    form = FORMATS.get(implementation, session.MEMORY_FORMAT)
    images = [x.contiguous(memory_format=form) for x in random_images(settings, device)]
    _own.work = TASKS[task](implementation, settings, device, *images)
    seconds(warm_up)


def seconds(count: int) -> float:
    """Return the seconds of `count` runs; on a GPU one more goes before, to have memory again."""
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        _own.work()
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        _own.work()
    if GPU:
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    if GPU:
        torch.cuda.empty_cache()  # for the other processes
    return elapsed


def peak_mib() -> float | None:
    """Return the peak of memory since `begin`; on a GPU that of the last turn.

    On a GPU what is reserved, for PyTorch does not count what CUDA graphs keep as allocated. None
    where a compiler ran on the CPU, whose memory cannot be told from that of the work.
    """
    if GPU:
        return round(torch.cuda.max_memory_reserved() / 2**20)
    if _own.implementation == "strongest":
        return None
    return round((memory("VmHWM") - _own.start) / 2**20)


def memory(field: str) -> int:
    """Return a size in bytes that Linux counts for this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return 1024 * int(re.search(rf"^{field}:\s*(\d+) kB", status, re.MULTILINE)[1])


def random_images(settings: Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a batch of each domain, [N, C, H, W], uniform in [-1, 1]."""
    return tuple(
        torch.rand(settings.batch_size, channels, *settings.crop, device=device).mul(2).sub(1)
        for channels in (settings.input_dim_a, settings.input_dim_b)
    )


def _step(
    implementation: str, settings: Config, device: torch.device, x_a: Tensor, x_b: Tensor
) -> Callable[[], object]:
    if implementation == "fastunit":
        step = session.Session(settings, device).step
    elif implementation == "baseline":
        step = BaselineStep(settings).to(device)
    else:
        step = strongest(settings, device)
    return lambda: step(x_a, x_b)


def _translate(
    implementation: str, settings: Config, device: torch.device, x_a: Tensor, x_b: Tensor
) -> Callable[[], object]:
    """Return the translation of x_a, in the configured precision where it is fastunit's."""
    if implementation == "fastunit":
        unit = UNIT(settings).to(device, memory_format=torch.channels_last)
        resolved = precision.resolve(settings.precision, device)

        def run() -> Tensor:
            with precision.products(resolved, device):
                return unit.translate(x_a, "a2b")

    else:
        nets = BaselineStep(settings).to(device)

        def run() -> Tensor:
            return nets.gen_b.decode(nets.gen_a.enc(x_a))

    return torch.inference_mode()(run)


TASKS = {"step": _step, "translate": _translate}
