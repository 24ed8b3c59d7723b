"""Networks, optimisers and schedules of a user's own in the release's trainer."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from fastunit import VAEGen
from tests.support.trainer import CONFIG, GEN, assert_alike, batch, make, noise, updated


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
    assert_alike(updated(again), updated(trainer))


def test_one_own_network_beside_ours():
    trainer = make()
    trainer.dis_b = Judge().double()
    with pytest.warns(UserWarning, match="dis_opt holds no .* dis_b, which is not trained"):
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
