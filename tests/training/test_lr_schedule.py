"""The learning rate of each iteration, on the host and on the device, resumed and extended."""

from __future__ import annotations

import copy
import math
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fastunit.config import from_dict
from fastunit.training import checkpoint, lr_schedule
from fastunit.training.optim import make_capturable

LINEAR = {"lr": 0.008, "lr_policy": "linear", "max_iter": 8, "decay_from": 0.5}
RATES = [0.008] * 5 + [0.006, 0.004, 0.002, 0.0, 0.0]  # 5 to 8 go down; nothing is left after


def rates(step, batch, count):
    """Return the rate of each of the next updates, as the host and both optimisers know it."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(count):
            step(*batch)
            used = {float(o.param_groups[0]["lr"]) for o in (step.dis_opt, step.gen_opt)}
            assert len(used) == 1 and step.learning_rate == pytest.approx(*used, rel=1e-6)
            found.append(step.learning_rate)
    return found


def test_the_rate_stays_then_falls_to_nothing(make_step, batch):
    assert rates(make_step(**LINEAR), batch, 10) == pytest.approx(RATES, rel=1e-12)


@pytest.mark.parametrize("decay_from", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("max_iter", [1, 7, 1000])
def test_every_iteration_learns_and_the_last_hardly(max_iter, decay_from):
    config = from_dict(LINEAR | {"max_iter": max_iter, "decay_from": decay_from})
    found = [lr_schedule.rate(config, i) for i in range(1, max_iter + 2)]
    assert found[0] == config.lr and found[-1] == 0 < found[-2]
    steps = [a - b for a, b in pairwise(found) if a != b]
    assert steps == pytest.approx([found[-2]] * len(steps))
    assert len(steps) == max_iter - int(decay_from * max_iter)


def test_a_rate_on_the_device_is_changed_in_place(make_step, batch):
    """As a captured step needs it: the same tensor, whose value a replay reads."""
    step = make_step(**LINEAR)
    for optimizer in (step.dis_opt, step.gen_opt):
        make_capturable(optimizer)
    held = step.gen_opt.param_groups[0]["lr"]
    found = []
    for _ in range(9):
        step.update_learning_rate()
        assert step.gen_opt.param_groups[0]["lr"] is held
        found.append(float(held))
        assert torch.float32 == held.dtype and step.learning_rate == pytest.approx(found[-1])
    assert found == pytest.approx(RATES[:9])


def test_a_restored_step_continues_bitwise(make_step, batch):
    step, again = make_step(**LINEAR), make_step(**LINEAR)
    rates(step, batch, 6)
    again.unit.load_state_dict(copy.deepcopy(step.unit.state_dict()))
    again.load_state_dict(copy.deepcopy(step.state_dict()))
    found = []
    for each in (step, again):
        torch.manual_seed(5)
        found.append(rates(each, batch, 2))
    assert found[0] == found[1] == pytest.approx(RATES[6:8])
    mine, wanted = (each.unit.state_dict() for each in (again, step))
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


def test_a_cosine_falls_to_nothing_and_is_half_in_the_middle(make_step, batch):
    cosine = LINEAR | {"lr_policy": "cosine"}
    falling = [0.004 * (1 + math.cos(math.pi * i / 4)) for i in range(5)]
    wanted = [0.008] * 4 + falling + [0]
    assert rates(make_step(**cosine), batch, 10) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("policy", ["step", "constant", "linear", "cosine"])
def test_a_warm_up_rises_from_nothing_under_any_policy(policy, make_step, batch):
    plain = LINEAR | {"lr_policy": policy, "step_size": 3}
    warm = [i / 4 for i in range(1, 4)] + [1.0] * 5
    wanted = [w * rate for w, rate in zip(warm, rates(make_step(**plain), batch, 8), strict=True)]
    assert rates(make_step(**plain, warmup_iter=4), batch, 8) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("before", ["step", "constant", "linear", "cosine", "warm"])
@pytest.mark.parametrize("after", ["step", "constant", "linear", "cosine"])
def test_another_schedule_is_taken_up_where_the_run_stands(before, after, make_step, batch):
    first = {"warmup_iter": 6, "lr_policy": "step"} if before == "warm" else {"lr_policy": before}
    old = make_step(**LINEAR | {"step_size": 2} | first)
    rates(old, batch, 4)
    config = LINEAR | {"lr_policy": after, "step_size": 3, "max_iter": 12, "gamma": 0.1}
    new = make_step(**config)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    new.reset_settings(4)
    wanted = [lr_schedule.rate(new.config, iteration) for iteration in range(5, 9)]
    assert rates(new, batch, 4) == pytest.approx(wanted)


def test_a_cosine_with_a_warm_up_goes_on_bitwise(command):
    cosine = ("--set", "lr_policy=cosine", "--set", "warmup_iter=3", "--set", "decay_from=0")
    command("--output", "whole", "--max-iter", 6, *cosine)
    command("--output", "cut", "--max-iter", 6, *cosine)
    for path in Path("cut/checkpoints").glob("*.pt"):
        if path.stem[-8:] > "00000002":
            path.unlink()
    code, _, err = command("--resume", "cut", defaults=False)
    assert code == 0 and "changed settings" not in err
    whole, cut = (checkpoint.load(checkpoint.path_of(Path(n), 6)) for n in ("whole", "cut"))
    assert all(torch.equal(cut["unit"][name], value) for name, value in whole["unit"].items())
    rate = cut["step"]["gen_opt"]["param_groups"][0]["lr"]
    assert rate == whole["step"]["gen_opt"]["param_groups"][0]["lr"] > 0


def test_a_run_goes_on_bitwise_and_a_longer_one_follows_its_own_schedule(command):
    linear = ("--set", "lr_policy=linear", "--set", "lr=0.008", "--set", "decay_from=0.25")
    command("--output", "whole", "--max-iter", 8, *linear)
    command("--output", "cut", "--max-iter", 8, *linear)
    for path in Path("cut/checkpoints").glob("*.pt"):
        if path.stem[-8:] > "00000004":
            path.unlink()
    code, _, err = command("--resume", "cut", defaults=False)
    assert code == 0 and "changed settings" not in err
    whole, cut = (checkpoint.load(checkpoint.path_of(Path(n), 8)) for n in ("whole", "cut"))
    assert all(torch.equal(cut["unit"][name], value) for name, value in whole["unit"].items())
    assert whole["step"]["gen_opt"]["param_groups"][0]["lr"] == pytest.approx(0.008 / 6)
    code, _, err = command("--resume", "cut", "--max-iter", 12, defaults=False)
    assert code == 0 and "continuing with changed settings: max_iter 8 -> 12" in err
    longer = checkpoint.load(checkpoint.path_of(Path("cut"), 12))
    assert longer["step"]["gen_opt"]["param_groups"][0]["lr"] == pytest.approx(0.008 / 9)
