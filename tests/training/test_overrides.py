"""What a user of the release's trainer puts in the place of its parts counts."""

from __future__ import annotations

import copy
import types
import warnings

import pytest
import torch
from torch import nn

from fastunit import MsImageDis, VAEGen, compat
from fastunit.compat import ATTRIBUTES, UNIT_Trainer
from fastunit.models.perceptual import Perceptual

NETWORKS = ("gen_a", "gen_b", "dis_a", "dis_b")
GEN = {"dim": 4, "activ": "relu", "n_downsample": 1, "n_res": 1, "pad_type": "reflect"}
DIS = {
    "dim": 4, "norm": "none", "activ": "lrelu", "n_layer": 2, "gan_type": "lsgan",
    "num_scales": 2, "pad_type": "reflect",
}  # fmt: skip
CONFIG = {
    "lr": 0.001, "lr_policy": "step", "step_size": 2, "gamma": 0.5, "gan_w": 1, "recon_x_w": 10,
    "recon_kl_w": 0.01, "recon_x_cyc_w": 10, "recon_kl_cyc_w": 0.01, "vgg_w": 0, "gen": GEN,
    "dis": DIS, "input_dim_a": 3, "input_dim_b": 3, "crop_image_height": 16,
    "crop_image_width": 16,
}  # fmt: skip


def batch():
    source = torch.Generator().manual_seed(4)
    return (torch.rand(2, 3, 16, 16, generator=source).double() * 2 - 1 for _ in "ab")


def noise():
    source = torch.Generator().manual_seed(5)
    shape = 2, 8, 8, 8
    return {
        k: torch.randn(shape, generator=source, dtype=torch.float64) for k in ["a", "b", "ba", "ab"]
    }


def make(cls=UNIT_Trainer, **keys):
    torch.manual_seed(0)
    return cls(CONFIG | keys).double()


def updated(trainer, steps=2):
    """Train with given noise; return the losses and all weights."""
    for _ in range(steps):
        trainer.update_learning_rate()
        trainer.dis_update(*batch(), CONFIG, noise=noise())
        trainer.gen_update(*batch(), CONFIG, noise=noise())
    return (
        {name: float(getattr(trainer, name)) for name in ATTRIBUTES.values()},
        {
            f"{name}.{key}": value
            for name in NETWORKS
            for key, value in getattr(trainer, name).state_dict().items()
        },
    )


def assert_same(mine, wanted):
    assert mine[0] == pytest.approx(wanted[0], rel=1e-10, abs=1e-14)
    assert mine[1].keys() == wanted[1].keys()
    for name, value in wanted[1].items():
        torch.testing.assert_close(mine[1][name], value, rtol=1e-7, atol=1e-9, msg=name)


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
    assert_same(mine, updated(make(), 1))


def test_the_identity_term_counts_in_the_plain_way():
    fused, plain = make(identity_w=5), make(identity_w=5)
    wrap(plain.gen_b, "encode", calls := Calls())
    without = updated(make(), 1)
    mine, wanted = updated(plain, 1), updated(fused, 1)
    assert len(calls) == 4
    assert_same(mine, wanted)
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
    assert_same(updated(busy, 1), updated(make(), 1))
    assert busy.config == {"mine": 1}
    assert len(busy.sample(*batch())) == 6 and len(busy(*batch())) == 2


