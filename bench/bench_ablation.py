"""What each saving is worth: ``python -m pytest bench/bench_ablation.py [--full]``.

The release's training step with all of bench/savings.py, with none, without one at a time and, on
the CPU, with one alone (bench/opponents.py). Without any it is still made of our
blocks: bench_step.py compares with the release's step.
"""

from __future__ import annotations

import pytest

from bench import savings
from bench.opponents import Opponent
from bench.tasks import GPU
from fastunit import config

FIRST, SECOND = ((256, 1), (256, 8)) if GPU else ((64, 1), (128, 1))
CASES = [FIRST, pytest.param(*SECOND, marks=pytest.mark.full)]


@pytest.mark.parametrize(("size", "batch"), CASES)
def bench_ablation(benchmark, compare, size, batch):
    benchmark.group = f"ablation {size}x{size}, batch {batch}"
    keys = {"batch_size": batch, "crop_image_height": size, "crop_image_width": size}
    variants = {"all on": [], "none": list(savings.SAVINGS)}
    variants |= {f"without {name}": [name] for name in savings.SAVINGS}
    if not GPU:
        for name in savings.SAVINGS:
            variants[f"only {name}"] = [other for other in savings.SAVINGS if other != name]
    found = {}
    for variant, names in variants.items():
        settings = config.resolve(dict(keys), savings.keys_without(names), {})
        found[variant] = Opponent("fastunit", settings, without=tuple(names))
    compare("step", found, 2 * batch, together=GPU)
