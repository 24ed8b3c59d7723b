"""Layers against the same layers built of torch.nn modules."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from fastunit.models.layers import (
    Conv2dBlock,
    LayerNorm,
    LinearBlock,
    ResBlock,
    ResBlocks,
    UpsampleConv2dBlock,
)

NORMS = ("none", "bn", "in", "ln")
PADS = {
    "zero": nn.ZeroPad2d,
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
}
ACTIVATIONS = {
    "relu": nn.ReLU,
    "lrelu": lambda: nn.LeakyReLU(0.2),
    "prelu": nn.PReLU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}
NORM_SHAPES = {
    "none": {},
    "in": {},
    "ln": {"norm.gamma": (4,), "norm.beta": (4,)},
    "bn": {
        "norm.weight": (4,),
        "norm.bias": (4,),
        "norm.running_mean": (4,),
        "norm.running_var": (4,),
        "norm.num_batches_tracked": (),
    },
}


class ReleaseNorm(nn.Module):
    """The release's layer norm, one sample at a time: unbiased spread, eps added to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.empty(channels)) for _ in range(2))

    def forward(self, x):
        rows = torch.stack([(s - s.mean()) / (s.std(correction=1) + 1e-5) for s in x])
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return rows * self.gamma.view(shape) + self.beta.view(shape)


class Reference(nn.Module):
    """pad -> conv -> norm -> activation (+ residual) with the release's names for its parts."""

    def __init__(self, before, conv, norm, activation) -> None:
        super().__init__()
        self.norm, self.activation = norm, ACTIVATIONS[activation]()
        self.conv = conv
        self.before = before

    def forward(self, x, residual=0):
        return self.activation(self.norm(self.conv(self.before(x)))) + residual


def reference(c, k, size, stride, pad, norm, activation, pad_type, before=()):
    made = {
        "none": nn.Identity,
        "bn": lambda: nn.BatchNorm2d(k),
        "in": lambda: nn.InstanceNorm2d(k),
        "ln": lambda: ReleaseNorm(k),
    }[norm]()
    before = nn.Sequential(*before, PADS[pad_type](pad))
    return Reference(before, nn.Conv2d(c, k, size, stride), made, activation)


