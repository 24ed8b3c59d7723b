"""What calls an operation's function directly, and what still gets the registered operator."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastunit.kernels import conv_norm_act, norm_act, reparameterize
from fastunit.kernels.common import eager

W = torch.randn(4, 3, 3, 3, dtype=torch.float64)
OPERATIONS = {
    "conv_block": lambda x: conv_norm_act(
        x, W, padding=1, pad_mode="reflect", norm="in", act="relu"
    ),
    "norm_act": lambda x: norm_act(x, norm="ln", act="lrelu"),
    "reparameterize": lambda x: reparameterize(x, noise=torch.ones_like(x))[0],
}


def image(**options):
    return torch.randn(2, 3, 6, 5, dtype=torch.float64, **options)


def operators(run):
    """Return the names of fastunit's operators that PyTorch's dispatcher was asked for."""
    with torch.profiler.profile() as found:
        run()
    return {event.key for event in found.key_averages() if event.key.startswith("fastunit::")}


@pytest.mark.parametrize("name", OPERATIONS)
def test_eager_calls_do_without_the_dispatcher(name):
    x = image(requires_grad=True)
    assert not operators(lambda: OPERATIONS[name](x).sum().backward())


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_to_be_differentiated_come_from_the_operator(name):
    x = image(requires_grad=True)
    y = OPERATIONS[name](x).square().sum()
    found = operators(lambda: torch.autograd.grad(y, x, create_graph=True))
    assert found == {f"fastunit::{name}_backward"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_modes_and_subclasses_see_the_operator(name):
    with FlopCounterMode(display=False):
        seen = operators(lambda: OPERATIONS[name](image()))
    assert seen == {f"fastunit::{name}"}
    with torch._subclasses.FakeTensorMode():
        assert not eager.only_autograd(image())
    assert not eager.only_autograd(torch.nn.Buffer(image()), image().as_subclass(Other))


@pytest.mark.parametrize("name", OPERATIONS)
def test_both_ways_give_the_same_bits(name, monkeypatch):
    x = image()

    def run():
        leaf = x.clone().requires_grad_()
        y = OPERATIONS[name](leaf)
        return y.detach(), torch.autograd.grad(y, leaf, torch.cos(y.detach()))[0]

    direct = run()
    monkeypatch.setattr(eager, "only_autograd", lambda *tensors: False)
    assert operators(run) == {f"fastunit::{name}", f"fastunit::{name}_backward"}
    for mine, registered in zip(direct, run(), strict=True):
        assert torch.equal(mine, registered)


def test_batches_of_gradients_come_from_the_operator():
    x = image(requires_grad=True)
    for f in OPERATIONS.values():
        y, seeds = f(x), torch.randn(2, *f(x).shape, dtype=torch.float64)
        (found,) = torch.autograd.grad(y, x, seeds, is_grads_batched=True)
        wanted = [torch.autograd.grad(f(x), x, seed)[0] for seed in seeds]
        torch.testing.assert_close(found, torch.stack(wanted))


class Other(torch.Tensor):
    """A tensor subclass."""


def test_cached_results_are_of_the_very_same_values():
    calls = []

    @eager.cached
    def seen(*values):
        calls.append(values)
        return values

    for value in (1, 1.0, True, 1, 1.0):
        assert seen(value) == (value,)
    assert [type(value) for (value,) in calls] == [int, float, bool]
    assert seen([2]) == seen([2]) == ([2],)  # cannot be hashed: asked for each time
    assert len(calls) == 5
