"""The tasks that a worker process runs: a training step, a translation, loading a batch.

`begin` prepares a task of `TASKS` for one implementation, `seconds` times it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from bench.step import ablations, loaders
from bench.step.baseline import BaselineStep, strongest
from fastunit.common import precision
from fastunit.config import Config
from fastunit.data.pipeline import DomainLoader
from fastunit.models.unit import UNIT
from fastunit.training import allocator, state

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
# Memory format of the images, if it is not that of fastunit's networks.
FORMATS = {"baseline": torch.contiguous_format, "strongest": torch.channels_last}
# Untimed batches before the timed ones: more than any loader prefetches, so that none has a head
# start.
SETTLING = 8

_own = SimpleNamespace()  # this process's task: work, before (runs), implementation, start (bytes)


def begin(
    task: str,
    implementation: str,
    settings: Config,
    without: Sequence[str],
    added: Sequence[str],
    warm_up: int,
) -> None:
    """Prepare a task of `TASKS`, without and with optimizations, for `seconds`; warm it up."""
    ablations.do_without(without)
    ablations.add(added)
    if implementation == "fastunit" and not GPU:
        allocator.keep_freed_memory()  # as in fastunit.train
    torch.backends.cudnn.benchmark = True  # as in the release
    _own.task, _own.implementation, _own.start = task, implementation, memory("VmRSS")
    # On a GPU an untimed run comes first: the memory cache was emptied after the last turn.
    _own.before = SETTLING if task == "data" else int(GPU)
    _own.work = TASKS[task](implementation, settings)
    seconds(warm_up)


def seconds(count: int) -> float:
    """Return the seconds of `count` runs."""
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(_own.before):
        _own.work()
    if GPU:
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
    """Return the peak memory since `begin`; on a GPU that of the last turn.

    On a GPU it is the reserved memory, as PyTorch does not count the memory of CUDA graphs as
    allocated. None if unknown: a compiler ran in the process, or it has worker processes.
    """
    if _own.task == "data":
        return None
    if GPU:
        return round(torch.cuda.max_memory_reserved() / 2**20)
    if _own.implementation == "strongest":
        return None
    return round((memory("VmHWM") - _own.start) / 2**20)


def memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return 1024 * int(re.search(rf"^{field}:\s*(\d+) kB", status, re.MULTILINE)[1])


def random_images(settings: Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a batch of each domain, [N, C, H, W], uniform in [-1, 1]."""
    return tuple(
        torch.rand(settings.batch_size, channels, *settings.crop, device=device).mul(2).sub(1)
        for channels in (settings.input_dim_a, settings.input_dim_b)
    )


def _images(implementation: str, settings: Config) -> list[Tensor]:
    form = FORMATS.get(implementation, state.MEMORY_FORMAT)
    return [x.contiguous(memory_format=form) for x in random_images(settings, DEVICE)]


def _step(implementation: str, settings: Config) -> Callable[[], object]:
    x_a, x_b = _images(implementation, settings)
    if implementation == "fastunit":
        step = state.TrainState(settings, DEVICE).step
    elif implementation == "baseline":
        step = BaselineStep(settings).to(DEVICE)
    else:
        step = strongest(settings, DEVICE)
    return lambda: step(x_a, x_b)


def _translate(implementation: str, settings: Config) -> Callable[[], object]:
    """Return the translation of x_a; fastunit's in the configured precision.

    Both implementations have the same weights: those of fastunit's networks with a fixed seed.
    """
    x_a, _ = _images(implementation, settings)
    torch.manual_seed(0)
    unit = UNIT(settings)
    if implementation == "fastunit":
        unit.to(DEVICE, memory_format=torch.channels_last)
        resolved = precision.resolve(settings.precision, DEVICE)

        def run() -> Tensor:
            with precision.autocast(resolved, DEVICE):
                return unit.translate(x_a, "a2b")

    else:
        with torch.device("meta"):  # do not allocate the weights twice: memory is measured
            nets = BaselineStep(settings)
        nets.load_state_dict(unit.state_dict(), assign=True)
        nets.to(DEVICE)

        def run() -> Tensor:
            return nets.gen_b.decode(nets.gen_a.enc(x_a))

    return torch.inference_mode()(run)


def _data(implementation: str, settings: Config) -> Callable[[], object]:
    """Return the loading of a batch of domain a, with `num_workers` threads or processes."""
    files = sorted(Path(settings.data_root, "trainA").iterdir())
    new_size = settings.domain("a").new_size
    if implementation == "fastunit":
        batches = DomainLoader(
            files,
            channels=settings.input_dim_a,
            batch_size=settings.batch_size,
            crop=settings.crop,
            new_size=new_size,
            seed=settings.seed,
            stream=0,
            device=DEVICE,
            threads=settings.num_workers,
        )
    else:
        batches = loaders.pillow_batches(
            files,
            batch_size=settings.batch_size,
            crop=settings.crop,
            new_size=new_size,
            device=DEVICE,
            workers=settings.num_workers,
        )
    return lambda: next(batches)


TASKS = {"step": _step, "translate": _translate, "data": _data}
