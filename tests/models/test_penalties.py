"""Gradient penalties through the networks' blocks: WGAN-GP and R1."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastunit import MsImageDis, ResBlock
from fastunit.kernels.common.runtime import default_impl
from fastunit.kernels.conv import plain as conv_plain
from fastunit.kernels.norm_act import plain as norm_plain
from tests.support.tensors import images


def critic() -> nn.Module:
    torch.manual_seed(3)
    conv = {"kernel_size": 4, "stride": 2, "padding": 1}
    return nn.Sequential(
        nn.Conv2d(3, 4, **conv),
        nn.LeakyReLU(0.2),
        ResBlock(4, "in", "lrelu", "reflect"),
        ResBlock(4, "ln", "relu", "replicate"),
        nn.Conv2d(4, 1, 1),
    ).double()


def wgan_gp(network: nn.Module) -> torch.Tensor:
    """Gulrajani et al. 2017, equation 3."""
    torch.manual_seed(4)
    real, fake = images(2, 3, 16, 16), images(2, 3, 16, 16)
    mix = torch.rand(2, 1, 1, 1, dtype=torch.float64)
    between = (mix * real + (1 - mix) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(network(between).sum(), between, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return network(fake).mean() - network(real).mean() + 10 * penalty


def r1(network: nn.Module) -> torch.Tensor:
    """Mescheder et al. 2018, equation 9, beside the non-saturating loss of real images."""
    torch.manual_seed(4)
    real = images(2, 3, 16, 16).requires_grad_()
    scores = network(real)
    (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    return nn.functional.softplus(-scores).mean() + 5 * slope.square().sum((1, 2, 3)).mean()


@pytest.mark.parametrize("limit", [None, 0], ids=["small", "operators"])
@pytest.mark.parametrize("loss", [wgan_gp, r1])
def test_a_step_with_a_penalty_agrees_with_plain_pytorch(loss, limit, monkeypatch):
    if limit is not None:
        monkeypatch.setattr(conv_plain, "SMALL", limit)
        monkeypatch.setattr(norm_plain, "SMALL", limit)
    steps = []
    for impl in ("plain", "auto"):
        network = critic()
        with default_impl(impl):
            value = loss(network)
            value.backward()
        steps.append([value, *(p.grad for p in network.parameters())])
    for mine, wanted in zip(*reversed(steps), strict=True):
        assert (mine - wanted).abs().max() <= 1e-10 * (1 + wanted.abs().max())


def test_the_discriminator_takes_an_r1_penalty():
    dis = MsImageDis(3, {"dim": 4, "n_layer": 2, "num_scales": 2, "norm": "in"}).double()
    value = r1(lambda x: torch.cat([scores.flatten(1) for scores in dis(x)], 1)[:, :, None, None])
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dis.parameters())
