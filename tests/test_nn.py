"""The modules for people who write networks: PyTorch's numbers, keys, and what they cannot fuse."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.nn import AdaINConv2d, ConvNormAct2d, InstanceNormAct2d
from tests.support.tensors import rand

X = rand(2, 3, 8, 7)


def assert_same(found: nn.Module, wanted: nn.Module, x: Tensor = X, **options: Tensor) -> None:
    results = []
    for module in (found, wanted):
        leaf = x.clone().requires_grad_()
        y = module(leaf, **options) if module is found else module(leaf)
        y = y if module is found or not options else y + options["residual"]
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        results.append([y, *torch.autograd.grad(y, [leaf, *module.parameters()], weights)])
    for mine, other in zip(*results, strict=True):
        assert (mine - other).abs().max() <= 1e-10 * (1 + other.abs().max())


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_act(affine):
    mine = InstanceNormAct2d(3, affine=affine, act="lrelu", slope=0.1).double()
    theirs = nn.InstanceNorm2d(3, affine=affine).double()
    assert list(mine.state_dict()) == list(theirs.state_dict())
    if affine:
        nn.init.normal_(theirs.weight), nn.init.normal_(theirs.bias)
    mine.load_state_dict(theirs.state_dict())
    assert_same(mine, nn.Sequential(theirs, nn.LeakyReLU(0.1)), residual=rand(2, 3, 8, 7))
    torch.testing.assert_close(mine(X[0]), mine(X)[0])


FUSED = {
    "reflect, in, relu": lambda: [
        nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(),
    ],
    "own padding": lambda: [
        nn.Conv2d(3, 4, 3, 2, 1, padding_mode="replicate"), nn.LeakyReLU(0.3),
    ],
    "affine, prelu": lambda: [
        nn.ZeroPad2d(2), nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4),
    ],
    "gelu": lambda: [nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.GELU()],
    "silu": lambda: [nn.Conv2d(3, 4, 3), nn.SiLU(inplace=True)],
    "bare": lambda: [nn.Conv2d(3, 4, 1, bias=False)],
}  # fmt: skip
LEFT = {
    "groups": lambda: [nn.Conv2d(3, 3, 3, groups=3), nn.ReLU()],
    "dilation": lambda: [nn.Conv2d(3, 4, 2, dilation=2)],
    "stride": lambda: [nn.Conv2d(3, 4, 3, (2, 1))],
    "same": lambda: [nn.Conv2d(3, 4, 3, padding="same")],
    "circular": lambda: [nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")],
    "padded twice": lambda: [nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3, padding=1)],
    "uneven padding": lambda: [nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(3, 4, 3)],
    "statistics": lambda: [nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True)],
    "batch norm": lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)],
    "gelu of tanh": lambda: [nn.Conv2d(3, 4, 3), nn.GELU("tanh")],
    "spectral norm": lambda: [nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)).eval()],
}


@pytest.mark.parametrize("name", [*FUSED, *LEFT])
def test_conv_norm_act(name):
    modules = (FUSED | LEFT)[name]()
    theirs = nn.Sequential(*modules).double()
    mine = ConvNormAct2d.from_modules(*copy.deepcopy(modules)).double()
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert mine.fuses == (name in FUSED)
    assert_same(mine, theirs)
    assert_same(mine, theirs, residual=rand(*theirs(X).shape))


def test_hooks_are_run():
    mine = ConvNormAct2d(nn.Conv2d(3, 4, 3), nn.ReLU()).double()
    wanted = 2 * mine(X)
    mine[1].register_forward_hook(lambda module, args, y: 2 * y)
    assert not mine.fuses
    torch.testing.assert_close(mine(X), wanted)


def test_a_sequential_stands_for_its_modules():
    conv = nn.Conv2d(3, 4, 3)
    made = ConvNormAct2d.from_modules(nn.Sequential(nn.ReflectionPad2d(1), conv), nn.Tanh())
    assert made[1] is conv and made.fuses and len(made) == 3


@pytest.mark.parametrize("form", ["rows", "vector"])
def test_adain(form):
    mine = AdaINConv2d(3, 4, 3, 2, 1, padding_mode="reflect", act="tanh").double()
    theirs = nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect").double()
    theirs.load_state_dict(mine.state_dict())
    gamma, beta = rand(2, 4), rand(2, 4)
    y = F.instance_norm(theirs(X)) * gamma[:, :, None, None] + beta[:, :, None, None]
    given = (gamma, beta) if form == "rows" else (gamma.view(-1), beta.view(-1))
    torch.testing.assert_close(mine(X, *given), torch.tanh(y))
    with pytest.raises(ValueError, match="padding_mode='circular' must be one of zeros, reflect"):
        AdaINConv2d(3, 4, 3, padding_mode="circular")


def test_what_adain_does_not_take_is_named():
    x, ones = X.float(), torch.ones(2, 4)
    one = AdaINConv2d(3, 4, 3)
    torch.testing.assert_close(one(x[0], ones[0], ones[0]), one(x[:1], ones[:1], ones[:1])[0])
    with pytest.raises(ValueError, match=r"beta must be of shape \(2, 4\) or \(8,\), not \(5,\)"):
        one(x, ones, torch.ones(5))
    for options in ({"stride": (2, 1)}, {"padding": (0, 1)}):
        with pytest.raises(ValueError, match="must be the same for both axes"):
            AdaINConv2d(3, 4, 3, **options)(x, ones, ones)