def randomised(module):
    """Return the module in float64 with random weights, those that start at 0 or 1 included."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.2, 0.5)
    return module.double()


def assert_same(mine, wanted, *inputs):
    """Compare result, gradients of inputs and parameters by name, and buffers after the call."""
    mine.zero_grad()
    wanted.double().load_state_dict(mine.state_dict())  # strict: the same keys and shapes
    mine_in, wanted_in = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    y, target = mine(*mine_in), wanted(*wanted_in)
    dy = torch.randn_like(target)
    y.backward(dy)
    target.backward(dy)
    torch.testing.assert_close(y, target, rtol=1e-9, atol=1e-10)
    for a, b in zip(mine_in, wanted_in, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-10)
    own = dict(mine.named_parameters())
    for name, parameter in wanted.named_parameters():
        torch.testing.assert_close(
            own[name].grad, parameter.grad, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )
    after = wanted.state_dict()
    assert all(torch.allclose(value, after[key]) for key, value in mine.state_dict().items())


@pytest.mark.parametrize("pad_type", PADS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv2d_block(activation, norm, pad_type):
    for size, stride, pad in ((4, 2, 1), (3, 1, 1)):
        options = (3, 4, size, stride, pad, norm, activation, pad_type)
        mine = randomised(Conv2dBlock(*options))
        x = torch.randn(2, 3, 8, 6).double()
        assert_same(mine, reference(*options), x)
        assert_same(mine.eval(), reference(*options).eval(), x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_state_dict_of_conv2d_block(activation, norm):
    learned = {"activation.weight": (1,)} if activation == "prelu" else {}
    conv = {"conv.weight": (4, 3, 5, 5), "conv.bias": (4,)}
    wanted = NORM_SHAPES[norm] | learned | conv
    plain = Conv2dBlock(3, 4, 5, 1, 2, norm, activation)
    for block in (plain, UpsampleConv2dBlock(3, 4, 5, 2, norm, activation)):
        state = block.state_dict()
        # The order too: the release's optimizer.pt numbers the parameters by it.
        assert [(k, tuple(v.shape)) for k, v in state.items()] == list(wanted.items())


@pytest.mark.parametrize("norm", NORMS)
def test_conv2d_block_adds_the_residual_last(norm):
    options = (3, 4, 3, 1, 1, norm, "relu", "zero")
    x, residual = torch.randn(2, 3, 5, 6).double(), torch.randn(2, 4, 5, 6).double()
    assert_same(randomised(Conv2dBlock(*options)), reference(*options), x, residual)


def test_defaults_of_conv2d_block():
    mine = randomised(Conv2dBlock(3, 4, 3, 1))
    assert_same(
        mine, reference(3, 4, 3, 1, 0, "none", "relu", "zero"), torch.randn(1, 3, 5, 5).double()
    )


def test_batch_norm_keeps_running_statistics():
    block = Conv2dBlock(3, 4, 3, 1, 1, "bn", "none").double()
    x = torch.randn(5, 3, 6, 6).double()
    y = block.conv(nn.functional.pad(x, (1,) * 4))
    block(x)
    mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=1)
    torch.testing.assert_close(block.norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(block.norm.running_var, 0.9 + 0.1 * var)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    alone = block.eval()(x[:1])
    torch.testing.assert_close(alone, block(x)[:1])  # no statistics of the batch
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_upsample_block_repeats_pixels_then_convolves(activation, norm):
    options = (3, 4, 5, 1, 2, norm, activation, "reflect")
    wanted = reference(*options, before=[nn.Upsample(scale_factor=2)])
    block = UpsampleConv2dBlock(3, 4, 5, 2, norm, activation, "reflect")
    assert_same(randomised(block), wanted, torch.randn(2, 3, 4, 3).double())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_block(activation, norm):
    norms = {
        "none": nn.Identity(),
        "bn": nn.BatchNorm1d(4),
        "in": nn.LayerNorm(4, elementwise_affine=False),  # each sample's row of features
        "ln": ReleaseNorm(4),
    }
    mine = randomised(LinearBlock(3, 4, norm, activation))
    wanted = nn.Sequential()
    wanted.add_module("norm", norms[norm])
    wanted.add_module("activation", ACTIVATIONS[activation]())
    wanted.add_module("fc", nn.Linear(3, 4))
    wanted.forward = lambda x: wanted.activation(wanted.norm(wanted.fc(x)))
    assert_same(mine, wanted, torch.randn(5, 3).double())
    learned = {"activation.weight": (1,)} if activation == "prelu" else {}
    shapes = NORM_SHAPES[norm] | learned | {"fc.weight": (4, 3), "fc.bias": (4,)}
    assert {k: tuple(v.shape) for k, v in mine.state_dict().items()} == shapes


class ReferenceResBlock(nn.Module):
    def __init__(self, *options) -> None:
        super().__init__()
        norm, activation, pad_type = options
        self.model = nn.Sequential(
            reference(4, 4, 3, 1, 1, norm, activation, pad_type),
            reference(4, 4, 3, 1, 1, norm, "none", pad_type),
        )

    def forward(self, x):
        return x + self.model(x)


@pytest.mark.parametrize("pad_type", PADS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_res_block(activation, norm, pad_type):
    mine = randomised(ResBlock(4, norm, activation, pad_type))
    wanted = ReferenceResBlock(norm, activation, pad_type)
    assert_same(mine, wanted, torch.randn(2, 4, 5, 6).double())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_res_blocks(count):
    mine = randomised(ResBlocks(count, 4, activation="lrelu"))
    wanted = nn.Sequential()
    blocks = (ReferenceResBlock("in", "lrelu", "zero") for _ in range(count))
    wanted.add_module("model", nn.Sequential(*blocks))
    x = torch.randn(2, 4, 5, 6).double()
    if count:
        assert_same(mine, wanted, x)
    else:
        assert torch.equal(mine(x), x)
    assert list(mine.state_dict()) == [
        f"model.{i}.model.{j}.conv.{name}"
        for i in range(count)
        for j in range(2)
        for name in ("weight", "bias")
    ]


def test_layer_norm():
    torch.manual_seed(1)
    norm = LayerNorm(20_000)
    assert {k: tuple(v.shape) for k, v in norm.state_dict().items()} == {
        "gamma": (20_000,),
        "beta": (20_000,),
    }
    assert not norm.beta.any()
    assert norm.gamma.min() >= 0 and norm.gamma.max() < 1
    assert abs(norm.gamma.mean() - 1 / 2) < 0.01 and abs(norm.gamma.var() - 1 / 12) < 0.002
    x = torch.randn(2, 4, 5, 6).double() + 3
    assert_same(randomised(LayerNorm(4)), ReleaseNorm(4), x)
    plain = LayerNorm(4, eps=0.5, affine=False)
    assert not plain.state_dict()
    wanted = (x[1] - x[1].mean()) / (x[1].std() + 0.5)
    torch.testing.assert_close(plain(x)[1], wanted)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Conv2dBlock(3, 4, 3, 1, norm="batch"), ("norm='batch'", "none, bn, in, ln")),
        (lambda: Conv2dBlock(3, 4, 3, 1, activation="elu"), ("activation='elu'", "relu, lrelu, p")),
        (lambda: Conv2dBlock(3, 4, 3, 1, pad_type="same"), ("pad_type='same'", "zero, reflect, r")),
        (lambda: LinearBlock(3, 4, norm="adain"), ("norm='adain'", "none, bn, in, ln, sn")),
        (lambda: LinearBlock(3, 4, activation="x"), ("activation='x'", "relu, lrelu, prelu")),
        (lambda: ResBlocks(1, 4, pad_type="cyclic"), ("pad_type='cyclic'", "replicate")),
    ],
)
def test_a_wrong_option_is_named_with_its_choices(make, parts):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        make()
