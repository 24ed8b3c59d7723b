"""Other projects' networks before and after `accelerate`: ``pytest bench/ops/bench_accelerate.py``.

Forward and backward of one image; eager_ratio is the original's time over the accelerated one's,
in turns (CPU time on a CPU), and `fused` the number of fused operations. On a CPU in float32 nearly
all patterns are left alone (fastunit/fusion/rules.py), and the ratio says what the wrapper costs;
`every` fuses all of them.
"""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

import fastunit
from bench.ops import harness
from bench.ops.other_networks import CASES, tensors
from bench.step.tasks import GPU
from fastunit.fusion import rules

LARGE = [pytest.param(size, marks=pytest.mark.full) for size in (128, 256)]
SIZES = [256] if GPU else [64, *LARGE]
ROUNDS = {64: 30, 128: 15, 256: 15 if GPU else 5}
TIMER = time.perf_counter if GPU else time.process_time  # which other processes leave alone


@pytest.mark.benchmark(timer=TIMER)
@pytest.mark.parametrize("patterns", ["rules", pytest.param("every", marks=pytest.mark.full)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def bench_accelerate(benchmark, device, monkeypatch, name, size, patterns):
    torch._dynamo.reset()
    if patterns == "every":
        monkeypatch.setattr(rules, "loss", lambda chain: None)
    model = CASES[name]().to(device)
    x = (torch.rand(1, 3, size, size, device=device) * 2 - 1).requires_grad_()
    fast = fastunit.accelerate(model, example=x)
    benchmark.extra_info["fused"] = len(fast.acceleration.fused) // fast.acceleration.graphs
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    fused, eager = _runs(fast, x), _runs(model, x)
    rounds = ROUNDS[size]
    harness.measure(
        benchmark, device, "both", fused, leaves, eager=eager, rounds=rounds, timer=TIMER
    )


def _runs(model: nn.Module, x: Tensor) -> harness.Run:
    def run() -> tuple[Tensor, ...]:
        return tuple(tensors(model(x)))

    return run
