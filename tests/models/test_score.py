"""The last layer of a discriminator."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from fastunit.kernels.common import runtime
from fastunit.models.grouped import BatchPair, GroupedExecution
from fastunit.models.score import ScoreConv2d


def test_it_is_pytorch_s_convolution_on_a_cpu():
    mine, theirs = ScoreConv2d(12), nn.Conv2d(12, 1, 1)
    theirs.load_state_dict(mine.state_dict())
    x, y = (torch.ones(2, 12, 5, 4).requires_grad_() for _ in range(2))
    found, wanted = mine(x), theirs(y)
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    wanted.sum().backward()
    pairs = (x, y), (mine.weight, theirs.weight), (mine.bias, theirs.bias)
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad)


def _view(conv):
    """Keep the parameters elsewhere, as FSDP does, and views of them in their places."""
    for name in ("weight", "bias"):
        value = conv._parameters.pop(name)
        setattr(conv, name, value.view(value.shape))
    return conv


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        pytest.param(
            torch.nn.utils.spectral_norm, marks=pytest.mark.filterwarnings("ignore::FutureWarning")
        ),
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
        lambda conv: prune.random_unstructured(conv, "bias", 1),
        _view,
    ],
)
def test_weights_made_of_others_are_used(wrap):
    mine, theirs = ScoreConv2d(12), nn.Conv2d(12, 1, 1)
    theirs.load_state_dict(mine.state_dict())
    found = []
    for conv in (mine, theirs):
        torch.manual_seed(3)
        found.append(wrap(conv)(torch.rand(2, 12, 5, 4)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("hooked", [False, True])
def test_two_are_grouped_unless_hooked(hooked):
    a, b = ScoreConv2d(8), ScoreConv2d(8)
    calls = []
    if hooked:
        b.register_forward_hook(lambda *_: calls.append(1))
    x, y = torch.randn(2, 2, 8, 3, 5).to(torch.float64)
    a, b = a.double(), b.double()
    found = GroupedExecution(grouped=True).run(nn.Sequential(a), nn.Sequential(b), BatchPair(x, y))
    assert len(calls) == hooked
    for score, wanted in zip(found, (a(x), b(y)), strict=True):
        torch.testing.assert_close(score, wanted)


def test_kernels_take_two_launches_for_both_domains():
    a, b = ScoreConv2d(16), ScoreConv2d(16)
    x, y = (
        torch.zeros(2, 16, 3, 5).to(memory_format=torch.channels_last).requires_grad_()
        for _ in range(2)
    )
    with runtime.default_impl("triton"), runtime.recorded_launches(90) as launches:
        execution = GroupedExecution(grouped=True)
        scores = execution.run(nn.Sequential(a), nn.Sequential(b), BatchPair(x, y))
        torch.autograd.backward(scores, [torch.zeros_like(score) for score in scores])
    names = Counter(launch.kernel.fn.__name__ for launch in launches)
    assert names == {"dot_kernel": 1, "dot_backward_kernel": 1}
