"""What a user of the release's trainer puts in the place of its parts counts."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn

from fastunit import MsImageDis, VAEGen
from fastunit.compat import ATTRIBUTES, UNIT_Trainer, release_trainer
from fastunit.models.perceptual import Perceptual
from tests.support.trainer import CONFIG, assert_alike, batch, make, noise, updated


class Calls(list):
    """Notes calls, and wraps functions that do as before but for being noted."""

    def noting(self, name, function):
        def noted(*args, **kwargs):
            self.append(name)
            return function(*args, **kwargs)

        return noted


def wrap(owner, name, calls):
    setattr(owner, name, calls.noting(name, getattr(owner, name)))


def wrap_class(trainer, calls, name, key):
    """Give a network's class a subclass that notes calls of a method."""
    network = getattr(trainer, name)
    method = getattr(type(network), key)
    network.__class__ = type("Own", (type(network),), {key: calls.noting(key, method)})


NO_OPS = {
    "recon_criterion": (lambda t, c: wrap(t, "recon_criterion", c), 4),
    "kl": (lambda t, c: wrap(t, "_UNIT_Trainer__compute_kl", c), 4),
    "encode": (lambda t, c: wrap(t.gen_a, "encode", c), 3),
    "decode": (lambda t, c: wrap(t.gen_b, "decode", c), 4),
    "decode of a subclass": (lambda t, c: wrap_class(t, c, "gen_a", "decode"), 4),
    "calc_gen_loss": (lambda t, c: wrap(t.dis_b, "calc_gen_loss", c), 1),
    "calc_dis_loss": (lambda t, c: wrap(t.dis_a, "calc_dis_loss", c), 1),
    "calc_dis_loss of a subclass": (lambda t, c: wrap_class(t, c, "dis_b", "calc_dis_loss"), 1),
    "forward of a discriminator": (lambda t, c: wrap(t.dis_a, "forward", c), 3),
    "forward of the encoder": (lambda t, c: wrap(t.gen_a.enc, "forward", c), 3),
    "forward of a block": (lambda t, c: wrap(t.gen_b.dec.model[-1], "forward", c), 4),
    "hook": (lambda t, c: t.dis_a.register_forward_hook(c.noting("hook", lambda *_: None)), 3),
    "inner hook": (
        lambda t, c: t.gen_a.enc.register_forward_hook(c.noting("hook", lambda *_: None)), 3,
    ),
    "pre-hook": (
        lambda t, c: t.dis_b.cnns[1].register_forward_pre_hook(c.noting("", lambda *_: None)), 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_OPS)
def test_what_does_as_before_is_called_and_changes_nothing(case):
    trainer, calls = make(), Calls()
    change, count = NO_OPS[case]
    change(trainer, calls)
    mine = updated(trainer, 1)
    assert len(calls) == count
    assert_alike(mine, updated(make(), 1))


def test_the_identity_term_counts_in_the_plain_way():
    fused, plain = make(identity_w=5), make(identity_w=5)
    wrap(plain.gen_b, "encode", calls := Calls())
    without = updated(make(), 1)
    mine, wanted = updated(plain, 1), updated(fused, 1)
    assert len(calls) == 4
    assert_alike(mine, wanted)
    assert mine[0]["loss_gen_total"] > without[0]["loss_gen_total"] + 0.1


def test_methods_of_classes_changed_at_any_time_count(monkeypatch):
    trainer, calls = make(), Calls()
    for cls, name in (
        (VAEGen, "encode"), (MsImageDis, "calc_gen_loss"), (UNIT_Trainer, "recon_criterion"),
    ):  # fmt: skip
        monkeypatch.setattr(cls, name, calls.noting(name, getattr(cls, name)))
    updated(trainer, 1)
    assert [calls.count(name) for name in ("encode", "calc_gen_loss", "recon_criterion")] == [
        6,
        2,
        4,
    ]


class Own(UNIT_Trainer):
    def recon_criterion(self, input, target):
        return 3 * super().recon_criterion(input, target)


def test_a_subclass_changes_what_it_says_and_nothing_else():
    own, plain = make(Own), make()
    for trainer in (own, plain):
        trainer.gen_update(*batch(), CONFIG, noise=noise())
    for name in ATTRIBUTES.values():
        factor = 3 if "recon_x" in name or "cyc_x" in name else 1
        if name != "loss_gen_total":
            wanted = pytest.approx(factor * float(getattr(plain, name)), rel=1e-10)
            assert float(getattr(own, name)) == wanted, name
    more = 2 * sum(
        10 * float(getattr(plain, f"loss_gen_{n}_{d}")) for n in ("recon_x", "cyc_x") for d in "ab"
    )
    assert float(own.loss_gen_total) == pytest.approx(float(plain.loss_gen_total) + more)


def test_a_subclass_keeps_its_own_names():
    class Busy(UNIT_Trainer):
        def __init__(self, hyperparameters):
            super().__init__(hyperparameters)
            self.config = {"mine": 1}
            self.execution = self.unit = None

        def encode(self, x):
            raise AssertionError("this is the user's")

        decode = translate = discriminate = sample_noise = encode

    busy = make(Busy)
    assert_alike(updated(busy, 1), updated(make(), 1))
    assert busy.config == {"mine": 1}
    assert len(busy.sample(*batch())) == 6 and len(busy(*batch())) == 2


def test_what_cannot_be_honoured_is_refused_by_name():
    trainer = make(latent="learned")
    trainer.recon_criterion = lambda x, y: (x - y).square().mean()
    with pytest.raises(ValueError, match=r"latent=learned .* recon_criterion; use latent=unit"):
        trainer.gen_update(*batch(), CONFIG)
    trainer = make()
    trainer.recon_criterion = nn.L1Loss()
    with pytest.raises(ValueError, match="recon_criterion of UNIT_Trainer is a method"):
        trainer.gen_update(*batch(), CONFIG)
    trainer = make()
    trainer.dis_a.calc_gen_loss = nn.Identity()
    with pytest.raises(ValueError, match="calc_gen_loss of MsImageDis is a method"):
        trainer.dis_update(*batch(), CONFIG)


@pytest.fixture
def vgg(monkeypatch):
    torch.manual_seed(3)
    network = Perceptual().double()
    monkeypatch.setattr(release_trainer, "load_perceptual", lambda path: copy.deepcopy(network))
    return network


def test_the_perceptual_term_can_be_replaced(vgg):
    keys = {"vgg_w": 1.0, "vgg_model_path": "vgg16.pth"}

    def losses(change):
        trainer = make(**keys)
        change(trainer)
        trainer.gen_update(*batch(), noise=noise())
        return [float(getattr(trainer, f"loss_gen_vgg_{d}")) for d in "ab"]

    class Features(nn.Module):  # as the release's: BGR of 0..255 less the mean
        def forward(self, x):
            for index, conv in enumerate(vgg.convs):
                x = conv(x).relu()
                if index in (1, 3, 6):
                    x = nn.functional.max_pool2d(x, 2)
            return x

    def assign(name, value):
        return lambda trainer: setattr(trainer, name, value)

    wanted = losses(lambda trainer: None)
    assert min(wanted) > 0
    noop = lambda vgg, x, y: UNIT_Trainer.compute_vgg_loss(made[-1], vgg, x, y)  # noqa: E731
    made = []
    assert losses(assign("vgg", Features().double())) == pytest.approx(wanted, rel=1e-9)
    assert losses(assign("instancenorm", nn.InstanceNorm2d(512))) == pytest.approx(wanted, rel=1e-9)
    assert losses(assign("instancenorm", nn.Identity())) != pytest.approx(wanted, rel=1e-3)
    assert losses(assign("compute_vgg_loss", lambda vgg, x, y: (x - y).mean() * 0 + 7)) == [7, 7]
    assert losses(
        lambda t: (made.append(t), setattr(t, "compute_vgg_loss", noop))
    ) == pytest.approx(wanted, rel=1e-9)

    class Other(UNIT_Trainer):
        def compute_vgg_loss(self, vgg, img, target):
            return (img - target).square().mean()

    trainer = make(Other, vgg_w=1.0)  # needs no weights of VGG16
    trainer.gen_update(*batch(), noise=noise())
    assert trainer.vgg is None and trainer.loss_gen_vgg_a > 0


def test_noise_is_what_a_replaced_encode_returns():
    trainer = make()
    for generator in (trainer.gen_a, trainer.gen_b):
        code = generator.code
        generator.encode = types.MethodType(
            lambda self, x, code=code: (code(x), 0 * code(x)), generator
        )
    trainer.gen_update(*batch(), CONFIG)
    silent = make()
    silent.gen_update(*batch(), CONFIG, noise={k: 0 * v for k, v in noise().items()})
    assert float(trainer.loss_gen_total) == pytest.approx(float(silent.loss_gen_total), rel=1e-10)


def test_accumulation_and_clipping_hold_for_replaced_methods():
    keys = {"accumulate": 2, "clip_grad_norm": 0.1}
    own, plain = make(**keys), make(**keys)
    own.recon_criterion = lambda x, y: (x - y).abs().mean()
    assert_alike(updated(own, 1), updated(plain, 1))
