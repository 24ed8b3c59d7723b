"""Convolution with one 1x1 filter, against the ATen twin in float64 and against eager PyTorch."""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels import conv_norm_act
from fastunit.kernels.conv import gemm

SHAPES = {
    # N, C, groups, H, W, options
    "a discriminator's": (2, 320, 1, 5, 3, {}),
    "two domains": (4, 16, 2, 4, 7, {"act": "lrelu", "slope": 0.2}),
    "one pixel": (3, 8, 1, 1, 1, {"act": "tanh"}),
    "uneven blocks": (2, 264, 2, 2, 2, {"act": "relu"}),
    "four channels": (2, 4, 1, 9, 5, {}),
}


def tensors(name):
    n, c, groups, *size, _ = SHAPES[name]
    x = torch.randn(n, c, *size).to(memory_format=torch.channels_last)
    return [x, torch.randn(groups, 1, c, 1, 1) / c**0.5, torch.randn(groups, 1)]


def run(name, given, dtype, impl, dy=None):
    leaves = [tensor.to(dtype).requires_grad_() for tensor in given]
    y = conv_norm_act(*leaves, **SHAPES[name][-1], impl=impl)
    dy = torch.randn(y.shape) if dy is None else dy
    found = [y.detach(), *torch.autograd.grad(y, leaves, dy.to(dtype))]
    return [value.double() for value in found], dy


@pytest.mark.parametrize(
    ("dtype", "factor"),
    # The interpreter truncates to bfloat16, which doubles an error.
    [(torch.float32, 2), (torch.float16, 2), (torch.bfloat16, 4)],
    ids=str,
)
@pytest.mark.parametrize("name", SHAPES)
def test_results_and_gradients_are_as_exact_as_pytorch_s(name, dtype, factor, monkeypatch):
    given = tensors(name)
    exact, dy = run(name, given, torch.float64, "aten")
    theirs, _ = run(name, given, dtype, "aten", dy)
    monkeypatch.setattr(gemm, "_gemm", None)  # no product is taken
    mine, _ = run(name, given, dtype, "triton", dy)
    for wanted, their, our in zip(exact, theirs, mine, strict=True):
        floor = 16 * torch.finfo(dtype).eps * wanted.abs().max()
        assert our.shape == wanted.shape
        assert (our - wanted).abs().max() <= factor * (their - wanted).abs().max() + floor


def test_half_precision_images_with_float32_filters():
    x, w, b = tensors("two domains")
    leaves = [x.bfloat16().requires_grad_(), w.requires_grad_(), b.requires_grad_()]
    y = conv_norm_act(*leaves, impl="triton")
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    assert torch.equal(gradients[2], torch.full((2, 1), 2 * 28.0))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_one_gradient_is_wanted(wanted):
    given = tensors("two domains")
    every, dy = run("two domains", given, torch.float32, "triton")
    given[wanted].requires_grad_()
    y = conv_norm_act(*given, **SHAPES["two domains"][-1], impl="triton")
    (alone,) = torch.autograd.grad(y, [given[wanted]], dy)
    assert torch.equal(alone.double(), every[1 + wanted])


def test_other_images_and_empty_batches_agree():
    x, w, b = tensors("two domains")
    wanted = conv_norm_act(x, w, b, impl="triton")
    found = conv_norm_act(x.contiguous(), w, b, impl="triton")  # by a product
    torch.testing.assert_close(found, wanted)
    leaves = [x[:0].requires_grad_(), w.requires_grad_(), b.requires_grad_()]
    y = conv_norm_act(*leaves, impl="triton")
    assert y.shape == (0, 1, 4, 7)
    assert not any(g.any() for g in torch.autograd.grad(y.sum(), leaves))
