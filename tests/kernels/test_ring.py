"""What a reflect-padded upsampling block launches on a GPU, by count; no GPU needed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastunit.kernels.common import runtime
from fastunit.kernels.conv import launch
from fastunit.kernels.conv.plan import NeededGradients, Plan

RING_FORWARD = {"lines_kernel": 1, "taps_kernel": 1, "conv_gemm_kernel": 1}
RING_BACKWARD = RING_FORWARD | {
    "lines_backward_kernel": 1,
    "wgrad_kernel": 1,
    "taps_backward_kernel": 1,
}
VIEWS = {f"aten::{name}" for name in ("as_strided", "detach", "permute", "slice", "view")}


@pytest.fixture(autouse=True)
def _poison():
    """Leave memory as it is: to fill it would count as an operation."""


class Operations(TorchDispatchMode):
    """Counts the operations that PyTorch runs, by name."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def counts(pad_mode, norm="ln"):
    """Return kernels and PyTorch's operations, forward and backward, of a block of two domains."""
    plan = Plan("upsample", 1, 2, 0, pad_mode, norm, 1e-5, "relu", 0.0, 0, "zero", "triton")
    x = torch.zeros(2, 24, 16, 12, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    w, b = torch.zeros(2, 16, 24, 5, 5), torch.zeros(2, 16)
    everything = NeededGradients(x=True, w=True, sums=True, residual=False)
    found = []
    with runtime.recorded_launches(90) as launches:
        with Operations() as operations:
            y, *saved = launch.fprop(plan, x, w, b, b, b, None, None)
        found.append((launches.copy(), operations.found))
        launches.clear()
        with Operations() as operations:
            parameters = w, b, b, b, None
            launch.backward(plan, torch.zeros_like(y), x.shape, *saved, *parameters, everything)
        found.append((launches, operations.found))
    return [
        (Counter(each.kernel.fn.__name__ for each in kernels), operations)
        for kernels, operations in found
    ]


@pytest.mark.skipif(runtime.INTERPRET, reason="launches are recorded, not interpreted")
def test_a_reflected_border_takes_few_launches_and_nothing_of_pytorch_s():
    reflect, replicate = counts("reflect"), counts("replicate")
    for (ours, more), (fewer, same), ring in zip(
        reflect, replicate, (RING_FORWARD, RING_BACKWARD), strict=True
    ):
        assert ours - fewer == ring
        assert set(more - same) <= {"aten::empty", "aten::new_empty", *VIEWS}
