"""Adam over weights of any layout, and what restored states may not change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastunit.config import Config
from fastunit.training.optim import adam, check_moments, make_capturable, reset_execution

CONFIG = Config(lr=0.01, beta1=0.3, beta2=0.9, weight_decay=0.1)
FORMATS = (torch.contiguous_format, torch.channels_last)


def weights(form, dtype=torch.float32):
    torch.manual_seed(1)
    images = torch.randn(6, 5, 3, 4).contiguous(memory_format=form)
    rest = torch.randn(7), torch.randn(4, 3, 1, 1)
    return [torch.nn.Parameter(p.to(dtype)) for p in (images, *rest)]


def train(optimizer, steps=4, form=torch.preserve_format):
    torch.manual_seed(2)
    for _ in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            gradient = torch.randn(p.shape, dtype=torch.float64)
            own = form if p.dim() == 4 else torch.preserve_format
            p.grad = torch.empty_like(p, memory_format=own).copy_(gradient)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gradients", FORMATS)
@pytest.mark.parametrize("form", FORMATS)
def test_it_is_adam_whatever_the_layout(form, gradients, dtype):
    mine, wanted = weights(form, dtype), weights(torch.contiguous_format, torch.float64)
    options = {"lr": 0.01, "betas": (0.3, 0.9), "weight_decay": 0.1}
    reference = torch.optim.Adam(wanted, fused=False, foreach=False, **options)
    optimizer = adam(mine, CONFIG)
    for each in (optimizer, reference):
        train(each, form=gradients)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for p, q in zip(mine, wanted, strict=True):
        torch.testing.assert_close(p.double(), q, rtol=tolerance, atol=tolerance)
        for name in ("exp_avg", "exp_avg_sq"):
            moment, other = optimizer.state[p][name], reference.state[q][name]
            assert moment.shape == p.shape
            torch.testing.assert_close(moment.double(), other, rtol=tolerance, atol=tolerance)


def test_any_dense_order_in_memory_is_updated_as_the_others():
    order = torch.randn(3, 5, 6, 8).permute(2, 1, 0, 3)
    mine, wanted = torch.nn.Parameter(order), torch.nn.Parameter(order.contiguous())
    assert not mine.is_contiguous() and not mine.is_contiguous(memory_format=torch.channels_last)
    for parameter in (mine, wanted):
        train(adam([parameter], CONFIG))
    torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize(
    "cut", [lambda w: w[..., ::2], lambda w: w[:, :3], lambda w: w[:1].expand(6, 5, 4, 8)]
)
def test_weights_with_gaps_or_overlaps_are_refused_untouched(cut):
    parameter = torch.nn.Parameter(cut(torch.randn(6, 5, 4, 8)))
    before = parameter.detach().clone()
    with pytest.raises(ValueError, match=r"strides \(.*make it contiguous\(\)"):
        train(adam([parameter], CONFIG))
    assert torch.equal(parameter, before)


def test_channels_last_weights_are_not_copied():
    class Copies(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
            return function(*args, **(kwargs or {}))

    optimizer = adam(weights(torch.channels_last), CONFIG)
    train(optimizer, 1)
    assert all(p.is_contiguous() for group in dense_lists(optimizer) for p in group if p.dim() == 4)
    with Copies() as copies:
        optimizer.step()
    assert copies.count == 0


def dense_lists(optimizer):
    """Return weights, gradients and moments as the fused update gets them."""
    lists = [[] for _ in range(6)]
    optimizer._init_group(optimizer.param_groups[0], *lists)
    return lists[:4]


def test_moments_restored_in_another_layout_belong_to_the_same_weights():
    first = adam(weights(torch.contiguous_format), CONFIG)
    train(first, 2)
    second = adam(weights(torch.channels_last), CONFIG)
    for p, q in zip(first.param_groups[0]["params"], second.param_groups[0]["params"], strict=True):
        with torch.no_grad():
            q.copy_(p)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer in (first, second):
        train(optimizer, 2)
    for p, q in zip(first.param_groups[0]["params"], second.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_state_does_not_bring_its_way_of_computing_along():
    plain = torch.optim.Adam(weights(torch.contiguous_format), foreach=True)
    train(plain, 1)
    state = plain.state_dict()
    state["param_groups"][0] |= {"capturable": True, "lr": torch.tensor(0.25)}
    optimizer = adam(weights(torch.channels_last), CONFIG)
    optimizer.load_state_dict(state)
    reset_execution(optimizer)
    group = optimizer.param_groups[0]
    found = {key: group[key] for key in ("lr", "capturable", "fused", "foreach")}
    assert found == {"lr": 0.25, "capturable": False, "fused": True, "foreach": None}
    assert type(group["lr"]) is float
    train(optimizer, 1)


def test_a_captured_rate_lies_on_the_device_and_follows_its_schedule():
    optimizer = adam(weights(torch.channels_last), CONFIG)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    make_capturable(optimizer)
    rate = optimizer.param_groups[0]["lr"]
    found = []
    for _ in range(4):
        scheduler.step()
        found.append(float(rate))
    assert optimizer.param_groups[0]["lr"] is rate  # a graph reads this tensor
    assert found == pytest.approx([0.01, 0.005, 0.005, 0.0025])


def test_moments_of_other_weights_are_refused():
    optimizer = adam(weights(torch.channels_last), CONFIG)
    train(optimizer, 1)
    check_moments(optimizer)
    state = optimizer.state[optimizer.param_groups[0]["params"][1]]
    state["exp_avg"] = state["exp_avg"][:3]
    with pytest.raises(ValueError, match=r"exp_avg of shape \(3,\) for a weight of shape \(7,\)"):
        check_moments(optimizer)
