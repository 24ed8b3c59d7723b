"""Training steps: ``pytest bench/step/bench_step.py [--full]``. images/s counts both domains.

`bench_step` times fastunit's configurations. `bench_opponents` compares the release's networks in
fastunit and in baseline.py; see contenders.py for the procedure and extra_info. On a GPU extra_info
also has floor_ms, from bench.model.roofline, and floor_percent, the floor's share of fastunit's
time.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from bench.model import peaks, roofline
from bench.step.contenders import Contender
from bench.step.tasks import GPU, random_images
from fastunit import config
from fastunit.training.state import TrainState

# fastunit's configurations; photographs with batch size 1, as in the paper.
CASES = {"demo": [], "photos": ["batch_size=1"]}
# Cases that include the strongest baseline, which compiles for minutes, without --full.
STRONGEST = ((256, 1), (256, 8), (512, 1)) if GPU else ()
# Cases of a plain ``pytest bench/``; 128x128 with batch 4 would take 6 GB on a CPU.
THROUGHPUT = ((256, 1), (256, 8)) if GPU else ((64, 1), (64, 4), (128, 1))


@pytest.mark.parametrize("name", CASES)
def bench_step(benchmark, device, name):
    settings = config.load(name, CASES[name])
    state = TrainState(settings, device)
    x_a, x_b = random_images(settings, device)

    def step() -> None:
        state.advance(x_a, x_b)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=8, warmup_rounds=5 if GPU else 2)
    benchmark.extra_info["images_per_s"] = 2 * settings.batch_size / benchmark.stats.stats.median


def _cases() -> list:
    """Return size and batch of each comparison, with the markers that select it (`selection`)."""
    sizes, batches = ((64, 128, 256, 512), (1, 4, 8)) if GPU else ((64, 128), (1, 4))
    cases = [
        pytest.param(*case, marks=[pytest.mark.throughput] if case in THROUGHPUT else [])
        for case in itertools.product(sizes, batches)
    ]
    return cases if GPU else [*cases, pytest.param(256, 1, marks=pytest.mark.full)]


@pytest.mark.parametrize(("size", "batch"), _cases())
def bench_opponents(benchmark, compare, pytestconfig, size, batch):
    benchmark.group = f"step {size}x{size}, batch {batch}"
    crop = {"crop_image_height": size, "crop_image_width": size}
    settings = config.from_dict({"batch_size": batch, **crop})  # otherwise the release's
    names = ["fastunit", "baseline"]
    wanted = pytestconfig.getoption("--full") or (size, batch) in STRONGEST
    if wanted and pytestconfig.getoption("--patience") != 0:
        names.append("strongest")
    compare("step", {name: Contender(name, settings) for name in names}, 2 * batch)
    if GPU:
        facts = benchmark.extra_info
        floor = roofline.floor_ms(settings, peaks.measured())
        facts["floor_ms"] = round(floor, 3)
        facts["floor_percent"] = round(100 * floor / facts["fastunit"]["median_ms"], 1)
