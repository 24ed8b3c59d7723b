"""Data pipeline: ``python -m pytest bench/step/bench_data.py``.

`bench_data_wait` trains fastunit's configurations on both domains, as the training loop does.
data_wait is the share of time that the loop waits for the loaders, the median over rounds;
images/s counts both domains. The demo reads its own small images, the others JPEG files of 640x480
pixels.

`bench_pipeline` only loads data: photographs of one domain, resized, cropped and flipped, with
fastunit's loader and with loaders.py, as the release does, in as many processes as fastunit has
threads. See contenders.py for the procedure and extra_info.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.step.contenders import Contender
from fastunit import config
from fastunit.data.builtin import demo_root
from fastunit.data.discovery import find_domains
from fastunit.training.state import TrainState

Image = pytest.importorskip(
    "PIL.Image", reason="data pipeline: needs Pillow: pip install 'fastunit[bench]'"
)
pytest.importorskip(
    "nvidia.dali", reason="data pipeline: needs NVIDIA DALI: pip install 'fastunit[bench]'"
)

GPU = torch.cuda.is_available()
BATCHES = 20
FILES, WIDTH, HEIGHT = 32, 640, 480  # of a domain of photographs
# Batches in a round, configuration and overrides; the release's networks only on a GPU.
CASES = {
    "demo": (BATCHES, "demo", []),
    "photos": (BATCHES if GPU else 1, "photos", ["batch_size=1"]),
}
if GPU:
    sizes = ["new_size=256", "crop_image_height=256", "crop_image_width=256"]
    wide = [*sizes, "gen.dim=64", "dis.dim=64"]
    CASES["release 256x256, batch 1"] = BATCHES, "photos", [*wide, "batch_size=1"]
    CASES["release 256x256, batch 8"] = BATCHES, "photos", [*wide, "batch_size=8"]
BATCH = 8  # of bench_pipeline


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with trainA and trainB: JPEG files of coarse and fine detail."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for domain in ("trainA", "trainB"):
        (root / domain).mkdir()
        for index in range(FILES):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            pixels = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
            fine = rng.normal(0, 8, pixels.shape)
            image = Image.fromarray((pixels + fine).clip(0, 255).astype(np.uint8))
            image.save(root / domain / f"{index}.jpg", quality=90)
    return root


@pytest.mark.parametrize("case", CASES)
def bench_data_wait(benchmark, device: torch.device, photographs: Path, case: str):
    from fastunit.training.trainer import Clock  # here: needs matplotlib, bench_pipeline does not

    batches, name, overrides = CASES[case]
    root = demo_root() if name == "demo" else photographs
    keys = {"data_root": str(root), "data": {"builtin": "none"}}
    settings = config.resolve(config.read_yaml(name), overrides, keys)
    state = TrainState(settings, device)
    loaders = state.loaders(find_domains(settings))
    shares: list[float] = []

    def train() -> None:
        clock = Clock()
        for _ in range(batches):
            state.advance(*clock.next_batch(loaders))
        if device.type == "cuda":
            torch.cuda.synchronize()
        shares.append(clock.read()["data_wait"])

    benchmark.pedantic(train, rounds=5, warmup_rounds=1)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["images_per_s"] = 2 * settings.batch_size * batches / seconds
    benchmark.extra_info["data_wait"] = statistics.median(shares[1:])


@pytest.mark.throughput
@pytest.mark.parametrize("size", [256])
@pytest.mark.parametrize("workers", [1, 2])
def bench_pipeline(benchmark, compare, photographs: Path, size: int, workers: int):
    benchmark.group = f"data {size}x{size}, workers {workers}"
    keys = {"data_root": str(photographs), "num_workers": workers, "batch_size": BATCH}
    crop = {"new_size": size, "crop_image_height": size, "crop_image_width": size}
    settings = config.from_dict(keys | crop)
    found = {name: Contender(name, settings) for name in ("fastunit", "baseline")}
    compare("data", found, BATCH)
