"""How many variants of the kernels a training step has Triton compile."""

from __future__ import annotations

import pytest
import torch

from bench.gpu import aot
from fastunit import config
from fastunit.kernels.common import runtime
from fastunit.kernels.common.variants import variants

# The release's networks.
RELEASE = ["gen.dim=64", "dis.dim=64", "share.enc=0", "share.dec=0"]
BATCHES = (1, 8)

pytestmark = pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter compiles nothing")


@pytest.fixture(scope="module")
def launches():
    """Return the launches of a step at 256x256 in bf16 on an H100, of both batch sizes."""
    found = []
    for batch in BATCHES:
        settings = config.load("photos", [*aot.SIZES, *RELEASE, f"batch_size={batch}"])
        found += aot.step_launches(settings, 90, torch.bfloat16)
    return found


def test_two_batch_sizes_share_few_variants(launches):
    found = variants(launches, 90)
    assert len(found) <= 66
    assert sum(found.values()) == len(launches) > 800


def test_every_count_is_some_kernels_argument(launches):
    named = {name for launch in launches for name in launch.kernel.arg_names}
    assert set(runtime.COUNTS) <= named


def test_counts_are_not_specialised(launches):
    for variant in variants(launches, 90):
        counted = {variant.arguments[name] for name in runtime.COUNTS if name in variant.arguments}
        assert counted <= {"i32"}, variant.name
