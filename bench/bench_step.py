"""Training step: ``python -m pytest bench/bench_step.py``. images/s counts both domains."""

from __future__ import annotations

import pytest
import torch

from fastunit.config import from_dict
from fastunit.session import Session

# size, batch, width of both networks: the demo's step, and a 128x128 one of twice its width.
CASES = [(64, 4, 16), (128, 1, 32)]


@pytest.mark.parametrize(("size", "batch", "dim"), CASES)
def bench_step(benchmark, device, size, batch, dim):
    settings = from_dict(
        {
            "gen": {"dim": dim, "n_res": 2},
            "dis": {"dim": dim, "n_layer": 3, "num_scales": 2},
            "share": {"enc": 1, "dec": 1},
            "batch_size": batch,
            "crop_image_height": size,
            "crop_image_width": size,
        }
    )
    session = Session(settings, device)
    x_a, x_b = (torch.rand(batch, 3, size, size, device=device).mul(2).sub(1) for _ in range(2))

    def step() -> None:
        session.advance(x_a, x_b)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=8, warmup_rounds=2)
    benchmark.extra_info["images_per_s"] = 2 * batch / benchmark.stats.stats.median
