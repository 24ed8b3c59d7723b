"""MUNIT's generator on the Triton kernels, as good as PyTorch in float32: AdaIN's blocks above all.

The exact values are those of the formulas in float64.
"""

from __future__ import annotations

import copy

import pytest
import torch

from fastunit.kernels.common.runtime import default_impl
from fastunit.models.munit import AdaINGen
from tests.support import munit as plain
from tests.support.munit import GEN


@pytest.mark.parametrize("styles", [1, 2])
def test_a_decoder_with_styles(styles):
    made = AdaINGen(3, GEN)
    for value in made.parameters():
        torch.nn.init.normal_(value, 0.0, 0.3)
    exact = dict(copy.deepcopy(made).double().named_parameters())
    c, s = torch.randn(2, 8, 5, 6), torch.randn(styles, 3)

    def run(decode, dtype):
        own, style = (x.to(dtype).requires_grad_() for x in (c, s))
        y = decode(own, style)
        return y, *torch.autograd.grad(y.square().sum(), [own, style])

    wanted = run(lambda c, s: plain.decode(exact, c, s.expand(2, -1)), torch.float64)
    found = {}
    for impl in ("aten", "triton"):
        with default_impl(impl):
            found[impl] = run(made.decode, torch.float32)
    for aten, triton, value in zip(found["aten"], found["triton"], wanted, strict=True):
        theirs, mine = ((each - value).abs().max() / value.abs().max() for each in (aten, triton))
        assert mine <= max(2 * theirs, 2e-5)
