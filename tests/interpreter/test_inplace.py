"""A result of Triton kernels may be changed in place, as other networks' activations do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastunit.kernels import conv_norm_act, conv_transpose, norm_act, upsample_conv
from fastunit.kernels.common import runtime
from fastunit.models.unit2018 import ContentEncoder


def encoder() -> ContentEncoder:
    torch.manual_seed(1)
    return ContentEncoder(1, 1, 3, 2, "relu", "reflect")


OPERATIONS = {
    "conv_norm_act": lambda x, w: conv_norm_act(x, w, norm="in"),
    "bare": conv_norm_act,
    "conv_transpose": lambda x, w: conv_transpose(x, w.transpose(0, 1), norm="ln"),
    "upsample_conv": lambda x, w: upsample_conv(x, w, padding=1),
    "layers that hand images on": lambda x, w: encoder()(x * w.sum()),
    "norm_act": lambda x, w: norm_act(x * w.sum(), norm="in", act="lrelu"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_result_may_be_changed_in_place(name):
    gradients = []
    for change in (F.relu_, F.relu):
        torch.manual_seed(0)
        leaves = [torch.randn(2, 3, 8, 6), torch.randn(3, 3, 3, 3)]
        for leaf in leaves:
            leaf.requires_grad_()
        with runtime.default_impl("triton"):
            y = OPERATIONS[name](*leaves)
            y = change(y)
            dy = torch.linspace(-1, 1, y.numel()).view(y.shape)
            gradients.append([y.detach().clone(), *torch.autograd.grad(y, leaves, dy)])
    for found, wanted in zip(*gradients, strict=True):
        assert torch.equal(found, wanted)
