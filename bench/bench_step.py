"""Training steps: ``python -m pytest bench/bench_step.py [--full]``. images/s count both domains.

`bench_step` times our own configurations. `bench_opponents` times the release's networks in
fastunit and in bench/baseline.py, each in a process of its own. They take turns, so that whatever
slows the machine slows all; pytest-benchmark's own table shows fastunit's turns. extra_info has
for each the milliseconds of a step, images/s and peak memory, and, for instance, "baseline_ratio":
how many times as long as fastunit's turn the baseline's of the same round took; the median.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.baseline import BaselineStep, strongest
from fastunit import config
from fastunit.config import Config
from fastunit.session import Session

# Our own configurations; photographs one at a time, as the paper trains.
CASES = {"demo": [], "photos": ["batch_size=1"]}

GPU = torch.cuda.is_available()
STEPS = 10 if GPU else 1  # in a turn
WARM_UP = 5 if GPU else 1  # steps
SECONDS = 25  # for the rounds of a case, within:
FEWEST, MOST = 3, 15


@pytest.mark.parametrize("name", CASES)
def bench_step(benchmark, device, name):
    settings = config.load(name, CASES[name])
    session = Session(settings, device)
    x_a, x_b = _images(settings, device)

    def step() -> None:
        session.advance(x_a, x_b)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=8, warmup_rounds=2)
    benchmark.extra_info["images_per_s"] = 2 * settings.batch_size / benchmark.stats.stats.median


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" not in metafunc.fixturenames:
        return
    sizes, batches = ((64, 128, 256, 512), (1, 4, 8)) if GPU else ((64, 128), (1, 4))
    cases = [(size, batch) for size in sizes for batch in batches]
    if metafunc.config.getoption("--full") and not GPU:
        cases.append((256, 1))
    metafunc.parametrize(("size", "batch"), cases)


def bench_opponents(benchmark, pytestconfig, size, batch):
    benchmark.group = f"step {size}x{size}, batch {batch}"
    crop = {"crop_image_height": size, "crop_image_width": size}
    settings = config.from_dict({"batch_size": batch, **crop})  # otherwise the release's
    names = ["fastunit", "baseline"]
    if GPU or pytestconfig.getoption("--full"):
        names.append("strongest")  # compiling takes minutes
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(ProcessPoolExecutor(max_workers=1, mp_context=spawn))
            for name in names
        }
        warm = _warm_up(processes, settings)
        turns: dict[str, list[float]] = {name: [] for name in warm}

        def turn(*names: str) -> None:
            for name in names:
                turns[name].append(processes[name].submit(_seconds, STEPS).result() / STEPS)

        # The quickest, for the time of the first step may be that of compiling.
        rounds = SECONDS / (len(warm) * STEPS * min(warm.values()) / WARM_UP)
        benchmark.pedantic(
            turn,
            args=("fastunit",),
            setup=lambda: turn(*(name for name in turns if name != "fastunit")),
            rounds=min(max(round(rounds), FEWEST), MOST),
        )
        peaks = {name: processes[name].submit(_peak_mib).result() for name in turns}
    facts = benchmark.extra_info
    facts.update(dict.fromkeys(names, "out of memory"))
    for name, seconds in turns.items():
        facts[name] = _summary(seconds, 2 * batch) | {"peak_mib": peaks[name]}
        if name != "fastunit":
            ratios = np.divide(seconds, turns["fastunit"])
            facts[f"{name}_ratio"] = round(float(np.median(ratios)), 3)
    facts["images_per_s"] = facts["fastunit"]["images_per_s"]


def _warm_up(processes: dict[str, ProcessPoolExecutor], settings: Config) -> dict[str, float]:
    """Return the seconds of the first steps, by name; without opponents that do not fit."""
    seconds = {}
    for name, process in processes.items():
        process.submit(_open, name, settings).result()
        try:
            seconds[name] = process.submit(_seconds, WARM_UP).result()
        except torch.OutOfMemoryError:
            if name == "fastunit":
                raise
            process.shutdown()  # leave its memory to the others
    return seconds


def _summary(seconds: list[float], images: int) -> dict[str, float]:
    low, median, high = np.percentile(seconds, (20, 50, 80))
    found = {"p20_ms": 1e3 * low, "median_ms": 1e3 * median, "p80_ms": 1e3 * high}
    return {k: round(float(v), 3) for k, v in (found | {"images_per_s": images / median}).items()}


# ---- in the processes

_own = SimpleNamespace()  # what a process has: step, images, implementation, start (bytes)


def _open(implementation: str, settings: Config) -> None:
    """Make a training step; `submit` runs it in the main thread, as CUDA graphs need."""
    torch.backends.cudnn.benchmark = True  # as the release
    device = torch.device("cuda" if GPU else "cpu")
    _own.implementation, _own.start = implementation, _memory("VmRSS")
    form = torch.contiguous_format if implementation == "baseline" else torch.channels_last
    _own.images = [x.contiguous(memory_format=form) for x in _images(settings, device)]
    if implementation == "fastunit":
        _own.step = Session(settings, device).step
    elif implementation == "baseline":
        _own.step = BaselineStep(settings).to(device)
    else:
        _own.step = strongest(settings, device)


def _seconds(steps: int) -> float:
    """Return the seconds of some steps; on a GPU one more goes before, to have memory again."""
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        _own.step(*_own.images)
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        _own.step(*_own.images)
    if GPU:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if GPU:
        torch.cuda.empty_cache()  # for the other processes
    return seconds


def _peak_mib() -> float | None:
    """Return the peak of memory since there are networks; on a GPU that of the last turn.

    On a GPU what is reserved, for PyTorch does not count what CUDA graphs keep as allocated. None
    where a compiler ran on the CPU, whose memory cannot be told from that of the step.
    """
    if GPU:
        return round(torch.cuda.max_memory_reserved() / 2**20)
    if _own.implementation == "strongest":
        return None
    return round((_memory("VmHWM") - _own.start) / 2**20)


def _memory(field: str) -> int:
    """Return a size in bytes that Linux counts for this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return 1024 * int(re.search(rf"^{field}:\s*(\d+) kB", status, re.MULTILINE)[1])


def _images(settings: Config, device: torch.device) -> tuple[torch.Tensor, ...]:
    shape = settings.batch_size, 3, *settings.crop
    return tuple(torch.rand(shape, device=device).mul(2).sub(1) for _ in range(2))
