"""FlopCounterMode counts what it counts for PyTorch's own convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastunit.kernels import conv_gemm, conv_norm_act, conv_transpose, upsample_conv

X, W = torch.rand(2, 3, 9, 8), torch.rand(5, 3, 3, 3)
CASES = {
    "conv": (
        lambda x, w: conv_norm_act(x, w, stride=2, padding=1, norm="in", act="relu"),
        lambda x, w: F.conv2d(x, w, stride=2, padding=1),
    ),
    "gemm": (lambda x, w: conv_gemm(x, w), lambda x, w: F.conv2d(x, w)),
    "groups": (
        lambda x, w: conv_norm_act(x, torch.stack([w, w])),
        lambda x, w: F.conv2d(x, w),
    ),
    "upsample": (
        lambda x, w: upsample_conv(x, w, padding=1),
        lambda x, w: F.conv2d(F.interpolate(x, scale_factor=2), w, padding=1),
    ),
    "transpose": (
        lambda x, w: conv_transpose(x, w.transpose(0, 1), padding=1, output_padding=1),
        lambda x, w: F.conv_transpose2d(
            x, w.transpose(0, 1), stride=2, padding=1, output_padding=1
        ),
    ),
}


def counted(f, gradients: tuple[bool, bool]) -> tuple[int, int]:
    """Return the FLOPs of forward, and of both passes."""
    x, w = (each.clone().requires_grad_(need) for each, need in zip((X, W), gradients, strict=True))
    with FlopCounterMode(display=False) as counter:
        y = f(x, w)
        forward = counter.get_total_flops()
        if any(gradients):
            y.sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("gradients", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("name", CASES)
def test_counts_agree_with_pytorch(name, gradients):
    mine, theirs = CASES[name]
    found = counted(mine, gradients)
    assert found == counted(theirs, gradients) and found[0] > 0
