"""Timing of operations: forward, backward and both, on a CPU or a GPU.

On a GPU a round replays a CUDA graph of `CALLS` calls, so that launches from Python are not timed;
small inputs stay in the L2 cache. pytest-benchmark's own table then shows the time of a round;
``extra_info["median_us"]`` is that of a call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch

MODES = ("forward", "backward", "both")
CALLS = 20  # in a CUDA graph
ROUNDS, WARM_UP = 15, 3

Run = Callable[[], "Tensor | tuple[Tensor, ...]"]


def measure(
    benchmark: Any,
    device: torch.device,
    mode: str,
    run: Run,
    leaves: Sequence[Tensor],
    *,
    eager: Run | None = None,
    moved_bytes: int | None = None,
    rounds: int = ROUNDS,
    timer: Callable[[], float] = time.perf_counter,
) -> None:
    """Time an operation and record the results in benchmark.extra_info.

    Args:
        benchmark: pytest-benchmark's fixture; receives median_us and the values below.
        device: of the inputs.
        mode: "forward" (without autograd), "backward" alone, or "both".
        run: the operation on fixed inputs; its results are differentiated with fixed gradients.
        leaves: the inputs to differentiate by.
        eager: the same with PyTorch's operations, timed too, in rounds between those of `run`:
            eager_ratio is its time / run's, of the fastest rounds.
        moved_bytes: least bytes read and written, on a GPU for gb_per_s.
        rounds: how many are timed.
        timer: of `eager`; that of `run` is the benchmark's own.

    On a GPU, peak_mib is the peak of allocated memory beyond the inputs.
    """
    # Backward is timed by itself, repeatedly: compiled code must not free what it needs.
    with functorch.patch(donated_buffer=False):
        _measure(benchmark, device, mode, run, leaves, eager, moved_bytes, rounds, timer)


def _measure(
    benchmark: Any,
    device: torch.device,
    mode: str,
    run: Run,
    leaves: Sequence[Tensor],
    eager: Run | None,
    moved_bytes: int | None,
    rounds: int,
    timer: Callable[[], float],
) -> None:
    calls = CALLS if device.type == "cuda" else 1
    work = _repeated(mode, run, leaves, device)
    other = None if eager is None else _repeated(mode, eager, leaves, device)
    theirs: list[float] = []

    def time_eager() -> None:
        if other is not None:
            start = timer()
            other()
            theirs.append(timer() - start)

    benchmark.pedantic(work, setup=time_eager, rounds=rounds, warmup_rounds=WARM_UP)
    seconds = benchmark.stats.stats.median / calls
    facts = benchmark.extra_info
    facts["median_us"] = round(seconds * 1e6, 2)
    if theirs:
        facts["eager_ratio"] = round(min(theirs) / benchmark.stats.stats.min, 3)
    if device.type == "cuda":
        facts["peak_mib"] = round(_peak_bytes(_work(mode, run, leaves)) / 2**20, 2)
        if moved_bytes is not None:
            facts["gb_per_s"] = round(moved_bytes / seconds / 1e9, 1)


def compiled(function: Callable) -> Callable:
    """Compile for the shapes of the first call, with an empty compilation cache."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def _work(mode: str, run: Run, leaves: Sequence[Tensor]) -> Callable[[], object]:
    if mode == "forward":
        return torch.no_grad()(run)
    found = _results(run)
    gradients = [torch.randn_like(y) for y in found]
    if mode == "backward":
        return lambda: torch.autograd.grad(found, leaves, gradients, retain_graph=True)
    return lambda: torch.autograd.grad(_results(run), leaves, gradients)


def _results(run: Run) -> tuple[Tensor, ...]:
    found = run()
    return found if isinstance(found, tuple) else (found,)


def _repeated(
    mode: str, run: Run, leaves: Sequence[Tensor], device: torch.device
) -> Callable[[], object]:
    """Return the work of a round: one call, or on a GPU a synchronized replay of `CALLS` calls."""
    if device.type != "cuda":
        return _work(mode, run, leaves)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # autograd runs backward on the stream of its forward
        work = _work(mode, run, leaves)
        for _ in range(WARM_UP):
            work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for _ in range(CALLS):
            work()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


def _peak_bytes(work: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
