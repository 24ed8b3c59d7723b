"""Products into few channels against the ATen twin in float64, and against eager PyTorch."""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels import conv_gemm, conv_norm_act
from fastunit.kernels.conv.layouts import layouts

SHAPES = {
    # N, C, K, groups, filters, H, W, options
    "last layer": (2, 64, 3, 1, (7, 7), 6, 9, {"pad_mode": "reflect", "act": "tanh"}),
    "two domains": (4, 20, 3, 2, (7, 7), 5, 4, {"pad_mode": "replicate", "act": "lrelu"}),
    "one channel": (1, 16, 1, 1, (5, 5), 7, 3, {"act": "relu"}),
    "four channels": (3, 24, 4, 1, (3, 3), 2, 5, {}),
    "oblong filters": (1, 17, 2, 1, (1, 6), 4, 9, {}),
    "its own frame": (2, 16, 2, 2, (2, 5), 4, 9, {}),
    "with a norm": (2, 32, 3, 1, (7, 7), 6, 5, {"norm": "in", "act": "relu"}),
    "many tiles": (1, 16, 3, 1, (3, 3), 20, 33, {"act": "tanh"}),
}
INPUTS = {  # whose gradient is by columns
    "first layer": (2, 3, 64, 1, (7, 7), 6, 9, {"pad_mode": "reflect", "act": "relu"}),
    "first layers": (4, 3, 20, 2, (7, 7), 5, 4, {"norm": "in", "act": "lrelu"}),
    "one channel": (1, 1, 16, 1, (5, 5), 7, 3, {"pad_mode": "replicate"}),
    "oblong filters": (2, 2, 17, 2, (2, 6), 4, 9, {}),
    "many tiles": (1, 3, 16, 1, (3, 3), 20, 33, {"act": "tanh"}),
}


def run(case, dtype, impl, dy=None):
    n, c, k, groups, taps, *size, options = case
    torch.manual_seed(0)
    tensors = {
        "x": torch.randn(n, c, *size),
        "w": torch.randn(groups, k, c, *taps) / (c * taps[0] * taps[1]) ** 0.5,
        "b": torch.randn(groups, k),
    }
    tensors["x"] = tensors["x"].to(memory_format=torch.channels_last)
    given = {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}
    if taps[0] == taps[1]:
        options = options | {"padding": taps[0] // 2}
        y = conv_norm_act(**given, **options, impl=impl)
    else:
        y = conv_gemm(**given, impl=impl)
    dy = torch.randn(y.shape) if dy is None else dy
    found = [y.detach(), *torch.autograd.grad(y, list(given.values()), dy.to(dtype))]
    return [value.double() for value in found], dy


def by_columns(stride, taps, channels, channels_out):
    return [each.by_columns for each in layouts("conv", stride, (channels_out, channels, *taps))]


@pytest.mark.parametrize(
    ("dtype", "factor"),
    # The interpreter truncates to bfloat16, which doubles an error.
    [(torch.float32, 2), (torch.float16, 2), (torch.bfloat16, 4)],
    ids=str,
)
@pytest.mark.parametrize("case", [*SHAPES.values(), *INPUTS.values()], ids=[*SHAPES, *INPUTS])
def test_results_and_gradients_are_as_exact_as_pytorch_s(case, dtype, factor):
    taps, c, k = case[4], *case[1:3]
    assert by_columns(1, taps, c, k) == [k <= 4, c <= 4]
    exact, dy = run(case, torch.float64, "aten")
    theirs, _ = run(case, dtype, "aten", dy)
    mine, _ = run(case, dtype, "triton", dy)
    for wanted, their, our in zip(exact, theirs, mine, strict=True):
        floor = 16 * torch.finfo(dtype).eps * wanted.abs().max()
        assert our.shape == wanted.shape
        if wanted.any():  # an instance norm takes the bias away
            assert (our - wanted).abs().max() <= factor * (their - wanted).abs().max() + floor


def test_an_empty_batch():
    x, w = (
        torch.randn(0, 16, 6, 6, requires_grad=True),
        torch.randn(3, 16, 7, 7, requires_grad=True),
    )
    y = conv_norm_act(x, w, padding=3, impl="triton")
    dx, dw = torch.autograd.grad(y.sum(), (x, w))
    assert y.shape == (0, 3, 6, 6)
    assert dx.shape == x.shape
    assert not dw.any()


@pytest.mark.parametrize(
    "case",
    [(2, (7, 7), 64, 3), (2, (7, 7), 3, 64), (1, (7, 7), 3, 3), (1, (1, 1), 64, 1)],
)
def test_others_are_computed_by_taps(case):
    assert not any(by_columns(*case))
