"""Codes with a learned standard deviation (equation 1), against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fastunit.common.errors import ConfigError
from fastunit.config import from_dict
from fastunit.models.unit import UNIT
from fastunit.models.unit2018 import VAEGen
from fastunit.models.vae import sample, sigma_layer
from fastunit.training import checkpoint
from fastunit.training.objective import Batch, generator_losses
from fastunit.training.state import TrainState
from fastunit.training.step import TrainStep

CPU = torch.device("cpu")


@pytest.fixture
def unit(tiny):
    """Return a maker of float64 networks of learned variance, and their configuration."""

    def made(**changes):
        torch.manual_seed(3)
        config = from_dict(tiny | {"latent": "learned"} | changes)
        return UNIT(config).double(), config

    return made


def spread(layer):
    """Move the layer away from where it starts, so that sd varies and is not close to 1."""
    with torch.no_grad():
        layer.weight.normal_(0, 0.5)
        layer.bias.normal_()


def test_samples_and_divergence_are_those_of_the_normal_distribution():
    mu = torch.randn(3, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    layer, noise = sigma_layer(6).double(), torch.randn(3, 6, 4, 5, dtype=torch.float64)
    spread(layer)
    z, kl = sample(mu, layer, noise)
    sd = torch.nn.functional.softplus(layer(mu))
    divergence = kl_divergence(Normal(mu, sd), Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    wanted_z, wanted_kl = mu + sd * noise, divergence * 2 / (6 * 4 * 5)
    torch.testing.assert_close(z, wanted_z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kl, wanted_kl, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(z)
    inputs = (mu, layer.weight, layer.bias)
    mine = torch.autograd.grad((z * weight).sum() + 3 * kl, inputs)
    wanted = torch.autograd.grad((wanted_z * weight).sum() + 3 * wanted_kl, inputs)
    for gradient, expected in zip(mine, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_a_spread_of_one_has_the_releases_divergence():
    mu, layer = torch.randn(2, 4, 3, 3, dtype=torch.float64), sigma_layer(4).double()
    with torch.no_grad():
        layer.weight.zero_()
    noise = torch.randn_like(mu)
    learned, unit = sample(mu, layer, noise), sample(mu, None, noise)
    for mine, wanted in zip(learned, unit, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(unit[1], mu.square().mean())


@pytest.mark.parametrize("init", ["kaiming", "orthogonal", "gaussian"])
def test_training_starts_close_to_a_spread_of_one(init, unit):
    networks, _ = unit(init=init)
    hidden = networks.gen_a.code(torch.rand(1, 3, 16, 16, dtype=torch.float64))
    sd = torch.nn.functional.softplus(networks.gen_a.sigma(hidden))
    assert (sd - 1).abs().max() < 0.3


@pytest.mark.parametrize("share", [0, 1])
def test_the_layer_is_shared_with_the_encoders_last_block(share, unit):
    networks, _ = unit(share={"enc": share, "dec": 0})
    assert (networks.gen_a.sigma is networks.gen_b.sigma) == bool(share)
    count = sum(p.numel() for p in networks.generators())
    assert count == sum(
        p.numel() for p in unit(latent="unit", share={"enc": share, "dec": 0})[0].generators()
    ) + (2 - share) * sum(p.numel() for p in networks.gen_a.sigma.parameters())


def test_every_code_gets_a_learned_spread(unit):
    networks, config = unit(share={"enc": 0, "dec": 0})
    for generator in (networks.gen_a, networks.gen_b):
        spread(generator.sigma)
    x_a, x_b = (torch.rand(2, 3, 16, 16, dtype=torch.float64) for _ in "ab")
    code = networks.gen_a.code(x_a)
    noise = {name: torch.randn_like(code) for name in ("a", "b", "ba", "ab")}
    losses = generator_losses(networks, Batch(x_a, x_b, noise), config)

    def drawn(generator, x, name):
        hidden = generator.code(x)
        sd = torch.nn.functional.softplus(generator.sigma(hidden))
        kl = (hidden.square() + sd.square() - sd.square().log() - 1).mean()
        return hidden + sd * noise[name], kl

    a, b = networks.gen_a, networks.gen_b
    (z_a, kl_a), (z_b, kl_b) = drawn(a, x_a, "a"), drawn(b, x_b, "b")
    (z_ba, kl_ba), (z_ab, kl_ab) = drawn(a, a.decode(z_b), "ba"), drawn(b, b.decode(z_a), "ab")
    wanted = {
        "kl_a": kl_a,
        "kl_b": kl_b,
        "cycle_kl_a": kl_ab,
        "cycle_kl_b": kl_ba,
        "cycle_a": (a.decode(z_ab) - x_a).abs().mean(),
        "cycle_b": (b.decode(z_ba) - x_b).abs().mean(),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("share", [0, 1])
def test_paired_and_unpaired_steps_agree(share, tiny):
    x_a, x_b = (torch.rand(2, 3, 16, 16, dtype=torch.float64) for _ in "ab")
    found = []
    for paired in ("on", "off"):
        torch.manual_seed(3)
        changes = {"latent": "learned", "pair_domains": paired, "share": {"enc": share, "dec": 0}}
        config = from_dict(tiny | changes)
        step = TrainStep(UNIT(config).double(), config)
        code = step.unit.gen_a.code(x_a).detach()
        torch.manual_seed(4)
        noise = {name: torch.randn_like(code) for name in ("a", "b", "ba", "ab")}
        losses = step(x_a, x_b, noise)
        found.append(losses | step.unit.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-7, atol=1e-9, msg=name)


def test_it_trains_and_is_restored(tiny, tmp_path):
    config = from_dict(tiny | {"latent": "learned", "share": {"enc": 0, "dec": 0}})
    session, images = TrainState(config, CPU), torch.rand(2, 2, 3, 16, 16)
    before = [g.sigma.weight.clone() for g in (session.unit.gen_a, session.unit.gen_b)]
    for _ in range(2):
        session.advance(*images)
    for generator, start in zip((session.unit.gen_a, session.unit.gen_b), before, strict=True):
        assert not torch.equal(generator.sigma.weight, start)
    pair, used = checkpoint.load_generators(session.save(tmp_path))
    assert used.latent == "learned"
    torch.testing.assert_close(
        pair.translate(images[0], "a2b"), session.generator_pair.translate(images[0], "a2b")
    )


def test_a_sample_in_training_a_mean_in_evaluation():
    gen = VAEGen(3, {"dim": 4, "n_res": 1, "n_downsample": 1}, latent="learned").double()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    spread(gen.sigma)
    assert not torch.equal(gen(x)[0], gen(x)[0])
    gen.eval()
    torch.testing.assert_close(gen(x)[0], gen.decode(gen.code(x)))
    torch.manual_seed(0)
    hidden, noise = gen.encode(x)
    torch.manual_seed(0)
    torch.testing.assert_close(hidden + noise, gen.sample(hidden)[0])


def test_other_kinds_of_code_are_refused(tiny):
    with pytest.raises(ConfigError, match="latent='wide' must be one of unit, learned"):
        from_dict(tiny | {"latent": "wide"})
    with pytest.raises(ValueError, match="latent"):
        VAEGen(3, {}, latent="wide")
