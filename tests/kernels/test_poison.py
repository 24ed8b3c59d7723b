"""Memory that an operation leaves unwritten does not go unseen in the tests of this folder."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fresh_memory_is_nan(dtype):
    x = torch.zeros(2, 3, dtype=dtype)
    found = [
        torch.empty(2, 3, dtype=dtype, requires_grad=True),
        torch.empty_like(x),
        torch.empty_permuted((2, 3), (1, 0), dtype=dtype),
        torch.empty_strided((2, 3), (1, 2), dtype=dtype),
        x.new_empty(2, 3),
        x.new_empty_strided((2, 3), (3, 1)),
    ]
    for tensor in found:
        assert tensor.shape == (2, 3) and tensor.dtype == dtype
        assert tensor.isnan().all()


def test_fresh_integers_are_extreme():
    assert (torch.empty(5, dtype=torch.int32) == 2**31 - 1).all()
    assert torch.zeros(5, dtype=torch.bool).new_empty(5).all()


def test_an_operation_that_skips_an_element_is_seen():
    def relu(x):
        y = torch.empty_like(x)
        y[1:] = x[1:].clamp(min=0)
        return y

    x = torch.tensor([-1.0, 2.0])  # what is skipped would be zero, which fresh memory often is
    with pytest.raises(AssertionError):
        torch.testing.assert_close(relu(x), x.clamp(min=0))
