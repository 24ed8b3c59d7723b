"""The blocks on PyTorch's kernels: the filters' gradient as one product of matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastunit.kernels import conv_norm_act, upsample_conv
from fastunit.kernels.conv import aten

FORMATS = (torch.contiguous_format, torch.channels_last)


def gradients(op, x: Tensor, w: Tensor, **options) -> tuple[Tensor, Tensor]:
    x, w = (value.clone().requires_grad_() for value in (x, w))
    y = op(x, w, **options)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return torch.autograd.grad(y, (x, w), weights)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("op", "options"),
    [
        (conv_norm_act, {"padding": 1, "stride": 2}),
        (conv_norm_act, {"padding": 1, "pad_mode": "reflect", "norm": "in"}),
        (conv_norm_act, {}),
        (upsample_conv, {"padding": 1}),
    ],
)
def test_few_pixels_change_no_gradient(op, options, groups, memory_format, monkeypatch):
    x = torch.randn(4, 3, 7, 8, dtype=torch.float64).contiguous(memory_format=memory_format)
    w = torch.randn(groups, 5, 3, 3, 3, dtype=torch.float64)
    calls, whole = [], aten.filter_gradient

    def seen(*args):
        calls.append(args)
        return whole(*args)

    monkeypatch.setattr(aten, "filter_gradient", seen)
    few = gradients(op, x, w, **options)
    assert len(calls) == (0 if op is upsample_conv else groups)
    monkeypatch.setattr(aten, "FEW_PIXELS", 0)
    many = gradients(op, x, w, **options)
    assert len(calls) == (0 if op is upsample_conv else groups)
    for mine, other in zip(few, many, strict=True):
        assert torch.allclose(mine, other, rtol=1e-12, atol=1e-12)


def test_it_is_as_accurate_as_pytorch_in_float32():
    x, dy = torch.randn(2, 128, 18, 18), torch.randn(2, 256, 8, 8)
    w = torch.empty(256, 128, 4, 4)
    mask = [False, True, False]

    def backward(dy: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return torch.ops.aten.convolution_backward(
            dy, x, w, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1, mask
        )[1]

    wanted = backward(dy.double(), x.double(), w.double())
    error = (aten.filter_gradient(dy, x, w.shape[1:], 2) - wanted).abs().max()
    assert error <= 2 * (backward(dy, x, w) - wanted).abs().max()
