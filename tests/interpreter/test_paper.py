"""The paper's networks on the Triton kernels, as good as PyTorch in float32."""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels.common.runtime import default_impl
from fastunit.models.unit2017 import COCODis, COCOMsDis, COCOResGen, COCOResGen2, COCOSharedDis

BASE = {"ch": 4, "input_dim_a": 3, "input_dim_b": 1}
GEN = BASE | {"n_enc_front_blk": 2, "n_enc_res_blk": 1, "n_enc_shared_blk": 1}
GEN |= {"n_gen_shared_blk": 1, "n_gen_res_blk": 1, "n_gen_front_blk": 2}
DISCRIMINATORS = [
    (COCODis, BASE | {"n_layer": 2}),
    (COCOMsDis, BASE | {"n_layer": 1}),
    (COCOSharedDis, BASE | {"n_front_layer": 1, "n_shared_layer": 1}),
]
FLOOR = 1e-5  # relative to the largest output, or gradient


def run(network, inputs, impl, dtype):
    """Return outputs and gradients in float64, each relative to the largest of its kind."""
    network, inputs = network.to(dtype), [x.to(dtype) for x in inputs]
    with default_impl(impl):
        found = network(*inputs)
        outputs = [y for ys in found for y in (ys if isinstance(ys, list) else [ys])]
        loss = sum(y.square().sum() for y in outputs)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
    return [[value.detach().double() for value in kind] for kind in (outputs, gradients)]


def assert_as_good(network, *inputs):
    """Require twice the error of the plain PyTorch twin at most."""
    exact, aten, triton = (
        run(network, inputs, impl, dtype)
        for impl, dtype in (
            ("aten", torch.float64),
            ("aten", torch.float32),
            ("triton", torch.float32),
        )
    )
    for kind, wanted in enumerate(exact):
        scale = max(value.abs().max() for value in wanted)
        for index, value in enumerate(wanted):
            theirs, mine = ((f[kind][index] - value).abs().max() / scale for f in (aten, triton))
            assert mine <= max(2 * theirs, FLOOR), (kind, index)


@pytest.mark.parametrize(("cls", "dropout"), [(COCOResGen, 0.25), (COCOResGen2, 0.0)])
def test_generators(cls, dropout):
    gen = cls(GEN | {"res_dropout_ratio": dropout})
    for block in gen.modules():
        if isinstance(block, torch.nn.Dropout):  # keeps every value, by the path with dropout
            block.p = 0.0
    x_a, x_b = torch.randn(1, 3, 8, 12), torch.randn(1, 1, 8, 12)
    assert_as_good(gen, x_a, x_b, torch.randn(2, 8, 4, 6))


@pytest.mark.parametrize(("cls", "params"), DISCRIMINATORS)
def test_discriminators(cls, params):
    assert_as_good(cls(params), torch.randn(2, 3, 12, 9), torch.randn(1, 1, 16, 8))
