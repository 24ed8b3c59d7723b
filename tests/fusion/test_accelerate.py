"""Other people's networks, accelerated: numbers, keys, and everything done to networks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastunit
from fastunit.fusion import rules
from fastunit.kernels.conv import plain as conv_plain
from fastunit.kernels.norm_act import plain as norm_plain
from tests.support.networks import NETWORKS, CycleGenerator, PatchGan, UnitGenerator

FUSED = {
    "CycleGAN generator": 10,
    "CUT generator": 11,
    "PatchGAN": 5,
    "pix2pix U-Net": 6,
    "UNIT generator": 14,
    "UNIT discriminator": 8,
    "MUNIT AdaINGen": 20,
    "nnU-Net": 13,
}


@pytest.fixture(autouse=True)
def _everything(monkeypatch):
    """Fuse what a CPU is better left alone with, too."""
    torch._dynamo.reset()
    monkeypatch.setattr(rules, "loss", lambda chain: None)


@pytest.fixture(params=["small", "operators"])
def size(request, monkeypatch):
    """Let operations run as for small images, which are composed, and as for large ones."""
    if request.param == "operators":
        monkeypatch.setattr(conv_plain, "SMALL", 0)
        monkeypatch.setattr(norm_plain, "SMALL", 0)


def image(n: int = 2, side: int = 32) -> Tensor:
    return torch.rand(n, 3, side, side, dtype=torch.float64) * 2 - 1


def flat(y) -> list[Tensor]:
    return [y] if isinstance(y, Tensor) else [t for part in y for t in flat(part)]


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the results and every gradient of a weighted sum of them."""
    x = x.clone().requires_grad_()
    found = flat(model(x))
    total = sum((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() for y in found)
    gradients = torch.autograd.grad(total, [x, *model.parameters()], allow_unused=True)
    return [*(y.detach().clone() for y in found), *(g for g in gradients if g is not None)]


def assert_same(model: nn.Module, fast: nn.Module, x: Tensor, limit: float = 1e-10) -> None:
    found, wanted = results(fast, x), results(model, x)
    assert len(found) == len(wanted)
    for mine, other in zip(found, wanted, strict=True):
        assert (mine - other).abs().max() <= limit * (1 + other.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same(name, size):
    model = NETWORKS[name]().double()
    fast = fastunit.accelerate(model)
    assert_same(model, fast, image())
    report = fast.acceleration
    assert len(report.fused) == FUSED[name] and not report.left, str(report)


def test_one_image_and_other_sizes_are_the_same_too():
    model = NETWORKS["MUNIT AdaINGen"]().double()
    fast = fastunit.accelerate(model)
    for n, side in ((1, 32), (2, 40), (3, 48)):
        assert_same(model, fast, image(n, side))


def test_evaluation_with_batch_norm():
    model = PatchGan(norm=nn.BatchNorm2d).double()
    model(image())
    fast = fastunit.accelerate(model)
    assert_same(model, fast, image())
    assert [entry.what for entry in fast.acceleration.left] == ["batch_norm"] * 3
    model.eval(), fast.eval()
    assert_same(model, fast, image())
    assert "4x4 convolution, batch norm in evaluation, lrelu" in str(fast.acceleration)


def test_parameters_and_keys_are_the_users():
    model = CycleGenerator()
    fast = fastunit.accelerate(model)
    assert type(fast) is CycleGenerator and fast is not model
    assert list(fast.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(fast.parameters(), model.parameters(), strict=True))
    assert fastunit.accelerate(model, inplace=True) is model
    assert model.acceleration is not None
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not int"):
        fastunit.accelerate(3)


def test_an_example_makes_the_report_complete():
    fast = fastunit.accelerate(PatchGan(), example=torch.rand(1, 3, 32, 32))
    assert fast.acceleration.graphs == 2
    assert str(fast.acceleration).startswith("5 fused, 0 left, 2 graphs\nfused:\n  model.0: 4x4")


def test_a_training_run_is_the_same():
    losses = []
    for accelerated in (False, True):
        torch.manual_seed(2)
        model = UnitGenerator().double()
        model = fastunit.accelerate(model, inplace=True) if accelerated else model
        optimizer = torch.optim.Adam(model.parameters())
        x, values = image(), []
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.l1_loss(model(x), x)
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        losses.append(values)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_copies_and_pickles_run_as_the_original():
    model = CycleGenerator().double()
    fast = fastunit.accelerate(model, example=image())
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert_same(model, other, image())
        assert_same(model, fastunit.accelerate(other), image())


def test_hooks_fire_and_may_replace_values():
    model = CycleGenerator().double()
    seen: list[Tensor] = []
    model.model[5].register_forward_hook(lambda module, args, y: seen.append(y))
    model.model[8].register_forward_hook(lambda module, args, y: 2 * y)
    model.register_forward_hook(lambda module, args, y: y + 1)
    x = image()
    wanted = model(x)
    fast = fastunit.accelerate(model)
    torch.testing.assert_close(fast(x), wanted)
    assert len(seen) == 2
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize(
    "normalize", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm]
)
def test_spectral_norm(normalize):
    model = PatchGan().double()
    for index in (0, 2, 5, 8, 11):
        normalize(model.model[index])
    x, start, found = image(), copy.deepcopy(model.state_dict()), []
    for network in (model, fastunit.accelerate(model)):
        network.load_state_dict(start)
        network.train()  # a step of power iteration in each call
        values = results(network, x)
        state = [value.clone() for value in network.state_dict().values()]
        found.append([*values, *state, *results(network.eval(), x)])
    assert all(torch.allclose(*pair, rtol=1e-9) for pair in zip(*found, strict=True))


def test_a_gradient_penalty(size):
    model = PatchGan().double()
    found, x = [], image().requires_grad_()
    for network in (model, fastunit.accelerate(model)):
        (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        found.append(torch.autograd.grad(penalty, [x, *model.parameters()], allow_unused=True))
    for mine, wanted in zip(*reversed(found), strict=True):
        assert (mine is None) == (wanted is None)
        if mine is not None and wanted is not None:
            assert (mine - wanted).abs().max() <= 1e-10 * (1 + wanted.abs().max())


def test_autocast():
    model = CycleGenerator()
    fast = fastunit.accelerate(model)
    x = image().float()
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        mine, other = fast(x), model(x)
    assert mine.dtype == other.dtype == torch.bfloat16
    limit = 2 * (other - exact).abs().max() + 1e-3
    assert (mine - exact).abs().max() <= limit
    assert len(set(fast.acceleration.fused)) == 10 and not fast.acceleration.left


def test_channels_last():
    model = CycleGenerator().double()
    x = image().contiguous(memory_format=torch.channels_last)
    assert_same(model, fastunit.accelerate(model), x)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
        lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
        lambda f, x: torch.func.vmap(f)(torch.stack([x, -x])),
        lambda f, x: torch.jit.trace(f, x, check_trace=False)(x),
        lambda f, x: torch.export.export(f, (x,)).module()(x),
        lambda f, x: torch.compile(f, backend="aot_eager", fullgraph=True)(x),
    ],
    ids=["grad", "jvp", "vmap", "trace", "export", "compile"],
)
def test_transforms_exports_and_other_compilers(transform):
    model, x = PatchGan().double(), image()
    fast = fastunit.accelerate(model)
    torch.testing.assert_close(transform(fast, x), transform(model, x), rtol=1e-9, atol=1e-9)


