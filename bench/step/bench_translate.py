"""Translation: ``python -m pytest bench/step/bench_translate.py``. images/s of one domain, a to b.

The release's networks with the same weights in fastunit, in training's default precision, and in
plain eager PyTorch (baseline.py); see contenders.py for the procedure and extra_info.
"""

from __future__ import annotations

import pytest

from bench.step.contenders import Contender
from bench.step.tasks import GPU
from fastunit import config

CASES = (
    [(256, 1), (256, 8), (256, 32), (512, 1), (1024, 1)]
    if GPU
    else [(64, 1), (64, 4), (128, 1), (256, 1)]
)
THROUGHPUT = ((256, 1), (256, 8)) if GPU else ((128, 1), (256, 1))  # of a plain run


@pytest.mark.parametrize(
    ("size", "batch"),
    [
        pytest.param(*case, marks=[pytest.mark.throughput] if case in THROUGHPUT else [])
        for case in CASES
    ],
)
def bench_translate(benchmark, compare, size, batch):
    benchmark.group = f"translate {size}x{size}, batch {batch}"
    keys = {"batch_size": batch, "crop_image_height": size, "crop_image_width": size}
    settings = config.from_dict(keys)
    found = {name: Contender(name, settings) for name in ("fastunit", "baseline")}
    if GPU:
        single = config.from_dict(keys | {"precision": "fp32"})
        found["fastunit in fp32"] = Contender("fastunit", single)
    compare("translate", found, batch)
