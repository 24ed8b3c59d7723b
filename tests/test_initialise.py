"""Each scheme of initialisation by its statistics, and which networks of UNIT get which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastunit.config import from_dict
from fastunit.initialise import initialise
from fastunit.layers import LayerNorm
from fastunit.unit import UNIT

# Of weights [K, C, R, S] = [96, 64, 3, 3]: what their standard deviation should be.
SPREADS = {
    "gaussian": 0.02,
    "xavier": (2 * 2 / (64 * 9 + 96 * 9)) ** 0.5,
    "kaiming": (2 / (64 * 9)) ** 0.5,
    "orthogonal": (2 / (64 * 9)) ** 0.5,
}


@pytest.mark.parametrize("init", SPREADS)
def test_initialisation(init):
    model = nn.Sequential(nn.Conv2d(64, 96, 3), nn.Linear(30, 20), LayerNorm(5), nn.PReLU())
    others = [p.clone() for p in (*model[2].parameters(), *model[3].parameters())]
    initialise(model, init)
    weight = model[0].weight
    assert abs(weight.mean()) < 0.03 * SPREADS[init]
    assert weight.std().item() == pytest.approx(SPREADS[init], rel=0.02)
    if init == "orthogonal":
        rows = weight.flatten(1)
        torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(96), rtol=0, atol=1e-4)
    else:  # normal, not uniform: a uniform variable has kurtosis 1.8
        assert ((weight / weight.std()) ** 4).mean().item() == pytest.approx(3, abs=0.2)
    assert not model[0].bias.any() and not model[1].bias.any()
    left = (*model[2].parameters(), *model[3].parameters())
    assert all(torch.equal(a, b) for a, b in zip(others, left, strict=True))


def test_default_initialisation_leaves_the_weights_and_clears_the_biases():
    layer = nn.Conv2d(3, 4, 3)
    before = layer.weight.clone()
    initialise(layer, "default")
    assert torch.equal(layer.weight, before)
    assert not layer.bias.any()


@pytest.mark.parametrize("init", SPREADS)
def test_unit_initialises_generators_as_told_and_discriminators_gaussian(init, tiny):
    tiny["gen"]["dim"] = tiny["dis"]["dim"] = 16
    unit = UNIT(from_dict(tiny | {"init": init}))
    for dis in (unit.dis_a, unit.dis_b):
        assert dis.cnns[0][1].conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    fans = 16 * 16 + 32 * 16  # of the encoder's 4x4 convolution from 16 to 32 channels
    wanted = {"gaussian": 0.02, "xavier": (4 / fans) ** 0.5}.get(init, (2 / 256) ** 0.5)
    for gen in (unit.gen_a, unit.gen_b):
        assert gen.enc.model[1].conv.weight.std().item() == pytest.approx(wanted, rel=0.05)
    biases = [p for n, p in unit.named_parameters() if n.endswith("conv.bias")]
    assert biases and not any(bias.any() for bias in biases)


def test_an_unknown_scheme_is_named_with_the_choices():
    choices = "init='he' must be one of gaussian, xavier, kaiming, orthogonal, default"
    with pytest.raises(ValueError, match=choices):
        initialise(nn.Linear(1, 1), "he")
