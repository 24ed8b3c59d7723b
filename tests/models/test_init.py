"""Each scheme of initialisation by its statistics, which networks get which, equal starts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastunit.compat import UNIT_Trainer
from fastunit.config import from_dict, load
from fastunit.models.init import copy_matching, initialise
from fastunit.models.layers import LayerNorm
from fastunit.models.unit import UNIT, networks
from fastunit.training.state import TrainState
from tests.support.steps import without_networks

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


def kinds(tiny, **changes):
    """Return both kinds of networks with a key changed, for each value of `init_b`."""
    own = without_networks(tiny)
    gen = {"ch": 4, "n_enc_front_blk": 2, "n_enc_res_blk": 1, "n_gen_res_blk": 1}
    sections = {"gen": gen | {"n_gen_front_blk": 2}, "dis": {"ch": 3, "n_layer": 2}}
    for values in (tiny, own | {"network": "paper", "paper": sections}):
        made = {}
        for init_b in ("own", "copy"):
            torch.manual_seed(5)
            made[init_b] = networks(from_dict(values | changes | {"init_b": init_b}))
            made[f"{init_b} next"] = torch.rand(3)
        yield made


def values(unit, part="gen"):
    return [dict(getattr(unit, f"{part}_{name}").named_parameters()) for name in "ab"]


@pytest.mark.parametrize("latent", ["unit", "learned"])
@pytest.mark.parametrize("init", ["kaiming", "default"])
def test_generators_of_equal_start_share_no_more_than_the_shared_blocks(init, latent, tiny):
    for made in kinds(tiny, init=init, latent=latent):
        (own_a, own_b), (a, b) = values(made["own"]), values(made["copy"])
        assert not all(torch.equal(own_a[name], own_b[name]) for name in a)
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert all(torch.equal(a[name], own_a[name]) for name in a)
        for name in a:  # storage is shared exactly where it was
            tied = a[name].data_ptr() == b[name].data_ptr()
            assert tied == (own_a[name].data_ptr() == own_b[name].data_ptr()), name
        mine = [values(made[key], "dis") for key in ("own", "copy")]
        for domain in (0, 1):  # discriminators, and what is drawn later, are as ever
            assert all(torch.equal(mine[0][domain][n], mine[1][domain][n]) for n in mine[0][0])
        assert not torch.equal(*(next(iter(mine[1][i].values())) for i in (0, 1)))
        assert torch.equal(made["own next"], made["copy next"])


def test_domains_of_other_channels_start_alike_where_shapes_agree(tiny):
    for made in kinds(tiny, input_dim_b=1):
        (_, own_b), (a, b) = values(made["own"]), values(made["copy"])
        agree = [name for name in a if a[name].shape == b[name].shape]
        assert 0 < len(agree) < len(a)
        assert all(torch.equal(b[name], a[name]) for name in agree)
        assert all(torch.equal(b[name], own_b[name]) for name in b if name not in agree)


def test_what_was_left_alone_is_named():
    source, target = (nn.Sequential(nn.Conv2d(n, 4, 3), nn.BatchNorm2d(4)) for n in (3, 1))
    source[1].running_mean.fill_(2.0)
    kept = target[0].weight.clone()
    assert copy_matching(source, target) == ["0.weight"]
    assert torch.equal(target[0].weight, kept) and torch.equal(target[0].bias, source[0].bias)
    assert target[1].running_mean.eq(2.0).all()
    source[1].running_mean.zero_()
    assert target[1].running_mean.eq(2.0).all()


def test_our_configurations_start_equal_and_the_releases_do_not(tiny):
    for name in ("demo", "emoji", "photos", "paper"):
        assert load(name).init_b == "copy"
    assert from_dict({}).init_b == "own"
    trainers = {}
    for given in ({}, {"init_b": "copy"}):
        trainers[len(given)] = values(UNIT_Trainer(tiny | given))
    for count, (a, b) in trainers.items():
        assert all(torch.equal(a[name], b[name]) for name in a) == bool(count)


def test_the_average_starts_equal_too(tiny):
    session = TrainState(
        from_dict(tiny | {"init_b": "copy", "ema_decay": 0.9}), torch.device("cpu")
    )
    a, b = values(session.generator_pair)
    assert session.generator_pair is not session.unit.generator_pair()
    assert all(torch.equal(a[name], b[name]) for name in a)
