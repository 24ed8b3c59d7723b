"""A kernel that leaves its tensors does not go unseen in the tests of this folder."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from fastunit.kernels.common import runtime
from tests.support import addresses
from tests.support.addresses import OutOfBounds


@triton.jit
def _shift_kernel(x_ptr, y_ptr, first, shift, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + first + offs, mask=offs < n, other=0.0)
    tl.store(y_ptr + shift + offs, x, mask=offs < n)


@triton.jit
def _add_kernel(x_ptr, shift, BLOCK: tl.constexpr):
    tl.atomic_add(x_ptr + shift + tl.arange(0, BLOCK), 1.0)


@triton.jit
def _scalar_kernel(x_ptr, y_ptr, place):
    tl.store(y_ptr, tl.load(x_ptr + place))


def shift(first, by, n, x=None):
    # Between them lies other memory, which a wrong address may hit without a crash.
    x = torch.ones(8) if x is None else x
    others, y = torch.ones(64), torch.zeros(8)
    runtime.launch(_shift_kernel, (1,), x, y, first, by, n, BLOCK=8)
    return others, y


@pytest.mark.parametrize(
    ("first", "by", "n", "message"),
    [
        (1, 0, 8, r"_shift_kernel loads 1 of 8 elements of 4 bytes outside its tensors, first 0"),
        (-1, 0, 8, r"loads 1 of 8 elements .* 4 bytes before a start"),
        (0, 1, 8, r"stores 1 of 8 elements .* first 0 bytes past an end"),
        (0, -2, 8, r"stores 2 of 8 elements"),
        (10**6, 0, 8, r"loads 8 of 8 elements"),
    ],
)
def test_an_address_outside_the_tensors_is_seen(first, by, n, message):
    with pytest.raises(OutOfBounds, match=message):
        shift(first, by, n)


@pytest.mark.parametrize(("first", "by", "n"), [(0, 0, 8), (1, 0, 7), (0, 1, 7), (0, 10**6, 0)])
def test_what_is_inside_or_masked_passes(first, by, n):
    shift(first, by, n)


def test_a_view_may_be_left_but_not_its_storage():
    x = torch.arange(16.0)[4:12]
    _, y = shift(-4, 0, 8, x)
    assert y.tolist() == list(range(8))
    with pytest.raises(OutOfBounds):
        shift(-5, 0, 8, x)


def test_atomics_are_checked():
    x = torch.zeros(8)
    runtime.launch(_add_kernel, (1,), x, 0, BLOCK=8)
    with pytest.raises(OutOfBounds, match="updates 1 of 8"):
        runtime.launch(_add_kernel, (1,), x, 1, BLOCK=8)


@pytest.mark.parametrize(("place", "seen"), [(7, False), (8, True)])
def test_scalars_are_checked(place, seen):
    x, y = torch.zeros(8), torch.zeros(1)
    if not seen:
        runtime.launch(_scalar_kernel, (1,), x, y, place)
        return
    with pytest.raises(OutOfBounds, match="loads 1 of 1"):
        runtime.launch(_scalar_kernel, (1,), x, y, place)


@pytest.mark.parametrize("reaches", [True, False])
def test_kernels_that_reach_other_parameters_are_named(reaches, monkeypatch):
    x, other, y = (
        torch.nn.Parameter(torch.zeros(8)),
        torch.nn.Parameter(torch.ones(8)),
        torch.ones(1),
    )
    far = (other.data_ptr() - x.data_ptr()) // 4
    monkeypatch.setattr(addresses, "REACHING", {"_scalar_kernel"} if reaches else set())
    if reaches:
        runtime.launch(_scalar_kernel, (1,), x, y, far)
    with pytest.raises(OutOfBounds):
        runtime.launch(_scalar_kernel, (1,), x, y, far if not reaches else far + 2**40)


def test_tests_of_this_folder_are_checked(request):
    assert "_addresses" in request.fixturenames
