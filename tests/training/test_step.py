"""One training step: its optimisers, its schedule, and what it leaves alone."""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import pytest
import torch

from fastunit.common.errors import CheckpointError
from fastunit.training.objective import LOSSES, Batch, discriminator_losses, generator_losses
from fastunit.training.step import frozen
from tests.support.compare import assert_same
from tests.support.steps import noise_for, weights
from tests.support.tensors import images


def test_each_update_changes_its_own_networks_only(make_step, batch):
    step, before = make_step(), None
    for update, own in ((step.dis_update, "dis_"), (step.gen_update, "gen_")):
        before = weights(step)
        update(*batch)
        after = weights(step)
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed
        assert all(name.startswith(own) for name in changed)
        assert {name.split(".")[0] for name in changed} == {f"{own}a", f"{own}b"}


def test_the_generators_update_leaves_the_discriminators_gradients_alone(make_step, batch):
    step = make_step()
    step.gen_update(*batch)
    assert all(p.grad is None for p in step.unit.discriminators())
    step.dis_update(*batch)
    before = [p.grad.clone() for p in step.unit.discriminators()]
    assert any(grad.any() for grad in before)
    step.gen_update(*batch)
    grads = [p.grad for p in step.unit.discriminators()]
    assert all(map(torch.equal, grads, before))
    assert all(p.requires_grad for p in step.unit.parameters())


@pytest.mark.parametrize("shapes", [((2, 3, 16, 16),) * 2, ((2, 3, 16, 16), (1, 1, 24, 16))])
def test_sharing_the_fakes_changes_nothing_but_the_noise(shapes, make_step):
    domains = {"input_dim_a": shapes[0][1], "input_dim_b": shapes[1][1], "share": {}}
    batch = [images(*shape) for shape in shapes]
    found = []
    for share_fakes in (True, False):
        step = make_step(dtype=torch.float64, share_fakes=share_fakes, **domains)
        torch.manual_seed(3)
        for _ in range(3):
            losses = step(*batch, noise=noise_for(step.unit, *batch))
        found.append(weights(step) | losses)
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-7, atol=1e-9)


def test_sharing_the_fakes_saves_a_pass_of_the_generators(make_step, batch):
    calls = Counter()
    for share_fakes in (True, False):
        step = make_step(share_fakes=share_fakes)
        for generator in (step.unit.gen_a, step.unit.gen_b):
            layer = generator.enc.model[0]
            layer.register_forward_hook(lambda *_, key=share_fakes: calls.update([key]))
        step(*batch)
    assert calls == {True: 4, False: 6}


def test_an_exception_gives_the_discriminators_their_gradients_back(make_step, batch):
    step = make_step()
    with pytest.raises(ValueError, match="noise has no"):
        step.gen_update(*batch, noise={})
    assert all(p.requires_grad for p in step.unit.parameters())
    step.dis_update(*batch)


def test_frozen_thaws_only_what_it_froze():
    layers = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    layers[0].bias.requires_grad_(False)
    x = torch.ones(1, 2, requires_grad=True)
    with frozen([p for layer in layers for p in layer.parameters()]):
        layers[1](layers[0](x)).sum().backward()
        assert not any(p.requires_grad for layer in layers for p in layer.parameters())
    assert x.grad.any() and layers[1].weight.grad is None
    states = [p.requires_grad for layer in layers for p in layer.parameters()]
    assert states == [True, False, True, True]


def test_gradients_do_not_pile_up_and_adam_gets_them(make_step, batch):
    step = make_step(lr_policy="constant")
    for update, losses_of, parameters, key in (
        (step.dis_update, discriminator_losses, step.unit.discriminators(), "discriminator_total"),
        (step.gen_update, generator_losses, step.unit.generators(), "generator_total"),
    ):
        for _ in range(2):  # the second time over what the first left behind
            twin = copy.deepcopy(step.unit)
            torch.manual_seed(1)
            total = losses_of(twin, Batch(*batch), step.config)[key]
            own = twin.discriminators() if "dis" in key else twin.generators()
            wanted = torch.autograd.grad(total, own)
            torch.manual_seed(1)
            losses = update(*batch)
            assert torch.equal(losses[key], total.detach())
            for parameter, grad in zip(parameters, wanted, strict=True):
                torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def test_adam_as_configured_with_l2_inside_the_gradient(make_step, batch):
    settings = {"lr": 0.01, "beta1": 0.3, "beta2": 0.9, "weight_decay": 0.5}
    step = make_step(**settings, lr_policy="constant")
    before = weights(step)
    step.dis_update(*batch)
    for name, parameter in step.unit.dis_a.named_parameters():
        old = before[f"dis_a.{name}"]
        grad = parameter.grad + 0.5 * old
        # Adam's first step: both averages are corrected to the gradient and its square.
        torch.testing.assert_close(parameter.detach(), old - 0.01 * grad / (grad.abs() + 1e-8))
    for optimizer in (step.dis_opt, step.gen_opt):
        assert isinstance(optimizer, torch.optim.Adam)
        group = optimizer.param_groups[0]
        assert (group["lr"], group["betas"], group["weight_decay"]) == (0.01, (0.3, 0.9), 0.5)


