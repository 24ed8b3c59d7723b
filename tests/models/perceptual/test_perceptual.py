"""The VGG16 term against its formula in float64."""

from __future__ import annotations

import copy
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fastunit.kernels import norm_act
from fastunit.models import perceptual

POOLED_AFTER = (2, 7, 14)


def formula(state, output, target):
    def features(x):
        blue, green, red = (255 * (x[:, c] + 1) / 2 for c in (2, 1, 0))
        x = torch.stack([blue - 103.939, green - 116.779, red - 123.680], 1)
        for index in sorted(
            {int(key.split(".")[1]) for key in state if key.startswith("features")}
        ):
            weight, bias = (state[f"features.{index}.{name}"] for name in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=1).clamp_min(0)
            if index in POOLED_AFTER:
                n, c, h, w = x.shape
                x = x.view(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
        return F.instance_norm(x)

    return ((features(output) - features(target)) ** 2).mean()


def pictures(channels=3, height=16, width=24):
    return torch.rand(2, 2, channels, height, width).mul(2).sub(1)


def evaluated(function, output, target):
    """Return value and gradient in float64."""
    leaf = output.clone().requires_grad_()
    value = function(leaf, target)
    return value.detach().double(), torch.autograd.grad(value, leaf)[0].double()


def in_dtype(state, dtype):
    return {key: value.to(dtype) for key, value in state.items()}


def largest_errors(found, wanted):
    """Return the largest error of value and gradient, relative to the largest that is wanted."""
    return [float((f - w).abs().max() / w.abs().max()) for f, w in zip(found, wanted, strict=True)]


def test_value_and_gradient_are_as_near_float64_as_plain_pytorchs(network, state):
    images = pictures()
    exact = evaluated(partial(formula, in_dtype(state, torch.float64)), *images.double())
    plain = largest_errors(evaluated(partial(formula, state), *images), exact)
    mine = largest_errors(evaluated(network, *images), exact)
    assert exact[0] > 0.01
    assert mine[0] <= 2 * plain[0] + 1e-6
    assert mine[1] <= 2 * plain[1] + 1e-4  # some ReLUs switch elsewhere


def test_float64_images_are_compared_in_float64(network, state):
    images = pictures().double()
    exact = evaluated(partial(formula, in_dtype(state, torch.float64)), *images)
    assert network(*images).dtype == torch.float64
    assert max(largest_errors(evaluated(network, *images), exact)) < 1e-11


@pytest.mark.parametrize("how", ["bf16 images", "fp16 images", "autocast", "bf16 module"])
def test_half_precision_gives_a_finite_float32_scalar_near_the_exact_one(how, network, state):
    images = pictures(height=32, width=32)
    exact = formula(in_dtype(state, torch.float64), *images.double())
    if how == "bf16 module":
        network = copy.deepcopy(network).bfloat16()
    dtype = {"bf16 images": torch.bfloat16, "fp16 images": torch.float16}.get(how, torch.float32)
    leaf = images[0].to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        value = network(leaf, images[1].to(dtype))
    (gradient,) = torch.autograd.grad(value, leaf)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    assert gradient.isfinite().all() and gradient.any()
    assert value.item() == pytest.approx(exact.item(), rel=0.05)


def test_autocast_multiplies_in_bf16_but_normalises_in_float32(network, monkeypatch):
    seen = []
    monkeypatch.setattr(
        perceptual, "norm_act", lambda x, norm: seen.append(x.dtype) or norm_act(x, norm=norm)
    )
    x = pictures()[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert network.features(x).dtype == torch.bfloat16
        network.target_features(x)
    assert network.features(x.half()).dtype == torch.float32  # 65504 is too little
    assert seen == [torch.float32]


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_features_of_any_size_give_finite_numbers(scale, network):
    scaled = copy.deepcopy(network)
    with torch.no_grad():
        scaled.convs[-1].weight.mul_(scale)
        scaled.convs[-1].bias.mul_(scale)
    for output, target in (
        pictures(),
        torch.stack([pictures()[0], torch.full((2, 3, 16, 24), 0.5)]),
    ):
        value, gradient = evaluated(scaled, output, target)
        assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shade", [-1.0, 0.0, 1.0])
def test_images_of_one_color_give_finite_numbers(shade, dtype, network, state):
    flat = torch.full((2, 3, 32, 32), shade, dtype=dtype)
    other = pictures(height=32, width=32)[1].to(dtype)
    for images in ((flat, other), (other, flat), (flat, flat)):
        value, gradient = evaluated(network, *images)
        assert value.isfinite() and gradient.isfinite().all()
    assert network(flat, flat) == 0


def test_a_map_without_spread_counts_as_zero(network):
    silent = copy.deepcopy(network)
    with torch.no_grad():
        silent.convs[-1].weight.zero_()
        silent.convs[-1].bias.fill_(3.0)
    value, gradient = evaluated(silent, *pictures())
    assert value == 0 and not gradient.any()


def test_features_of_a_target_serve_several_comparisons(network, monkeypatch):
    x, y = pictures()
    wanted = network.target_features(y.requires_grad_())
    assert not wanted.requires_grad
    runs = []
    monkeypatch.setattr(network, "features", partial(_counted, network.features, runs))
    assert torch.equal(network.distance(x, wanted), network.distance(x, wanted))
    assert len(runs) == 2
    monkeypatch.undo()
    assert torch.equal(network.distance(x, wanted), network(x, y))


def _counted(function, runs, x, *weights):
    runs.append(x.shape)
    return function(x, *weights)


@pytest.mark.parametrize(
    ("shapes", "passes"),
    [
        (((2, 3, 16, 24), (1, 3, 16, 24)), [(3, 3, 16, 24)] * 2),
        (((2, 3, 16, 24), (2, 3, 24, 16)), [(2, 3, 16, 24), (2, 3, 24, 16)] * 2),
        (((2, 1, 16, 24), (2, 3, 16, 24)), [(2, 1, 16, 24), (2, 3, 16, 24)] * 2),
    ],
    ids=["alike", "other size", "other channels"],
)
def test_a_pair_is_compared_together_where_shapes_allow(shapes, passes, network, monkeypatch):
    outputs, targets = (tuple(torch.rand(s) * 2 - 1 for s in shapes) for _ in range(2))
    wanted = [evaluated(network, *each) for each in zip(outputs, targets, strict=True)]
    runs = []
    monkeypatch.setattr(network, "features", partial(_counted, network.features, runs))
    leaves = tuple(x.requires_grad_() for x in outputs)
    values = network.pair(leaves, targets)
    gradients = torch.autograd.grad(sum(values), leaves)
    assert runs == passes
    for value, gradient, each in zip(values, gradients, wanted, strict=True):
        assert max(largest_errors((value.detach().double(), gradient.double()), each)) < 1e-4


def test_images_that_are_not_alike_are_refused(network):
    x, y = pictures()
    with pytest.raises(ValueError, match=r"\(2, 512, 2, 3\) cannot be compared .*\(1, 512, 2, 3\)"):
        network(x, y[:1])  # would be broadcast


def test_equal_images_are_at_no_distance(network):
    x, y = pictures()
    assert network(x, x) == 0
    assert network(x, y) > 0


def test_features_are_an_eighth_of_the_size(network):
    assert network.features(pictures(3, 16, 24)[0]).shape == (2, 512, 2, 3)


def test_one_channel_is_repeated(network):
    gray, other = pictures(1)
    color = gray.expand(-1, 3, -1, -1)
    assert torch.equal(network(gray, other), network(color, other.expand(-1, 3, -1, -1)))
    assert torch.equal(network(gray, color), torch.tensor(0.0))


@pytest.mark.parametrize("shape", [(1, 2, 16, 16), (1, 3, 7, 32), (1, 1, 8, 15), (3, 16, 16)])
def test_images_it_cannot_take_are_named(network, shape):
    with pytest.raises(ValueError, match=rf"1 or 3 channels.*{re.escape(str(shape))}.*vgg_w=0"):
        network(torch.zeros(shape), torch.zeros(shape))


def test_it_is_frozen_and_saves_no_more_than_its_weights(network):
    assert not any(p.requires_grad for p in network.parameters())
    assert len(network.state_dict()) == 2 * 13  # convolutions
    target = pictures()[1].requires_grad_()
    assert not network(pictures()[0], target).requires_grad  # the target gets no gradient


@pytest.mark.parametrize("autocast", [False, True])
def test_it_compiles_whole(autocast, network):
    outputs, targets = pictures().unbind(), pictures().unbind()
    compiled = torch.compile(network.pair, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.testing.assert_close(compiled(outputs, targets), network.pair(outputs, targets))
