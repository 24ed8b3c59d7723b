"""Precisions: what they mean where, and that bf16 trains as float32 does."""

from __future__ import annotations

import pytest
import torch

from fastunit.common import precision
from fastunit.common.errors import ConfigError
from fastunit.config import from_dict
from fastunit.kernels.conv import aten, plain
from fastunit.models.unit import UNIT
from fastunit.training.state import TrainState
from fastunit.training.step import TrainStep

CPU = torch.device("cpu")
ITERATIONS, SMOOTH = 200, 50


@pytest.fixture
def train(tiny):
    """Return a function: (precision, seed, iterations) -> step and its losses [iterations, names].

    Images are bright blobs in one domain and dark ones in the other, new ones every time.
    """

    def trained(name, seed=0, iterations=3, **changes):
        config = from_dict(tiny | {"precision": name, "lr": 1e-3} | changes)
        torch.manual_seed(seed)
        step = TrainStep(UNIT(config), config)
        data = torch.Generator().manual_seed(100 + seed)
        rows = []
        for _ in range(iterations):
            coarse = torch.rand(2, 2, 3, 4, 4, generator=data)
            fine = coarse.repeat_interleave(4, 3).repeat_interleave(4, 4)
            rows.append(step(fine[0], fine[1] - 1))
        return step, rows

    return trained


@pytest.mark.parametrize("name", ["bf16", "fp32", "inherit"])
def test_weights_gradients_and_losses_are_float32(name, train):
    step, rows = train(name)
    assert all(p.dtype == torch.float32 for p in step.unit.parameters())
    assert all(p.grad.dtype == torch.float32 for p in step.unit.generators())
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in rows[-1].values())


def test_bf16_rounds_and_fp32_does_not(train):
    (_, [exact]), (_, [found]) = (train(name, iterations=1) for name in ("fp32", "bf16"))
    for name, loss in exact.items():
        assert loss != found[name], name
        torch.testing.assert_close(found[name], loss, rtol=0.05, atol=0.02)


def test_fp32_overrides_autocast_and_inherit_follows_it(train):
    exact = train("fp32", iterations=1)[1][0]
    with torch.autocast("cpu", torch.bfloat16):
        found = {name: train(name, iterations=1)[1][0] for name in ("fp32", "inherit")}
    assert all(torch.equal(found["fp32"][name], exact[name]) for name in exact)
    assert not torch.equal(found["inherit"]["generator_total"], exact["generator_total"])


def test_float64_networks_stay_so_whatever_the_precision(tiny):
    images = [torch.rand(2, 3, 16, 16, dtype=torch.float64) for _ in range(2)]
    found = []
    for name in ("bf16", "fp32"):
        torch.manual_seed(0)
        config = from_dict(tiny | {"precision": name})
        found.append(TrainStep(UNIT(config).double(), config)(*images))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_bf16_trains_as_fp32_does(train):
    """The mean losses of the end differ less between precisions than between seeds."""

    def end(name, seed):
        rows = train(name, seed, ITERATIONS)[1][-SMOOTH:]
        return {key: torch.stack([row[key] for row in rows]).mean() for key in rows[0]}

    exact = [end("fp32", seed) for seed in range(3)]
    rounded = [end("bf16", seed) for seed in range(3)]
    for key in exact[0]:
        values, others = (torch.stack([e[key] for e in ends]) for ends in (exact, rounded))
        # Means of three seeds each: 3 standard errors of their difference.
        spread = (values.var() + others.var()).div(3).sqrt()
        assert (values.mean() - others.mean()).abs() <= 3 * spread + 1e-3 * values.mean(), key
    first = train("bf16", 0, 1)[1][0]["generator_total"]
    assert rounded[0]["generator_total"] < 0.8 * first  # it does learn


def test_auto_is_fp32_on_a_cpu():
    assert precision.resolve("auto", CPU) == "fp32"
    assert precision.resolve("bf16", CPU) == "bf16"


@pytest.mark.parametrize(("capability", "wanted"), [((9, 0), "bf16"), ((7, 5), "fp32")])
def test_auto_is_bf16_on_gpus_that_have_it(capability, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.resolve("auto", torch.device("cuda")) == wanted


def test_tf32_needs_a_gpu(tiny, monkeypatch):
    with pytest.raises(ConfigError, match=r"precision=tf32 needs an NVIDIA GPU.*not cpu; use"):
        precision.resolve("tf32", CPU)
    with pytest.raises(ConfigError, match="precision=tf32 needs"):
        TrainState(from_dict(tiny | {"precision": "tf32"}), CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert precision.resolve("tf32", torch.device("cuda")) == "tf32"


def test_settings_are_made_inside_and_restored_after_an_error():
    backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    for name, wanted in (("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "ieee")):
        with pytest.raises(KeyError), precision.autocast(name, CPU):
            assert [backend.fp32_precision for backend in backends] == [wanted] * 2
            assert torch.is_autocast_enabled("cpu") == (name == "bf16")
            raise KeyError
        assert [backend.fp32_precision for backend in backends] == before
    with precision.autocast("inherit", CPU):
        assert [backend.fp32_precision for backend in backends] == before


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("name", "wanted"), [("fp32", "ieee"), ("bf16", "ieee")])
def test_backward_multiplies_as_forward_does(name, wanted, recompute, train, monkeypatch):
    monkeypatch.setattr(plain, "SMALL", 0)  # else small blocks are composed of other operations
    found = {"fprop": set(), "backward": set()}
    for kind in found:
        function = getattr(aten, kind)

        def watched(*args, kind=kind, function=function):
            found[kind].add(torch.backends.cudnn.conv.fp32_precision)
            return function(*args)

        monkeypatch.setattr(aten, kind, watched)
    train(name, iterations=1, checkpoint_activations=recompute)
    assert found == {"fprop": {wanted}, "backward": {wanted}}
