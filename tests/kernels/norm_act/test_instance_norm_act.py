"""instance_norm_act against PyTorch's modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastunit.kernels.norm_act.op import arguments_of, instance_norm_act


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [False, True])
def test_computes_what_the_modules_do(affine, memory_format):
    norm = nn.InstanceNorm2d(6, eps=1e-3, affine=affine).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, residual = torch.randn(2, 2, 6, 5, 7, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    y = instance_norm_act(x, **arguments_of(norm), act="lrelu", slope=0.1, residual=residual)
    wanted = nn.LeakyReLU(0.1)(norm(x)) + residual
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, wanted)
    dy, inputs = torch.randn_like(y), (x, *norm.parameters())
    for a, b in zip(
        torch.autograd.grad(y, inputs, dy), torch.autograd.grad(wanted, inputs, dy), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_a_learnt_slope_and_a_chosen_implementation():
    x, prelu = torch.randn(1, 3, 4, 4), nn.PReLU(3)
    y = instance_norm_act(x, act="prelu", slope=prelu.weight, impl="aten")
    torch.testing.assert_close(y, prelu(nn.InstanceNorm2d(3)(x)))
    with pytest.raises(ValueError, match="impl='fast'"):
        instance_norm_act(x, impl="fast")


def test_running_statistics_are_refused():
    with pytest.raises(ValueError, match=r"track_running_stats=True.*=False"):
        arguments_of(nn.InstanceNorm2d(3, track_running_stats=True))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_messages_name_the_argument_that_was_given(name):
    with pytest.raises(ValueError, match=rf"{name} must be of shape \(3,\).*, not \(2,\)"):
        instance_norm_act(torch.randn(1, 3, 4, 4), **{name: torch.ones(2)})