def test_what_is_traced_in_parts_is_right():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).relu()
            torch._dynamo.graph_break()
            return self.second(y).tanh()

    model = Broken().double()
    fast = fastunit.accelerate(model)
    assert_same(model, fast, image())
    assert fast.acceleration.graphs == 2 and len(fast.acceleration.fused) == 2


def test_shapes_for_which_nothing_is_fused_run_as_they_were(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    seen = []
    monkeypatch.setattr(rules, "loss", lambda chain: "small" if not seen else None)
    fast = fastunit.accelerate(model)
    x = torch.rand(1, 3, 8, 8)
    for _ in range(3):
        torch.testing.assert_close(fast(x), model(x))
    assert (fast.acceleration.graphs, fast.acceleration.runs) == (1, 0)
    seen.append(True)
    fast(x)
    assert fast.acceleration.graphs == 1  # that shape is not asked for again
    torch.testing.assert_close(fast(torch.rand(2, 3, 9, 9)).shape, torch.Size([2, 4, 7, 7]))
    assert (fast.acceleration.graphs, fast.acceleration.runs) == (2, 1)


def test_keywords_that_change_nothing_spare_the_checks_too(monkeypatch):
    class Named(nn.Conv2d):
        def forward(self, x, *, mask=None, features=False):
            y = super().forward(x) * (1 if mask is None else mask)
            return (y, [y]) if features else y

    monkeypatch.setattr(rules, "loss", lambda chain: "small")
    model, x = Named(3, 4, 3), torch.rand(1, 3, 8, 8)
    fast = fastunit.accelerate(model)
    calls = [{}, {"features": True}, {"mask": torch.rand(6, 6)}]
    for _ in range(2):
        for given in calls:
            torch.testing.assert_close(flat(fast(x, **given)), flat(model(x, **given)))
    monkeypatch.setattr(rules, "loss", lambda chain: None)
    torch._dynamo.reset()  # a call that were traced would be a graph more
    for given in calls:
        fast(x, **given)
    assert (fast.acceleration.graphs, fast.acceleration.runs) == (3, 0)


def test_what_a_gpu_is_better_left_alone_with_says_why(monkeypatch):
    monkeypatch.setattr(rules, "loss", rules.on_gpu)
    model = PatchGan().double()
    fast = fastunit.accelerate(model)
    assert_same(model, fast, image(side=128))
    report = fast.acceleration
    assert [entry.where for entry in report.fused] == ["model.2", "model.5"]
    reasons = [entry.why for entry in report.left]
    alone, large = "too little around the convolution", "filters too large for the image"
    for reason, wanted in zip(reasons, (alone, large, alone), strict=True):
        assert reason.startswith(wanted)
    fast = fastunit.accelerate(CycleGenerator(), example=image(side=64).float())
    assert len(fast.acceleration.fused) == 2 * FUSED["CycleGAN generator"]


def test_many_networks_do_not_share_a_limit():
    several = [fastunit.accelerate(nn.Sequential(nn.Conv2d(3, c, 3))) for c in range(1, 11)]
    for fast in several:
        fast(torch.rand(1, 3, 8, 8))
    assert [len(fast.acceleration.fused) for fast in several] == [1] * 10