def test_shared_parameters_are_once_in_the_optimiser(make_step):
    step = make_step(share={"enc": 1, "dec": 1})
    for optimizer, parameters in (
        (step.gen_opt, step.unit.generators()),
        (step.dis_opt, step.unit.discriminators()),
    ):
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert len(held) == len(set(held))
        assert held == list(map(id, parameters))


def test_a_step_returns_every_loss_detached(make_step, batch):
    losses = make_step()(*batch)
    off = {f"{kind}_{d}" for kind in ("perceptual", "identity", "style", "content") for d in "ab"}
    assert losses.keys() == LOSSES.keys() - off
    assert all(loss.shape == () and not loss.requires_grad for loss in losses.values())


def rates_used(step, batch, iterations):
    """Return the rates with which each optimiser stepped, recorded as it steps."""
    used = {"dis": [], "gen": []}
    for name, optimizer in (("dis", step.dis_opt), ("gen", step.gen_opt)):
        optimizer.register_step_pre_hook(
            lambda opt, *_, n=name: used[n].append(opt.param_groups[0]["lr"])
        )
    for _ in range(iterations):
        step(*batch)
    assert used["dis"] == used["gen"]
    return used["gen"]


@pytest.mark.parametrize("step_size", [1, 2, 3])
def test_the_schedule_advances_once_before_each_update(step_size, make_step, batch):
    step = make_step(lr=0.01, gamma=0.5, step_size=step_size)
    assert step.learning_rate == 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        used = rates_used(step, batch, 7)
    wanted = {
        1: [0.005, 0.0025, 0.00125, 0.000625, 0.0003125, 0.00015625, 0.000078125],
        2: [0.01, 0.005, 0.005, 0.0025, 0.0025, 0.00125, 0.00125],
        3: [0.01, 0.01, 0.005, 0.005, 0.005, 0.0025, 0.0025],
    }[step_size]
    assert used == pytest.approx(wanted, rel=1e-12)
    assert step.learning_rate == pytest.approx(wanted[-1], rel=1e-12)


def test_a_constant_rate_stays(make_step, batch):
    step = make_step(lr=0.01, lr_policy="constant", step_size=1)
    assert rates_used(step, batch, 3) == [0.01] * 3


@pytest.mark.parametrize("policy", ["step", "constant"])
def test_a_restored_step_continues_bitwise(policy, make_step, batch):
    step = make_step(lr_policy=policy, step_size=2)
    for _ in range(3):
        step(*batch)
    networks, state = copy.deepcopy((step.unit.state_dict(), step.state_dict()))
    torch.manual_seed(5)
    for _ in range(3):
        step(*batch)
    again = make_step(lr_policy=policy, step_size=2)
    again.unit.load_state_dict(networks)
    again.load_state_dict(state)
    torch.manual_seed(5)
    for _ in range(3):
        again(*batch)
    assert_same(weights(again), weights(step))
    assert again.learning_rate == step.learning_rate


@pytest.mark.parametrize("state", [{}, {"gen": {}, "dis": {}}, [1], {"gen": 3, "dis": 4}])
def test_optimisers_of_something_else_are_refused(state, make_step):
    with pytest.raises(CheckpointError, match=r"optimizer\.pt does not fit the networks"):
        make_step().load_release_optimizers(state, 1)


@pytest.mark.parametrize("gen", [{"n_res": 2}, {"dim": 8}], ids=["more blocks", "wider"])
def test_optimisers_of_other_networks_are_refused(gen, make_step, tiny, batch):
    other = make_step(gen=tiny["gen"] | gen)
    other(*batch)
    state = {"gen": other.gen_opt.state_dict(), "dis": other.dis_opt.state_dict()}
    with pytest.raises(CheckpointError, match=r"optimizer\.pt does not fit"):
        make_step().load_release_optimizers(state, 1)
