"""The buffer of a network's gradients: what is set to zero, written, added and taken over."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastunit.training.gradients import FlatGradients


@pytest.fixture
def parameters():
    shapes = (4, 3, 3, 3), (4,), (4, 3, 3, 3), (4,), (5, 4)
    return [nn.Parameter(torch.zeros(shape)) for shape in shapes]


@pytest.fixture
def flat(parameters):
    """Return gradients that begin with zero, in a buffer of earlier ones."""
    flat = FlatGradients(parameters)
    flat.buffer.fill_(math.nan)
    flat.zero()
    return flat


def is_in(flat, parameter):
    return parameter.grad.untyped_storage().data_ptr() == flat.buffer.untyped_storage().data_ptr()


def test_all_gradients_but_the_filters_begin_with_zero(flat, parameters):
    assert [p.grad is None for p in parameters] == [p.dim() == 4 for p in parameters]
    assert not any(p.grad.any() for p in parameters if p.dim() != 4)
    assert flat.of(*parameters[::2][:2]).isnan().all()


def test_the_first_use_of_filters_writes_and_the_second_adds(flat, parameters):
    a, _, b, *_ = parameters
    assert flat.first_use(a, b)
    flat.of(a, b).fill_(2.0)
    assert not flat.first_use(a, b) and not flat.first_use(b)
    assert (a.grad == 2).all() and (b.grad == 2).all()
    flat.zero()
    assert flat.first_use(a)


def test_filters_of_which_some_were_used_are_added_to(flat, parameters):
    a, _, b, *_ = parameters
    assert flat.first_use(a)
    flat.of(a).fill_(2.0)
    assert not flat.first_use(a, b)
    assert (flat.of(a, b) == torch.tensor([2.0, 0.0]).view(2, 1, 1, 1, 1)).all()


def test_what_autograd_found_is_taken_over(flat, parameters):
    a = parameters[0]
    (3 * a).sum().backward()
    assert not is_in(flat, a) and not flat.first_use(a)
    assert (flat.of(a) == 3).all() and is_in(flat, a)
    a.sum().backward()  # later gradients of autograd's are added in place
    flat.gather()
    assert (flat.of(a) == 4).all()


def test_in_the_end_all_are_in_the_buffer(flat, parameters):
    parameters[0].sum().backward()
    flat.gather()
    assert all(is_in(flat, p) for p in parameters)
    assert [bool(p.grad.any()) for p in parameters] == [True, False, False, False, False]


def test_a_network_may_have_no_filters():
    vector = nn.Parameter(torch.ones(3))
    flat = FlatGradients([vector])
    flat.buffer.fill_(math.nan)
    flat.zero()
    flat.gather()
    assert not vector.grad.any()
