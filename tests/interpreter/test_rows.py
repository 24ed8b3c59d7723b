"""Gradients of parameters that the norm's kernels sum over the samples of a row themselves."""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels.norm_act import merges
from fastunit.kernels.norm_act.aten import NormActOptions
from fastunit.kernels.norm_act.launch import norm_act_backward_triton, norm_act_triton
from fastunit.kernels.norm_act.rows import Rows

CHANNELS = 72  # two tiles of channels


def backward(norm, gamma, rows, samples=4):
    """Return the gradients of a tail over several tiles of pixels an image."""
    torch.manual_seed(0)
    x, dy = (torch.randn(samples, 12, 11, CHANNELS) for _ in range(2))
    tail = NormActOptions(norm, 1e-5, "relu")
    _, mean, rstd = norm_act_triton(x, gamma, gamma, None, None, tail)
    return norm_act_backward_triton(dy, x, mean, rstd, gamma, gamma, None, tail, rows=rows)


@pytest.fixture(params=["by the last program", "apart"])
def merged(request, monkeypatch):
    if request.param == "apart":
        monkeypatch.setattr(merges, "FEW_TILES", 0)


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("norm", ["none", "in", "ln"])
def test_sums_over_the_samples_of_each_row(norm, count, add, merged):
    gamma = torch.rand(count, CHANNELS) + 0.5
    wanted = backward(norm, gamma, None)
    everything = torch.full((count, 4, CHANNELS), 2.0)  # rows are further apart than their length
    beta, scale, shift, other = everything.unbind(1)
    rows = Rows(beta, scale, None if norm == "in" else shift, add)
    found = backward(norm, gamma, rows)
    assert torch.equal(found.dx, wanted.dx)
    assert (found.dbeta, found.dgamma, found.dshift) == (None, None, None)
    for mine, theirs in ((beta, wanted.dbeta), (scale, wanted.dgamma), (shift, wanted.dshift)):
        if theirs is None:
            assert (mine == 2).all()
            continue
        exact = theirs.double().unflatten(0, (count, -1)).sum(1) + 2 * add
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)
    assert (other == 2).all()


def test_those_without_a_buffer_are_returned(merged):
    gamma = torch.rand(CHANNELS)
    wanted, buffer = backward("ln", gamma, None), torch.zeros(1, CHANNELS, dtype=torch.float64)
    found = backward("ln", gamma, Rows(None, buffer, None, False))
    assert found.dgamma is None
    assert torch.equal(found.dbeta, wanted.dbeta)
    assert torch.equal(found.dshift, wanted.dshift)
    torch.testing.assert_close(buffer[0], wanted.dgamma.double().sum(0), rtol=1e-5, atol=1e-5)


def test_a_batch_of_nothing_has_gradients_of_zero():
    gamma, buffer = torch.rand(CHANNELS), torch.full((2, 1, CHANNELS), 2.0)
    backward("in", gamma, Rows(buffer[0], None, None, False), samples=0)
    backward("in", gamma, Rows(buffer[1], None, None, True), samples=0)
    assert (buffer[0] == 0).all()
    assert (buffer[1] == 2).all()


def test_buffers_for_parameters_of_one_or_of_several_rows():
    one, several = torch.rand(5), torch.rand(3, 5)
    assert [tuple(each.shape) for each in Rows.like(one, one, None)[:2]] == [(1, 5)] * 2
    assert Rows.like(None, several, None).gamma.shape == (3, 5)
    assert Rows.like(one, several, None) is None
    assert Rows.like(None, None, None) is None
