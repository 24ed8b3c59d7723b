"""Arguments as PyTorch's modules have them, and one image without its batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastunit.kernels import (
    conv_gemm,
    conv_norm_act,
    conv_transpose,
    instance_norm_act,
    norm_act,
    upsample_conv,
)
from tests.support.tensors import rand

X, W = rand(2, 3, 7, 6), rand(4, 3, 3, 3)


def test_a_modules_own_attributes():
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1).double()
    assert conv.padding_mode == "zeros" and conv.stride == (2, 2)
    given = {"stride": conv.stride, "padding": conv.padding, "pad_mode": conv.padding_mode}
    y = conv_norm_act(X, conv.weight, conv.bias, **given, act="leaky_relu", norm=None)
    torch.testing.assert_close(y, nn.functional.leaky_relu(conv(X), 0.2))
    other = nn.ConvTranspose2d(3, 4, 3, 2, 1, 1).double()
    names = ("stride", "padding", "output_padding")
    y = conv_transpose(
        X, other.weight, other.bias, **{name: getattr(other, name) for name in names}
    )
    torch.testing.assert_close(y, other(X))


def test_one_image():
    residual = rand(4, 7, 6)
    options = {"padding": 1, "norm": "in", "act": "relu"}
    y = conv_norm_act(X[0], W, residual=residual, **options)
    torch.testing.assert_close(y, conv_norm_act(X[:1], W, residual=residual[None], **options)[0])
    for f in (lambda x: norm_act(x, norm="ln"), lambda x: instance_norm_act(x=x, act="tanh")):
        torch.testing.assert_close(f(X[0]), f(X[:1])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": (2, 1)}, r"stride=\(2, 1\) must be the same for both axes"),
        ({"padding": [0, 1]}, r"padding=\[0, 1\] must be the same for both axes"),
        ({"padding": (0, 1, 2)}, r"padding=\(0, 1, 2\) must be the same"),
        ({"stride": (1.5, 1.5)}, r"stride=1\.5 must be an integer"),
        ({"act": "mish"}, "act='mish' must be one of none, relu"),
        ({"act": "gelu", "halo": 1}, "act='gelu' takes no halo"),
        ({"act": "gelu", "residual": X}, r"residual of shape \(2, 3, 7, 6\) must have x's shape"),
    ],
)
def test_what_they_do_not_take_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        conv_norm_act(X, W, **options)


@pytest.mark.parametrize("act", ["gelu", "silu", "sigmoid", "hardswish"])
def test_activations_of_pytorchs_follow_the_operation(act):
    f, residual = getattr(nn.functional, act), rand(2, 4, 7, 6)
    given: dict = {"padding": 1, "norm": "in", "act": act, "residual": residual}
    wanted = f(nn.functional.instance_norm(nn.functional.conv2d(X, W, padding=1))) + residual
    torch.testing.assert_close(conv_norm_act(X, W, **given), wanted)
    given["residual"] = residual[0]
    torch.testing.assert_close(conv_norm_act(X[0], W, **given), wanted[0])
    torch.testing.assert_close(norm_act(X, act=act), f(X))
    torch.testing.assert_close(upsample_conv(X, W, act=act), f(upsample_conv(X, W)))
    torch.testing.assert_close(conv_gemm(X, W, act=act), f(nn.functional.conv2d(X, W)))
    leaf = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: conv_norm_act(x, W, act=act), (leaf[:1, :, :4, :4],))


@pytest.mark.parametrize("name", ["groups", "dilation"])
def test_groups_and_dilation_are_refused_by_name(name):
    with pytest.raises(TypeError, match=name):
        conv_norm_act(X, W, **{name: 2})


def test_compiled_code_takes_them_too():
    torch._dynamo.reset()

    def f(x):
        return conv_norm_act(x, W, stride=(2, 2), padding=(1, 1), pad_mode="zeros")

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), f(X))
