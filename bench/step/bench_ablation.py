"""Ablations of the training step: ``python -m pytest bench/step/bench_ablation.py [--full]``.

The step of the release's networks with all optimizations of ablations.py, with none, without one
at a time and, on the CPU, with one alone; on a GPU also with each of those that are off by default,
and with both. Without any it still uses fastunit's blocks; bench_step.py compares with the
release's step.
"""

from __future__ import annotations

import pytest

from bench.step import ablations
from bench.step.contenders import Contender
from bench.step.tasks import GPU
from fastunit import config

FIRST, SECOND = ((256, 1), (256, 8)) if GPU else ((64, 1), (128, 1))
CASES = [FIRST, pytest.param(*SECOND, marks=pytest.mark.full)]


@pytest.mark.parametrize(("size", "batch"), CASES)
def bench_ablation(benchmark, compare, size, batch):
    benchmark.group = f"ablation {size}x{size}, batch {batch}"
    keys = {"batch_size": batch, "crop_image_height": size, "crop_image_width": size}
    variants = {"all on": [], "none": list(ablations.ABLATIONS)}
    variants |= {f"without {name}": [name] for name in ablations.ABLATIONS}
    if not GPU:
        for name in ablations.ABLATIONS:
            variants[f"only {name}"] = [other for other in ablations.ABLATIONS if other != name]
    found = {}
    for variant, names in variants.items():
        settings = config.resolve(dict(keys), ablations.keys_without(names), {})
        found[variant] = Contender("fastunit", settings, without=tuple(names))
    for name in ablations.ADDITIONS if GPU else ():
        found[f"with {name}"] = found["all on"]._replace(added=(name,))
    if GPU:
        found["with both"] = found["all on"]._replace(added=tuple(ablations.ADDITIONS))
    compare("step", found, 2 * batch, together=GPU)
