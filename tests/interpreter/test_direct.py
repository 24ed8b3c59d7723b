"""Gradients that backward adds to buffers itself, against those that autograd gathers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastunit.kernels.common.runtime import default_impl
from fastunit.models.chain import Program
from fastunit.models.grouped import BatchPair, GroupedExecution
from fastunit.models.layers import Conv2dBlock, UpsampleConv2dBlock
from fastunit.models.packed import NetworkFilters
from fastunit.training.gradients import FlatGradients

BLOCKS = {
    "instance norm": lambda: Conv2dBlock(4, 6, 3, 1, 1, "in", "relu", "reflect"),
    "layer norm, strided": lambda: Conv2dBlock(4, 6, 4, 2, 1, "ln", "lrelu"),
    "bias": lambda: Conv2dBlock(4, 3, 3, 1, 1, "none", "tanh"),
    "head": lambda: Conv2dBlock(4, 1, 1, 1, 0),
    "upsampling": lambda: UpsampleConv2dBlock(4, 6, 5, 2, "ln", "relu", "reflect"),
}


@pytest.fixture(params=BLOCKS)
def networks(request):
    torch.manual_seed(0)
    pair = [nn.Sequential(BLOCKS[request.param]()) for _ in range(2)]
    return [each.to(memory_format=torch.channels_last) for each in pair]


def parameters_of(networks):
    return list(dict.fromkeys(p for each in networks for p in each.parameters()))


def begun(networks):
    """Return gradients that begin with zero, in a buffer of earlier ones."""
    flat = FlatGradients(parameters_of(networks))
    flat.buffer.fill_(math.nan)
    flat.zero()
    return flat


def run(networks, flat=None, grouped=True, times=2):
    """Return the result, the input's gradient and the parameters' after backward passes."""
    torch.manual_seed(1)
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    y = torch.randn(1, 4, 4, 4)
    execution = GroupedExecution(grouped)
    filters = NetworkFilters(*networks, execution.filters)
    with default_impl("triton"):
        assert filters.write(grouped, flat) == (flat is not None)
        for _ in range(times):
            a, b = execution.run(*networks, BatchPair(x, y))
            (a.square().sum() + 2 * b.square().sum()).backward()
    if flat is not None:
        flat.gather()
    return [a, b, x.grad, *(p.grad for p in parameters_of(networks))]


def ordinary(networks, **options):
    for p in parameters_of(networks):
        p.grad = None
    found = run(networks, **options)
    return [None if t is None else t.clone() for t in found]


@pytest.mark.parametrize("grouped", [True, False])
def test_they_are_those_of_autograd(networks, grouped):
    wanted = ordinary(networks, grouped=grouped)
    flat = begun(networks)
    found = run(networks, flat, grouped)
    for mine, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)
    views = {p.grad.untyped_storage().data_ptr() for p in parameters_of(networks)}
    assert views == {flat.buffer.untyped_storage().data_ptr()}


def test_a_layer_of_both_networks_gets_both_gradients(networks):
    networks[1] = networks[0]
    wanted = ordinary(networks)
    flat = begun(networks)
    for mine, its in zip(run(networks, flat), wanted, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


def test_frozen_parameters_get_none(networks):
    flat = FlatGradients(parameters_of(networks))
    for network in networks:
        network.requires_grad_(False)
    _, _, dx, *_ = run(networks, flat, times=1)
    assert dx.any() and not flat.buffer.any()


def test_parameters_with_hooks_are_left_to_autograd(networks):
    seen = []
    hooked = networks[1][0].conv.weight
    hooked.register_hook(lambda gradient: seen.append(gradient.clone()))
    ordinary(networks, times=1)
    wanted = hooked.grad.clone()
    assert len(seen) == 1
    flat = begun(networks)
    execution = GroupedExecution(True)
    with default_impl("triton"):
        assert not NetworkFilters(*networks, execution.filters).write(True, flat)
        torch.manual_seed(1)
        x, y = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
        a, b = execution.run(*networks, BatchPair(x, y))
        (a.square().sum() + 2 * b.square().sum()).backward()
    assert len(seen) == 2
    torch.testing.assert_close(hooked.grad, wanted)


def test_a_gradient_with_a_graph_is_added_too(networks):
    """Where backward has to be seen by autograd, it runs as the registered operator."""
    wanted = ordinary(networks, times=1)
    flat = begun(networks)
    torch.manual_seed(1)
    x, y = torch.randn(1, 4, 4, 4, requires_grad=True), torch.randn(1, 4, 4, 4)
    execution = GroupedExecution(True)
    with default_impl("triton"):
        NetworkFilters(*networks, execution.filters).write(True, flat)
        a, b = execution.run(*networks, BatchPair(x, y))
        torch.autograd.grad(a.square().sum() + 2 * b.square().sum(), x, create_graph=True)
    for p, its in zip(parameters_of(networks), wanted[3:], strict=True):
        torch.testing.assert_close(p.grad, its, rtol=1e-5, atol=1e-5)


def test_gradients_without_a_use_are_zero(networks):
    flat = begun(networks)
    flat.gather()
    assert not any(p.grad.any() for p in parameters_of(networks))


def penalised(networks, flat, loss):
    """Return the gradients of a loss of both networks' results and the parameters, used twice."""
    torch.manual_seed(1)
    x, y = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    execution = GroupedExecution(True)
    with default_impl("triton"):
        NetworkFilters(*networks, execution.filters).write(True, flat)
        for _ in range(2):
            loss(execution, x, y).backward()
    if flat is not None:
        flat.gather()
    return [p.grad.clone() for p in parameters_of(networks)]


@pytest.mark.parametrize("first", ["alone", "both", "penalty"])
def test_filters_with_several_uses_get_the_sum(networks, first):
    """The first of them writes, whichever it is: of one network, of both, or autograd's own."""

    def loss(execution, x, y):
        both = BatchPair(x, y)
        if first == "both":  # backward begins with what ran last
            alone = Program(networks[0])(x, execution.filters)
        a, b = execution.run(*networks, both)
        if first != "both":
            alone = Program(networks[0])(x, execution.filters)
        total = a.square().sum() + 2 * b.square().sum() + alone.square().sum()
        if first == "penalty":
            total = total + sum(p.square().sum() for p in parameters_of(networks))
        return total

    for p in parameters_of(networks):
        p.grad = None
    wanted = penalised(networks, None, loss)
    for mine, its in zip(penalised(networks, begun(networks), loss), wanted, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)
