"""Training step: ``python -m pytest bench/bench_step.py``. images/s counts both domains."""

from __future__ import annotations

import pytest
import torch

from fastunit import config
from fastunit.session import Session

# Our own configurations; photographs one at a time, as the paper trains.
CASES = {"demo": [], "photos": ["batch_size=1"]}


@pytest.mark.parametrize("name", CASES)
def bench_step(benchmark, device, name):
    settings = config.load(name, CASES[name])
    session = Session(settings, device)
    x_a, x_b = (
        torch.rand(settings.batch_size, 3, *settings.crop, device=device).mul(2).sub(1)
        for _ in range(2)
    )

    def step() -> None:
        session.advance(x_a, x_b)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=8, warmup_rounds=2)
    benchmark.extra_info["images_per_s"] = 2 * settings.batch_size / benchmark.stats.stats.median
