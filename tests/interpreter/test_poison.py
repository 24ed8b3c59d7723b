"""A kernel that leaves an element unwritten does not go unseen in the tests of this folder."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from fastunit.kernels.common import runtime


@triton.jit
def _copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    tl.store(y_ptr + offs, x, mask=offs < n)


@pytest.mark.parametrize(("written", "seen"), [(8, False), (7, True)])
def test_a_mask_that_is_too_narrow_is_seen(written, seen):
    x = torch.zeros(8)  # fresh memory often is zero
    y = torch.empty_like(x)
    runtime.launch(_copy_kernel, (1,), x, y, written, BLOCK=8)
    assert torch.equal(x, y) != seen
