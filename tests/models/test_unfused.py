"""Hooks, parametrizations, wrappers and replaced modules in blocks: run as PyTorch runs them."""

from __future__ import annotations

import copy
import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

from fastunit.config import from_dict
from fastunit.digits.networks import Layer
from fastunit.models import unfused
from fastunit.models.grouped import GroupedExecution
from fastunit.models.layers import Conv2dBlock, LinearBlock, ResBlock, UpsampleConv2dBlock
from fastunit.models.unit import UNIT
from fastunit.models.unit2017_layers import ConvBlock, INSResBlock, ToImage
from fastunit.training.step import TrainStep


class Lora(nn.Module):
    """A convolution and a learned product of low rank beside it."""

    def __init__(self, conv):
        super().__init__()
        self.base = conv
        self.down = nn.Conv2d(conv.in_channels, 1, conv.kernel_size, conv.stride, conv.padding)
        self.up = nn.Conv2d(1, conv.out_channels, 1)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def old(function):
    def wrap(conv):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(conv)

    return wrap


def hooked(register, hook):
    def wrap(module):
        getattr(module, register)(hook)
        return module

    return wrap


def patched(conv):
    conv.forward = lambda x: 3 * type(conv).forward(conv, x)
    return conv


def other(conv, **changes):
    given = {"stride": conv.stride, "padding": conv.padding} | changes
    return type(conv)(conv.in_channels, conv.out_channels, conv.kernel_size, **given)


WRAPPERS = {
    "spectral_norm": old(nn.utils.spectral_norm),
    "weight_norm": old(nn.utils.weight_norm),
    "parametrized spectral": parametrizations.spectral_norm,
    "parametrized weight": parametrizations.weight_norm,
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "hook": hooked("register_forward_hook", lambda m, x, y: 2 * y),
    "pre-hook": hooked("register_forward_pre_hook", lambda m, x: (0.5 * x[0],)),
    "backward hook": hooked("register_full_backward_hook", lambda m, dx, dy: (3 * dx[0],)),
    "patched": patched,
    "lora": Lora,
    "no bias": lambda conv: other(conv, bias=False),
    "dilation": lambda conv: other(conv, dilation=2, padding=2),
    "padding": lambda conv: other(conv, padding=2),
}
CONVS = WRAPPERS | {
    "class": lambda c: Scaled(c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding),
    "stride": lambda conv: other(conv, stride=2),
    "mode": lambda conv: other(conv, padding=1, padding_mode="circular"),
}
SAME_SIZE = [n for n in CONVS if n not in ("stride", "padding", "dilation", "mode")]
TAILS = {
    "norm": {
        "batch": lambda block: nn.BatchNorm2d(4),
        "group": lambda block: nn.GroupNorm(2, 4),
        "affine": lambda block: nn.InstanceNorm2d(4, affine=True),
        "none": lambda block: None,
        "eps": lambda block: nn.InstanceNorm2d(4, eps=0.1),
        "hook": lambda block: hooked("register_forward_hook", lambda m, x, y: y + 1)(block.norm),
    },
    "activation": {
        "gelu": lambda block: nn.GELU(),
        "slope": lambda block: nn.LeakyReLU(0.7),
        "none": lambda block: None,
        "hook": lambda block: hooked("register_forward_hook", lambda m, x, y: y * y)(
            block.activation
        ),
    },
    "pad": {"circular": lambda block: nn.CircularPad2d(1), "wide": lambda b: nn.ZeroPad2d(2)},
}


@pytest.fixture(autouse=True)
def _unsaid(monkeypatch):
    monkeypatch.setattr(unfused, "_said", set())


def plainly(block, x, residual=None):
    """Return what PyTorch makes of a block's modules."""
    if isinstance(block, UpsampleConv2dBlock):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    for module in (block.pad, block.conv, block.norm, block.activation):
        x = x if module is None else module(x)
    return x if residual is None else x + residual


def assert_alike(module, plain, *inputs, call=lambda module, *inputs: module(*inputs)):
    """Compare a module's results and gradients with those of its parts, run plainly."""
    found, buffers = [], [(buffer, buffer.clone()) for buffer in module.buffers()]
    for run in (call, plain):
        for buffer, before in buffers:  # a power iteration, running statistics
            buffer.data.copy_(before)
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = run(module, *leaves)
        y = torch.cat([part.flatten() for part in y]) if isinstance(y, (tuple, list)) else y
        weights = [p for p in module.parameters() if p.requires_grad]
        dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        found.append((y, *torch.autograd.grad(y, [*leaves, *weights], dy, allow_unused=True)))
    for a, b in zip(*found, strict=True):
        if a is None or b is None:
            assert not any(g is not None and g.abs().max() > 1e-9 for g in (a, b))
        else:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def block_of(kind):
    if kind is UpsampleConv2dBlock:
        return kind(4, 4, 3, 1, "in", "lrelu", "reflect").double()
    return Conv2dBlock(4, 4, 3, 1, 1, "in", "lrelu", "reflect").double()


