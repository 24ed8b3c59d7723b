"""UNIT: shared blocks, parameters for the optimisers, and translation of any size."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from fastunit.common.errors import ConfigError
from fastunit.config import Config, GeneratorConfig, ShareConfig, from_dict
from fastunit.models.unit import UNIT, share_blocks
from fastunit.models.unit2018 import VAEGen
from tests.support.tensors import images

N_RES = 3


@pytest.fixture
def make(tiny):
    """Return a maker of float64 UNITs with changed configuration keys."""

    def made(**changes) -> UNIT:
        gen = {"n_res": N_RES} | changes.pop("gen", {})
        changes = {"share": {"enc": 0, "dec": 0}} | changes
        return UNIT(from_dict(tiny | {"gen": tiny["gen"] | gen} | changes)).double()

    return made


def shared_names(enc, dec):
    """Return the prefixes of the shared blocks, with one downsampling."""
    last = [f"enc.model.2.model.{i}." for i in range(N_RES - enc, N_RES)]
    return tuple(last + [f"dec.model.0.model.{i}." for i in range(dec)])


@pytest.mark.parametrize("enc", range(N_RES + 1))
@pytest.mark.parametrize("dec", range(N_RES + 1))
def test_exactly_the_last_and_first_blocks_are_shared(enc, dec, make):
    unit = make(share={"enc": enc, "dec": dec})
    for part, shared in (("enc", range(N_RES - enc, N_RES)), ("dec", range(dec))):
        mine, other = (getattr(gen, part).res_blocks for gen in (unit.gen_a, unit.gen_b))
        assert [i for i in range(N_RES) if mine[i] is other[i]] == list(shared)
    a, b = (dict(gen.named_parameters()) for gen in (unit.gen_a, unit.gen_b))
    prefixes = shared_names(enc, dec)
    both = {name for name in a if a[name] is b[name]}
    assert both == {name for name in a if prefixes and name.startswith(prefixes)}
    assert list(unit.gen_a.state_dict()) == list(unit.gen_b.state_dict()) == list(a)

    parameters = unit.generators()
    assert len({id(p) for p in parameters}) == len(parameters) == 2 * len(a) - len(both)
    assert {id(p) for p in parameters} == {id(p) for p in (*a.values(), *b.values())}


def test_parameters_are_split_between_generators_and_discriminators(make):
    unit = make(share={"enc": 1, "dec": 1})
    generators, discriminators = (
        {id(p) for p in ps} for ps in (unit.generators(), unit.discriminators())
    )
    assert not generators & discriminators
    assert generators | discriminators == {id(p) for p in unit.parameters()}
    wanted = [*unit.dis_a.parameters(), *unit.dis_b.parameters()]
    assert list(map(id, unit.discriminators())) == list(map(id, wanted))


def test_shared_weights_sum_the_gradients_of_both_domains(make):
    unit = make(share={"enc": 2, "dec": 1})
    apart_a, apart_b = copy.deepcopy(unit.gen_a), copy.deepcopy(unit.gen_b)
    x_a, x_b = images(1, 3, 16, 16), images(1, 3, 16, 16)

    def loss(gen, x):
        return (gen.decode(gen.code(x)) - x).abs().mean()

    (loss(unit.gen_a, x_a) + loss(unit.gen_b, x_b)).backward()
    loss(apart_a, x_a).backward()
    loss(apart_b, x_b).backward()
    shared = shared_names(2, 1)
    a, b = dict(apart_a.named_parameters()), dict(apart_b.named_parameters())
    for gen, own in ((unit.gen_a, a), (unit.gen_b, b)):
        for name, parameter in gen.named_parameters():
            wanted = a[name].grad + b[name].grad if name.startswith(shared) else own[name].grad
            torch.testing.assert_close(parameter.grad, wanted)
    weight = f"{shared[0]}model.0.conv.weight"
    assert a[weight].grad.any() and b[weight].grad.any()


def test_shared_blocks_move_together_between_dtypes(make):
    unit = make(share={"enc": 1, "dec": 1}).float()
    assert unit.gen_a.dec.res_blocks[0] is unit.gen_b.dec.res_blocks[0]
    assert all(p.dtype == torch.float32 for p in unit.generators())


@pytest.mark.parametrize("name", ["enc", "dec"])
def test_sharing_more_blocks_than_there_are_is_refused(name, make):
    with pytest.raises(ConfigError, match=rf"share\.{name}=4 .*n_res=3"):
        make(share={name: N_RES + 1})
    config = Config(gen=GeneratorConfig(dim=2, n_res=1), share=ShareConfig(**{name: 2}))
    with pytest.raises(ValueError, match=rf"share\.{name}=2 .*between 0 and 1"):
        UNIT(config)
    pair = [VAEGen(3, {"dim": 2, "n_res": 1}) for _ in range(2)]
    with pytest.raises(ValueError, match=rf"share\.{name}=-1"):
        share_blocks(*pair, **({"enc": 0, "dec": 0} | {name: -1}))


SIZES = [(16, 16), (24, 8), (8, 40), (33, 47), (1, 1), (3, 50), (9, 16), (5, 2)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_downsample", [0, 2])
@pytest.mark.parametrize("pad_type", ["reflect", "zero"])
def test_translate_takes_any_size(size, n_downsample, pad_type, make):
    unit = make(gen={"n_downsample": n_downsample, "pad_type": pad_type, "n_res": 1})
    x = images(2, 3, *size)
    y = unit.translate(x, "a2b")
    assert y.shape == x.shape
    multiple = 2**n_downsample
    whole = [max(-(-s // multiple) * multiple, 2 * multiple, 4) for s in size]
    if list(size) != whole:
        extra = (0, whole[1] - size[1], 0, whole[0] - size[0])
        x = F.pad(x, extra, mode="replicate")
    hidden = unit.gen_a.encode(x)[0]
    wanted = unit.gen_b.decode(hidden)[..., : size[0], : size[1]]
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(y, unit.translate(x, "a2b")[..., : size[0], : size[1]])


def test_translate_goes_the_way_it_is_told(make):
    unit = make(input_dim_a=1, input_dim_b=3).train()
    gray, color = images(1, 1, 16, 16), images(1, 3, 16, 16)
    assert unit.translate(gray, "a2b").shape == (1, 3, 16, 16)
    assert unit.translate(color, "b2a").shape == (1, 1, 16, 16)
    assert torch.equal(unit.translate(gray, "a2b"), unit.translate(gray, "a2b"))  # no noise
    wanted = unit.gen_a.decode(unit.gen_b.encode(color)[0])
    torch.testing.assert_close(unit.translate(color, "b2a"), wanted)
    with pytest.raises(ValueError, match=re.escape("[N, 1, H, W]") + r".*\(1, 3, 16, 16\)"):
        unit.translate(color, "a2b")
    with pytest.raises(ValueError, match="direction='ab' must be one of a2b, b2a"):
        unit.translate(gray, "ab")


def test_domains_of_different_channels_share_blocks(make):
    unit = make(input_dim_a=1, input_dim_b=5, share={"enc": 3, "dec": 3})
    assert unit.translate(images(1, 5, 16, 16), "b2a").shape == (1, 1, 16, 16)
    assert unit.dis_a(images(1, 1, 16, 16))[0].shape == unit.dis_b(images(1, 5, 16, 16))[0].shape
