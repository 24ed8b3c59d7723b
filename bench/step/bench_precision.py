"""The training step in each precision: ``python -m pytest bench/step/bench_precision.py``.

On a CPU bf16 is fast only with hardware support (AMX, or AVX-512 with BF16).
"""

from __future__ import annotations

import pytest

from bench.step.contenders import Contender
from bench.step.tasks import GPU
from fastunit import config

PRECISIONS = ("bf16", "tf32", "fp32") if GPU else ("fp32", "bf16")


@pytest.mark.parametrize(("size", "batch"), [(256, 1)] if GPU else [(64, 1), (128, 1)])
def bench_precision(benchmark, compare, size, batch):
    benchmark.group = f"precision {size}x{size}, batch {batch}"
    keys = {"batch_size": batch, "crop_image_height": size, "crop_image_width": size}
    settings = {name: config.from_dict(keys | {"precision": name}) for name in PRECISIONS}
    found = {name: Contender("fastunit", setting) for name, setting in settings.items()}
    compare("step", found, 2 * batch)
