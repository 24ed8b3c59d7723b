"""The sum of the splits of a filters' gradient, in the parameter's own layout, against the twin."""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels.conv import gemm
from fastunit.kernels.conv.phases import combined_filters_backward

SHAPES = {  # splits, then G, K, C, R, S of the filters
    "3x3": (3, 1, 6, 5, 3, 3),
    "two domains": (2, 2, 9, 4, 4, 4),
    "one split, oblong": (1, 1, 3, 12, 2, 3),
    "wider than a tile": (2, 1, 70, 36, 1, 1),
}
FORMATS = {
    "contiguous": lambda dw: dw.contiguous(),
    "channels_last": lambda dw: dw.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
}


def summed(partial, shape, combined):
    """Return the gradient [G, K, C, R, S] by PyTorch's operations."""
    _, _, k, c, _, _ = shape
    dw = partial.sum(0)[..., :c, :k].permute(0, 4, 3, 1, 2)
    # Combined filters have the channels of w the other way round.
    return combined_filters_backward(dw).transpose(1, 2) if combined else dw


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", SHAPES)
def test_it_sums_as_pytorch_does(name, form, combined):
    splits, g, k, c, r, s = shape = SHAPES[name]
    pitch, pitch_dy = -(-c // 8) * 8, -(-k // 8) * 8
    partial = torch.randn(splits, g, r + combined, s + combined, pitch, pitch_dy)
    partial[..., c:, :], partial[..., k:] = float("nan"), float("nan")  # is not read
    exact = summed(partial.double(), shape, combined)
    dw = FORMATS[form](torch.full((g, k, c, r, s), float("nan")))
    for add in (False, True):
        gemm._sum_splits(partial, dw, pitch, pitch_dy, combined, add)
        torch.testing.assert_close(dw.double(), exact * (1 + add), rtol=1e-5, atol=1e-5)
    half = torch.empty_like(dw, dtype=torch.bfloat16)
    gemm._sum_splits(partial, half, pitch, pitch_dy, combined, False)
    torch.testing.assert_close(half.double(), exact, rtol=2**-7, atol=1e-4)


def test_a_gradient_may_lie_apart_in_a_larger_buffer():
    partial = torch.randn(2, 2, 1, 1, 8, 8)
    buffer = torch.zeros(200)
    dw = buffer.as_strided((2, 3, 4, 1, 1), (100, 4, 1, 1, 1), 5)
    gemm._sum_splits(partial, dw, 8, 8, False, True)
    torch.testing.assert_close(dw, summed(partial, (2, 2, 3, 4, 1, 1), False))
    assert buffer.count_nonzero() == dw.numel()
