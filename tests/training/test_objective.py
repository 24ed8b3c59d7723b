"""Every named loss against its formula, computed from the networks with given noise."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from fastunit.config import Config, from_dict
from fastunit.models.unit import UNIT
from fastunit.training.objective import LOSSES, Batch, discriminator_losses, generator_losses
from tests.support.steps import noise_for
from tests.support.tensors import images

# Distinct primes, so that no two weights can be exchanged unseen.
WEIGHTS = {
    "gan_w": 2.0,
    "recon_x_w": 3.0,
    "recon_kl_w": 5.0,
    "recon_x_cyc_w": 7.0,
    "recon_kl_cyc_w": 11.0,
    "vgg_w": 13.0,
}
TERMS = {
    "adversarial": "gan_w",
    "reconstruction": "recon_x_w",
    "kl": "recon_kl_w",
    "cycle": "recon_x_cyc_w",
    "cycle_kl": "recon_kl_cyc_w",
    "perceptual": "vgg_w",
}


class Setting:
    """Two domains of different channels, batch and crop sizes, and noise for their codes."""

    def __init__(self, config: Config, size_a=(2, 1, 16, 24), size_b=(3, 3, 20, 16)) -> None:
        self.config, self.unit = config, UNIT(config).double()
        self.x_a, self.x_b = images(*size_a), images(*size_b)
        self.noise = noise_for(self.unit, self.x_a, self.x_b)

    def generator_losses(self, **changes):
        perceptual, config = changes.pop("perceptual", StandIn()), replace(self.config, **changes)
        batch = Batch(self.x_a, self.x_b, self.noise)
        return generator_losses(self.unit, batch, config, perceptual)

    def discriminator_losses(self, noise=None):
        return discriminator_losses(self.unit, Batch(self.x_a, self.x_b, noise), self.config)


@pytest.fixture(params=["lsgan", "nsgan"])
def setting(tiny, request) -> Setting:
    gan = tiny["dis"] | {"gan_type": request.param}
    return Setting(from_dict(tiny | WEIGHTS | {"input_dim_a": 1, "dis": gan}))


def distance(output, target):
    """Tell the two arguments apart, for want of VGG16's weights."""
    return (output.mean() - 3 * target.mean()).square()


class StandIn:
    """Stands in for the perceptual term."""

    def pair(self, outputs, targets):
        return tuple(map(distance, outputs, targets))


def adversarial(outputs, target, kind):
    if kind == "lsgan":
        return sum(((y - target) ** 2).mean() for y in outputs)
    right = outputs if target else [-y for y in outputs]
    return -sum(torch.log(torch.sigmoid(y)).mean() for y in right)


def l1(x, y):
    return (x - y).abs().sum() / x.numel()


def kl(mu):
    return (mu**2).sum() / mu.numel()


def formulas(s: Setting) -> dict:
    """Return each of the generators' losses, straight from NETWORKS.md."""
    unit, noise, kind = s.unit, s.noise, s.config.dis.gan_type
    enc_a, dec_a, enc_b, dec_b = unit.gen_a.enc, unit.gen_a.dec, unit.gen_b.enc, unit.gen_b.dec
    h_a, h_b = enc_a(s.x_a), enc_b(s.x_b)
    z_a, z_b = h_a + noise["a"], h_b + noise["b"]
    x_ba, x_ab = dec_a(z_b), dec_b(z_a)
    h_b_again, h_a_again = enc_a(x_ba), enc_b(x_ab)
    return {
        "adversarial_a": adversarial(unit.dis_a(x_ba), 1, kind),
        "adversarial_b": adversarial(unit.dis_b(x_ab), 1, kind),
        "reconstruction_a": l1(dec_a(z_a), s.x_a),
        "reconstruction_b": l1(dec_b(z_b), s.x_b),
        "kl_a": kl(h_a),
        "kl_b": kl(h_b),
        "cycle_a": l1(dec_a(h_a_again + noise["ab"]), s.x_a),
        "cycle_b": l1(dec_b(h_b_again + noise["ba"]), s.x_b),
        "cycle_kl_a": kl(h_a_again),
        "cycle_kl_b": kl(h_b_again),
        "perceptual_a": distance(x_ba, s.x_b),
        "perceptual_b": distance(x_ab, s.x_a),
    }


def total(losses: dict):
    return sum(WEIGHTS[TERMS[name[:-2]]] * loss for name, loss in losses.items())


def test_generator_losses_are_their_formulas(setting):
    losses, wanted = setting.generator_losses(), formulas(setting)
    wanted["generator_total"] = total(wanted)
    assert losses.keys() == wanted.keys()
    for name, loss in losses.items():
        assert loss.shape == ()
        torch.testing.assert_close(loss, wanted[name], msg=lambda m, n=name: f"{n}: {m}")
    mine, theirs = (
        torch.autograd.grad(t, setting.unit.generators())
        for t in (losses["generator_total"], wanted["generator_total"])
    )
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def test_discriminator_losses_are_their_formulas(setting):
    unit, kind, noise = setting.unit, setting.config.dis.gan_type, setting.noise
    losses = setting.discriminator_losses({"a": noise["a"], "b": noise["b"]})
    x_ba = unit.gen_a.dec(unit.gen_b.enc(setting.x_b) + noise["b"]).detach()
    x_ab = unit.gen_b.dec(unit.gen_a.enc(setting.x_a) + noise["a"]).detach()
    wanted = {
        f"discriminator_{name}": adversarial(dis(x), 1, kind) + adversarial(dis(fake), 0, kind)
        for name, dis, x, fake in (
            ("a", unit.dis_a, setting.x_a, x_ba),
            ("b", unit.dis_b, setting.x_b, x_ab),
        )
    }
    wanted["discriminator_total"] = WEIGHTS["gan_w"] * sum(wanted.values())
    assert losses.keys() == wanted.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, wanted[name], msg=lambda m, n=name: f"{n}: {m}")


