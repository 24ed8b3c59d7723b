"""Data pipeline: ``python -m pytest bench/bench_data.py``. images/s of one domain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastunit.data import DomainLoader
from fastunit.datasets import demo_root

BATCHES = 20


@pytest.mark.parametrize("threads", [1, 2])
def bench_loader(benchmark, device: torch.device, threads: int):
    files = sorted(Path(demo_root() / "trainA").iterdir())
    loader = DomainLoader(
        files,
        channels=3,
        batch_size=8,
        crop=(64, 64),
        new_size=64,
        seed=0,
        stream=0,
        device=device,
        threads=threads,
    )

    def read() -> None:
        for _ in range(BATCHES):
            next(loader)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(read, rounds=5, warmup_rounds=1)
    benchmark.extra_info["images_per_s"] = BATCHES * 8 / benchmark.stats.stats.median