class Generator(nn.Module):
    """A user's own: no more than the release's methods."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 2, 2), nn.ConvTranspose2d(8, 3, 2, 2)

    def encode(self, images):
        hidden = self.down(images)
        return hidden, torch.randn_like(hidden)

    def decode(self, hidden):
        return self.up(hidden).tanh()


class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 1, 4, 4)

    def calc_dis_loss(self, input_fake, input_real):
        return self.net(input_fake).square().mean() + (self.net(input_real) - 1).square().mean()

    def calc_gen_loss(self, input_fake):
        return (self.net(input_fake) - 1).square().mean()


def own_networks():
    trainer = make()
    trainer.gen_a, trainer.gen_b = Generator().double(), Generator().double()
    trainer.dis_a, trainer.dis_b = Judge().double(), Judge().double()
    for kind in ("gen", "dis"):
        parameters = [p for d in "ab" for p in getattr(trainer, f"{kind}_{d}").parameters()]
        setattr(trainer, f"{kind}_opt", torch.optim.SGD(parameters, 0.01, momentum=0.9))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(getattr(trainer, f"{kind}_opt"), 0.5)
        setattr(trainer, f"{kind}_scheduler", scheduler)
    return trainer


def test_own_networks_optimisers_and_schedules_train_save_and_go_on(tmp_path):
    trainer = own_networks()
    before = copy.deepcopy(trainer.state_dict())
    updated(trainer, 3)
    changed = [k for k, v in trainer.state_dict().items() if not torch.equal(v, before[k])]
    assert len(changed) == len(before)
    assert trainer.gen_opt.param_groups[0]["lr"] == trainer.dis_opt.param_groups[0]["lr"] == 0.00125
    x_a, x_b = batch()
    with torch.no_grad():
        x_ab = trainer.gen_b.decode(trainer.gen_a.encode(x_a)[0])
    assert torch.equal(trainer(x_a, x_b)[0], x_ab) and torch.equal(
        trainer.sample(x_a, x_b)[2], x_ab
    )

    trainer.save(tmp_path, 2)
    again = own_networks()
    assert again.resume(tmp_path, CONFIG) == 3
    for name in ("gen_opt", "dis_opt"):
        assert isinstance(getattr(again, name), torch.optim.SGD)
        saved, loaded = (getattr(t, name).state_dict()["state"] for t in (trainer, again))
        assert all(
            torch.equal(saved[i]["momentum_buffer"], loaded[i]["momentum_buffer"]) for i in saved
        )
    assert again.gen_scheduler.last_epoch == 3 and again.gen_scheduler.gamma == 0.5
    assert_same(updated(again), updated(trainer))


def test_one_own_network_beside_ours():
    trainer = make()
    trainer.dis_b = Judge().double()
    with pytest.warns(UserWarning, match="dis_opt holds no parameter of dis_b, which"):
        assert updated(trainer, 1)[0]["loss_dis_b"] > 0
    trainer = make()
    trainer.gen_b = VAEGen(3, GEN | {"n_res": 2}).double()  # ours, but otherwise built
    trainer.gen_opt = torch.optim.Adam(
        [*trainer.gen_a.parameters(), *trainer.gen_b.parameters()], 0.001
    )
    trainer.gen_scheduler = None
    before = trainer.gen_b.enc.model[0].conv.weight.clone()
    updated(trainer, 1)
    assert not torch.equal(trainer.gen_b.enc.model[0].conv.weight, before)


def test_an_assigned_optimiser_is_the_one_that_steps():
    trainer = make()
    weight = trainer.gen_a.enc.model[0].conv.weight
    others = copy.deepcopy(trainer.gen_b.state_dict())
    trainer.gen_opt = torch.optim.SGD(
        [{"params": [weight]}, {"params": [trainer.gen_a.enc.model[1].conv.weight], "lr": 0.0}], 0.5
    )
    trainer.gen_scheduler = trainer.dis_scheduler = None
    before = weight.detach().clone()
    trainer.update_learning_rate()
    trainer.gen_update(*batch(), CONFIG, noise=noise())
    torch.testing.assert_close(weight.detach(), before - 0.5 * weight.grad)
    assert all(torch.equal(v, others[k]) for k, v in trainer.gen_b.state_dict().items())
    assert trainer.dis_opt.param_groups[0]["lr"] == 0.001


def test_a_schedule_of_another_optimiser_is_told():
    trainer = make()
    trainer.dis_opt = torch.optim.SGD(trainer.dis_a.parameters(), 0.5)
    with pytest.warns(UserWarning, match="dis_scheduler sets the rate of another optimizer"):
        trainer.update_learning_rate()
    trainer.dis_scheduler = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.update_learning_rate()


def test_resume_takes_the_schedule_of_its_hyperparameters(tmp_path):
    trainer = make()
    updated(trainer, 3)
    trainer.save(tmp_path, 2)
    again = make()
    again.resume(tmp_path, CONFIG | {"lr": 7.0, "step_size": 4, "gamma": 0.1})
    rates = []
    for _ in range(2):
        again.update_learning_rate()
        rates += [o.param_groups[0]["lr"] for o in (again.gen_opt, again.dis_opt)]
    assert rates == pytest.approx([5e-5] * 4)  # the file's rate times 0.1 at iteration 4
    again.resume(tmp_path, CONFIG | {"lr_policy": "constant"})
    assert again.gen_scheduler is None and again.gen_opt.param_groups[0]["lr"] == 5e-4


def test_an_optimiser_of_another_kind_is_refused(tmp_path):
    trainer = make()
    trainer.gen_opt = torch.optim.SGD(
        [*trainer.gen_a.parameters(), *trainer.gen_b.parameters()], 0.1
    )
    trainer.save(tmp_path, 0)
    with pytest.raises(
        ValueError, match=r"optimizer\.pt does not fit .*another kind, without.*betas"
    ):
        make().resume(tmp_path)


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
    monkeypatch.setattr(compat, "load_perceptual", lambda path: copy.deepcopy(network))
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
    assert_same(updated(own, 1), updated(plain, 1))