def test_every_loss_is_explained(tiny):
    setting = Setting(from_dict(tiny | WEIGHTS | {"identity_w": 17.0}), size_a=(2, 3, 16, 24))
    names = setting.generator_losses().keys() | setting.discriminator_losses().keys()
    munits = {name for name in LOSSES if name.startswith(("style", "content"))}
    assert names == LOSSES.keys() - munits


def test_the_generators_get_no_gradient_from_the_discriminators_losses(setting):
    setting.discriminator_losses()["discriminator_total"].backward()
    assert all(p.grad is None for p in setting.unit.generators())
    assert all(p.grad is not None for p in setting.unit.discriminators())


def count_calls(unit) -> Counter:
    calls = Counter()
    layers = {"enc": "enc.model.0", "dec": "dec.model.3"}  # that domains do not share
    for name in ("gen_a.enc", "gen_a.dec", "gen_b.enc", "gen_b.dec", "dis_a", "dis_b"):
        network, _, part = name.partition(".")
        module = unit.get_submodule(f"{network}.{layers.get(part, 'cnns.0.0')}")
        module.register_forward_hook(lambda *_, n=name: calls.update([n]))
    return calls


def test_without_the_cycle_its_losses_and_passes_are_left_out(setting):
    calls = count_calls(setting.unit)
    whole = setting.generator_losses()
    assert calls == {
        "gen_a.enc": 2, "gen_a.dec": 3, "gen_b.enc": 2, "gen_b.dec": 3, "dis_a": 1, "dis_b": 1,
    }  # fmt: skip
    calls.clear()
    losses = setting.generator_losses(recon_x_cyc_w=0.0)
    assert calls == {
        "gen_a.enc": 1, "gen_a.dec": 2, "gen_b.enc": 1, "gen_b.dec": 2, "dis_a": 1, "dis_b": 1,
    }  # fmt: skip
    rest = {name: loss for name, loss in formulas(setting).items() if "cycle" not in name}
    assert losses.keys() == rest.keys() | {"generator_total"}
    torch.testing.assert_close(losses["generator_total"], total(rest))
    assert all(torch.equal(losses[name], whole[name]) for name in rest)


def test_a_discriminator_update_passes_each_network_no_more_than_it_must(setting):
    calls = count_calls(setting.unit)
    setting.discriminator_losses()
    assert calls == {
        "gen_a.enc": 1, "gen_a.dec": 1, "gen_b.enc": 1, "gen_b.dec": 1, "dis_a": 2, "dis_b": 2,
    }  # fmt: skip


def test_without_a_perceptual_weight_the_term_is_not_called(setting):
    class Fails:
        def pair(self, *_):
            pytest.fail("the perceptual term was evaluated")

    losses = setting.generator_losses(vgg_w=0.0, perceptual=Fails())
    assert "perceptual_a" not in losses
    rest = {name: loss for name, loss in formulas(setting).items() if "perceptual" not in name}
    torch.testing.assert_close(losses["generator_total"], total(rest))
    with pytest.raises(ValueError, match=r"vgg_w=13\.0 needs the perceptual term"):
        setting.generator_losses(perceptual=None)


@pytest.mark.parametrize("missing", ["a", "b", "ba", "ab"])
def test_missing_noise_is_named(setting, missing):
    del setting.noise[missing]
    with pytest.raises(ValueError, match=f"noise has no {missing};.* a, b, ba, ab"):
        setting.generator_losses()
    if missing in ("a", "b"):
        with pytest.raises(ValueError, match=f"noise has no {missing};.* a, b$"):
            setting.discriminator_losses(setting.noise)


def test_noise_of_the_wrong_shape_is_refused(setting):
    setting.noise["ab"] = setting.noise["ab"][:1]
    with pytest.raises(ValueError, match=r"noise of shape \(1, 8, 8, 12\) .*\(2, 8, 8, 12\)"):
        setting.generator_losses()


@pytest.mark.parametrize("of", [discriminator_losses, generator_losses])
def test_noise_is_drawn_afresh_and_follows_the_seed(setting, of):
    config = replace(setting.config, vgg_w=0.0)

    def once():
        return of(setting.unit, Batch(setting.x_a, setting.x_b), config)

    torch.manual_seed(7)
    first, second = once(), once()
    torch.manual_seed(7)
    again = once()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    # Only the KL of the images' own codes does not depend on the noise.
    assert {name for name in first if torch.equal(first[name], second[name])} <= {"kl_a", "kl_b"}
    drawn = {name: first[name].item() for name in first if name not in ("kl_a", "kl_b")}
    assert len(set(drawn.values())) == len(drawn)
