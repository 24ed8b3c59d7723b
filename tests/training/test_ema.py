"""The running average: its ramp to the digit, on the device alone, in graphs and checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from fastunit.config import from_dict
from fastunit.training.ema import Average
from fastunit.training.objective import Batch
from fastunit.training.state import TrainState

CPU = torch.device("cpu")


class NoWaiting(TorchDispatchMode):
    """Refuses every read of a tensor's value by the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits"
        return func(*args, **kwargs or {})


def network() -> nn.Module:
    made = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).double()
    made.append(made[0])  # shared
    return made.to(memory_format=torch.channels_last)


def move(module: nn.Module) -> list[torch.Tensor]:
    for value in (*module.parameters(), *module.buffers()):
        value.data.add_(1) if value.dtype == torch.int64 else value.data.normal_()
    return [p.detach().clone() for p in module.parameters()]


def ramped(average, weights, n, decay):
    d = min(decay, (1 + n) / (10 + n))
    return [d * a + (1 - d) * w for a, w in zip(average, weights, strict=True)]


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.999])
def test_the_ramp_is_exact(decay):
    module = network()
    wanted = [p.detach().clone() for p in module.parameters()]
    average = Average(module, decay)
    for n in range(30):
        wanted = ramped(wanted, move(module), n, decay)
        average.update()
    for mine, other in zip(average.module.parameters(), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    for mine, other in zip(average.module.buffers(), module.buffers(), strict=True):
        assert torch.equal(mine, other)
    assert average.updates == 30
    assert average.module[0] is average.module[3]
    assert not any(p.requires_grad for p in average.module.parameters())


def test_float32_weights_that_stay_are_their_average():
    module = network().float()
    average = Average(module, 0.999)
    for _ in range(50):
        average.update()
    for mine, other in zip(average.module.parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_what_was_recorded_once_ramps_when_it_is_replayed():
    """As a CUDA graph does, which runs the recorded operations on the same memory again."""
    module = network()
    average, twin = (Average(module, 0.9) for _ in range(2))
    recorded = make_fx(lambda: average.update())()
    average.module.load_state_dict(twin.module.state_dict())  # recording has run it once
    average.updates.zero_()
    for _ in range(15):
        move(module)
        recorded()
        twin.update()
    assert average.updates == 15
    mine, other = average.module.state_dict(), twin.module.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 2}, {"lr_policy": "linear", "identity_w": 1.0}, {"share_fakes": False}],
)
def test_a_step_that_averages_does_not_wait_for_the_device(tiny, changes):
    session = TrainState(from_dict(tiny | {"ema_decay": 0.9} | changes), CPU)
    batch = torch.rand(2, 2, 3, 16, 16)
    session.advance(*batch)
    with NoWaiting():
        session.advance(*batch)
    with NoWaiting(), pytest.raises(AssertionError, match="the host waits"):
        int(session._average.updates)


def test_the_average_is_taken_where_the_step_is_captured(tiny):
    """`GraphedStep` replays `updates`: what is outside happens on the host every time."""
    session = TrainState(from_dict(tiny | {"ema_decay": 0.9}), CPU)
    session.step.updates(Batch(*torch.rand(2, 2, 3, 16, 16)))
    assert session._average.updates == 1
    pairs = zip(session.generator_pair.parameters(), session.unit.generators(), strict=True)
    assert any(not torch.equal(mine, other) for mine, other in pairs)


def test_the_networks_of_few_iterations_are_those_that_were_trained(tiny):
    """With 0.999 for each of 20 updates the average would be the untrained network by 98 %."""
    session = TrainState(from_dict(tiny | {"ema_decay": 0.999, "lr": 0.01}), CPU)
    before = [p.clone() for p in session.generator_pair.parameters()]
    for _ in range(20):
        session.advance(*torch.rand(2, 2, 3, 16, 16))
    way, left = (
        sum(
            (x - y).square().sum()
            for x, y in zip(xs, session.generator_pair.parameters(), strict=True)
        )
        for xs in (before, list(session.unit.generator_pair().parameters()))
    )
    assert left < way / 4


def test_a_checkpoint_of_an_average_without_a_ramp_goes_on_in_the_ramp(tiny):
    session = TrainState(from_dict(tiny | {"ema_decay": 0.9}), CPU)
    state = copy.deepcopy(session.state() | {"ema_updates": 7})
    assert isinstance(session.state()["ema_updates"], int)
    weights = {name: 1 - 2 * value for name, value in state["ema"].items()}
    session.restore(state | {"ema": weights}, "state")
    session.advance(*torch.rand(2, 2, 3, 16, 16))
    mine, trained = session.generator_pair.state_dict(), session.unit.generator_pair().state_dict()
    for name, value in weights.items():
        torch.testing.assert_close(mine[name], (8 * value + 9 * trained[name]) / 17, msg=name)
    assert session.state()["ema_updates"] == 8


def test_an_average_that_is_switched_on_later_starts_there(tiny):
    plain = TrainState(from_dict(tiny), CPU)
    plain.advance(*torch.rand(2, 2, 3, 16, 16))
    session = TrainState(from_dict(tiny | {"ema_decay": 0.9}), CPU)
    session.restore(copy.deepcopy(plain.state()), "state")
    mine, trained = session.generator_pair.state_dict(), plain.unit.generator_pair().state_dict()
    assert all(torch.equal(mine[name], trained[name]) for name in trained)
    assert session.state()["ema_updates"] == 0