X = torch.randn(2, 4, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("kind", [Conv2dBlock, UpsampleConv2dBlock])
@pytest.mark.parametrize("name", CONVS)
def test_a_block_runs_the_convolution_that_is_there(name, kind, caplog):
    block = block_of(kind)
    block.conv = CONVS[name](block.conv).double()
    with caplog.at_level(logging.WARNING, "fastunit"):
        assert_alike(block, plainly, X)
        block(X)
    if name == "no bias":  # which the fused operation does without, too
        assert not caplog.messages
    else:
        (said,) = caplog.messages
        assert said.startswith(kind.__name__)


@pytest.mark.parametrize("kind", [Conv2dBlock, UpsampleConv2dBlock])
@pytest.mark.parametrize(("place", "name"), [(p, n) for p, names in TAILS.items() for n in names])
def test_a_block_runs_whatever_is_around_its_convolution(place, name, kind):
    block = block_of(kind)
    setattr(block, place, TAILS[place][name](block))
    assert_alike(block.double(), plainly, X)


def test_an_untouched_block_is_fused(monkeypatch):
    for kind in (Conv2dBlock, UpsampleConv2dBlock):
        block = block_of(kind)
        monkeypatch.setattr(block.conv, "_conv_forward", pytest.fail)  # it is not called
        block(X)
        monkeypatch.undo()
        assert_alike(block, plainly, X)


@pytest.mark.parametrize("name", SAME_SIZE)
@pytest.mark.parametrize("which", [0, 1])
def test_a_residual_block(which, name):
    block = ResBlock(4).double()
    block.model[which].conv = CONVS[name](block.model[which].conv).double()

    def plain(block, x):
        return plainly(block.model[1], plainly(block.model[0], x), residual=x)

    assert_alike(block, plain, X)


def test_hooks_of_a_residual_blocks_parts_see_what_the_releases_see():
    block, seen = ResBlock(4).double(), []
    block.model[1].register_forward_hook(lambda m, x, y: seen.append(y))
    block.model.register_forward_hook(lambda m, x, y: 2 * y)
    y = block(X)
    torch.testing.assert_close(y, 2 * plainly(block.model[1], plainly(block.model[0], X)) + X)
    torch.testing.assert_close(2 * seen[0] + X, y)


def test_a_hook_of_all_modules_is_called():
    seen, block = [], ResBlock(4).double()
    handle = register_module_forward_hook(lambda m, x, y: seen.append(type(m).__name__))
    try:
        block(X)
    finally:
        handle.remove()
    assert seen.count("Conv2d") == 2 and seen.count("InstanceNorm2d") == 2


@pytest.mark.parametrize("place", ["norm", "activation"])
@pytest.mark.parametrize("norm", ["ln", "in", "bn"])
def test_a_linear_block(norm, place):
    block = LinearBlock(4, 3, norm, "lrelu").double()
    getattr(block, place).register_forward_hook(lambda m, x, y: 2 * y)
    x = torch.randn(5, 4, dtype=torch.float64)
    untouched = copy.deepcopy(block)
    getattr(untouched, place)._forward_hooks.clear()
    wanted = (
        untouched(x)
        if place == "activation"
        else untouched.activation(2 * untouched.norm(untouched.fc(x)))
    )
    torch.testing.assert_close(block(x), wanted * (2 if place == "activation" else 1))


PAPER = {
    "conv": lambda: ConvBlock(nn.Conv2d(4, 4, 3, 1, 1), "in", "lrelu"),
    "transpose": lambda: ConvBlock(nn.ConvTranspose2d(4, 4, 3, 2, 1), "in", "relu"),
    "residual": lambda: INSResBlock(4),
    "digits": lambda: Layer(nn.Conv2d(4, 4, 3, 1, 1)),
}


@pytest.mark.parametrize(
    ("layer", "name"),
    # Lora here is for convolutions that are not transposed.
    [(a, b) for a in PAPER for b in SAME_SIZE if (a, b) != ("transpose", "lora") and b != "class"],
)
def test_the_papers_layers(layer, name):
    block = PAPER[layer]().double()
    block.model[0] = WRAPPERS[name](block.model[0]).double()
    plain = (lambda m, x: m.model(x) + x) if layer == "residual" else lambda m, x: m.model(x)
    assert_alike(block, plain, X)


@pytest.mark.parametrize("layer", PAPER)
def test_the_papers_other_modules(layer):
    for place in range(1, len(PAPER[layer]().model)):
        block = PAPER[layer]().double()
        block.model[place].register_forward_hook(lambda m, x, y: 2 * y)
        plain = (lambda m, x: m.model(x) + x) if layer == "residual" else lambda m, x: m.model(x)
        assert_alike(block, plain, X)


def test_the_papers_last_layer():
    layer = ToImage(4, 3, 1, dilation=1).double()
    parametrizations.weight_norm(layer)
    wanted = F.conv_transpose2d(X, layer.weight, layer.bias).tanh()
    torch.testing.assert_close(layer(X), wanted)


def wrapped(module, wrap):
    for block in module.modules():
        if isinstance(block, Conv2dBlock):
            block.conv = wrap(block.conv).double()


def network(net, x):
    """Run a network of blocks plainly."""
    for layer in net.children() if not isinstance(net, ResBlock) else (net,):
        if isinstance(layer, ResBlock):
            inner = plainly(layer.model[0], x)
            x = plainly(layer.model[1], inner, residual=x)
        elif isinstance(layer, Conv2dBlock):
            x = plainly(layer, x)
        elif isinstance(layer, (nn.Conv2d, nn.Identity)):
            x = layer(x)
        else:
            x = network(layer, x)
    return x


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("name", SAME_SIZE)
def test_paired_networks(name, grouped, tiny):
    torch.manual_seed(0)
    unit = UNIT(from_dict(tiny)).double()
    wrapped(unit.gen_a, CONVS[name])  # shared blocks too
    unit.execution = GroupedExecution(grouped)
    unit.eval()  # spectral_norm's iterations stand still
    x, y = (torch.randn(2, 3, 16, 16, dtype=torch.float64) for _ in range(2))

    def plain(unit, x, y):
        codes = network(unit.gen_a.enc.model, x), network(unit.gen_b.enc.model, y)
        return network(unit.gen_a.dec.model, codes[0]), network(unit.gen_b.dec.model, codes[1])

    assert_alike(unit, plain, x, y, call=lambda u, x, y: u.decode(*u.encode(x, y)))


def test_hooks_of_networks_and_containers_are_called_in_pairs(tiny):
    unit, seen = UNIT(from_dict(tiny)).double(), []
    places = [unit.gen_a.enc, unit.gen_a.enc.model, unit.gen_a.dec.model[0]]
    places += [unit.dis_a, unit.dis_a.cnns[0]]
    for place in places:
        place.register_forward_hook(lambda m, x, y: seen.append(m))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    unit.execution = GroupedExecution(True)
    unit.decode(*unit.encode(x, x))
    unit.discriminate(x, x)
    assert all(place in seen for place in places)


@pytest.mark.parametrize("changes", [{}, {"pair_domains": "on", "checkpoint_activations": True}])
def test_a_training_step_uses_the_wrapped_weights(changes, tiny):
    config = from_dict(tiny | {"compile": "off"} | changes)
    torch.manual_seed(3)
    unit = UNIT(config).double()
    wrapped(unit.dis_a, parametrizations.weight_norm)
    before = [p.clone() for p in unit.dis_a.parameters()]
    x = [torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1 for _ in range(2)]
    losses = TrainStep(unit, config)(*x)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert not any(map(torch.equal, before, unit.dis_a.parameters()))


@pytest.mark.parametrize("name", ["parametrized weight", "hook", "lora"])
def test_wrapped_blocks_compile_without_a_break(name, caplog):
    torch._dynamo.reset()
    block = block_of(Conv2dBlock)
    block.conv = CONVS[name](block.conv).double()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with caplog.at_level(logging.WARNING, "fastunit"):
        torch.testing.assert_close(compiled(X), plainly(block, X))
    assert any(said.startswith("Conv2dBlock") for said in caplog.messages)


@pytest.mark.parametrize("make", [lambda: ResBlock(8, pad_type="reflect"), lambda: INSResBlock(8)])
def test_one_image_in_channels_last_has_right_gradients(make):
    """PyTorch's own instance norm fails this."""
    block = make().double().to(memory_format=torch.channels_last)
    x, dy = (torch.randn(1, 8, 8, 8, dtype=torch.float64) for _ in range(2))
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))

    def gradients():
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(block(leaf), [leaf, next(block.parameters())], dy)

    fused = gradients()
    for module in block.modules():
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.register_forward_hook(lambda *_: None)
    for mine, wanted in zip(gradients(), fused, strict=True):
        assert torch.allclose(mine, wanted, rtol=1e-9, atol=1e-10)
