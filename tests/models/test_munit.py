"""MUNIT's generator against functions written from its paper; AdaIN, spectral norm, the pair."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastunit.config import from_dict
from fastunit.models.grouped import GroupedExecution
from fastunit.models.layers import Conv2dBlock, LinearBlock, ResBlock, UpsampleConv2dBlock
from fastunit.models.munit import AdaINGen
from fastunit.models.norms import AdaptiveInstanceNorm2d, SpectralNorm
from fastunit.models.styled_pair import MUNIT
from fastunit.models.unit import networks
from fastunit.models.unit2018 import MsImageDis
from tests.support import munit as plain
from tests.support.munit import GEN, munit
from tests.support.tensors import images, rand


def randomised(module: nn.Module) -> nn.Module:
    for value in module.parameters():
        nn.init.normal_(value, 0.0, 0.3)
    return module.double()


def unit_of(tiny, **changes) -> MUNIT:
    torch.manual_seed(5)
    made = networks(from_dict(munit(tiny, **changes))).double()
    assert isinstance(made, MUNIT)
    return made


@pytest.mark.parametrize(("halvings", "blocks", "size"), [(1, 1, (16, 20)), (2, 2, (24, 16))])
def test_the_generator_is_the_papers(halvings, blocks, size):
    own = {"n_downsample": halvings, "n_res": blocks, "pad_type": "reflect"}
    made = randomised(AdaINGen(3, GEN | own))
    state, x, s = dict(made.named_parameters()), images(2, 3, *size), rand(2, 3, 1, 1)
    found_content, found_style = made.encode(x)
    torch.testing.assert_close(found_content, plain.content(state, x, halvings, blocks))
    torch.testing.assert_close(found_style, plain.style(state, x))
    assert found_style.shape == (2, 3, 1, 1)
    y = made.decode(found_content, s)
    wanted = plain.decode(state, found_content, s, halvings, blocks)
    torch.testing.assert_close(y, wanted)
    assert torch.equal(made.decode(found_content, s.flatten(1)), y)
    mine, others = (
        torch.autograd.grad((each * each).sum(), list(state.values()), allow_unused=True)
        for each in (made.decode(*made.encode(x)), plain.decode(
            state, plain.content(state, x, halvings, blocks), plain.style(state, x),
            halvings, blocks,
        ))
    )  # fmt: skip
    for (name, _), a, b in zip(state.items(), mine, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


def test_keys_are_the_releases():
    def conv(*names: str) -> set[str]:
        return {f"{name}.{part}" for name in names for part in ("weight", "bias")}

    style = [f"enc_style.model.{index}.conv" for index in range(5)] + ["enc_style.model.6"]
    content = [f"enc_content.model.{index}.conv" for index in range(3)]
    content += [f"enc_content.model.3.model.0.model.{half}.conv" for half in (0, 1)]
    adain = [f"dec.model.0.model.0.model.{half}." for half in (0, 1)]
    dec = [f"{name}conv" for name in adain] + [f"dec.model.{index}.conv" for index in (2, 4, 5)]
    mlp = [f"mlp.model.{index}.fc" for index in range(3)]
    wanted = conv(*style, *content, *dec, *mlp)
    wanted |= {f"{name}norm.running_{part}" for name in adain for part in ("mean", "var")}
    wanted |= {f"dec.model.{index}.norm.{part}" for index in (2, 4) for part in ("gamma", "beta")}
    made = AdaINGen(3, {"dim": 4, "n_res": 1})
    assert made.state_dict().keys() == wanted
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    assert shapes["mlp.model.0.fc.weight"] == (256, 8)
    assert shapes["mlp.model.2.fc.weight"] == (4 * 16, 256)
    assert shapes["enc_style.model.6.weight"] == (8, 16, 1, 1)


def test_one_style_is_that_of_all_images_and_none_is_the_mean():
    made, s = randomised(AdaINGen(3, GEN)), rand(1, 3)
    c = made.code(images(3, 3, 16, 16))
    torch.testing.assert_close(made.decode(c, s), made.decode(c, s.expand(3, -1)))
    torch.testing.assert_close(made.decode(c), made.decode(c, torch.zeros(1, 3).double()))
    for wrong in (rand(2, 3), rand(3, 4), rand(3)):
        with pytest.raises(ValueError, match=r"style codes of shape .* take \[3, 3\] or \[1, 3\]"):
            made.decode(c, wrong)
    with pytest.raises(ValueError, match="15x16 pixels is too small for a style code"):
        made.encode(images(1, 3, 15, 16))


def test_styles_are_gone_after_a_call():
    made = AdaINGen(3, GEN)
    x = torch.rand(2, 3, 16, 16)
    made(x).sum().backward()
    copy.deepcopy(made)
    with pytest.raises(RuntimeError, match="assign weight and bias"):
        made.dec(made.code(x))


@pytest.mark.parametrize("act", ["relu", "prelu", "none"])
@pytest.mark.parametrize("block", [
    lambda act: Conv2dBlock(3, 4, 3, 2, 1, "adain", act, "replicate"),
    lambda act: UpsampleConv2dBlock(3, 4, 5, 2, "adain", act, "reflect"),
    lambda act: ResBlock(3, "adain", act),
])  # fmt: skip
def test_a_fused_block_is_its_modules(block, act):
    made = randomised(block(act))
    x = rand(2, 3, 6, 8).requires_grad_()
    for norm in made.modules():
        if isinstance(norm, AdaptiveInstanceNorm2d):
            rows = 2, norm.num_features
            norm.weight, norm.bias = rand(*rows).requires_grad_(), rand(*rows).requires_grad_()
    given = [x, *made.parameters()]
    found = made(x)
    for each in made.modules():
        if isinstance(each, Conv2dBlock):
            each.conv.register_forward_hook(lambda *_: None)
            assert not each.fuses
    wanted = made(x)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(*(
        torch.autograd.grad(y.square().sum(), given, allow_unused=True) for y in (found, wanted)
    ), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-7)


def test_spectral_norm_divides_by_the_largest_singular_value():
    torch.manual_seed(1)
    block = Conv2dBlock(3, 5, 4, 2, 1, "sn", "lrelu", "reflect").double()
    assert list(block.state_dict()) == [
        f"conv.module.{name}" for name in ("bias", "weight_bar", "weight_u", "weight_v")
    ]
    x = images(2, 3, 8, 8)
    for _ in range(300):
        block(x)
    bar = block.conv.module.weight_bar
    weight = bar / torch.linalg.matrix_norm(bar.flatten(1), 2)
    bias = block.conv.module.bias
    wanted = F.leaky_relu(F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), weight, bias, 2), 0.2)
    found = block(x)
    torch.testing.assert_close(found, wanted)
    (mine,), (theirs,) = (torch.autograd.grad(y.square().sum(), bar) for y in (found, wanted))
    torch.testing.assert_close(mine, theirs)
    before = block.conv.module.weight_u.clone()
    block.eval()(x)
    assert torch.equal(block.conv.module.weight_u, before)
    copy.deepcopy(block)
    linear = LinearBlock(4, 3, "sn", "relu")
    assert linear(torch.rand(2, 4)).shape == (2, 3)
    assert "fc.module.weight_bar" in linear.state_dict()
    layer = SpectralNorm(nn.Linear(5, 4), power_iterations=50)
    layer(torch.rand(1, 5))
    assert torch.linalg.matrix_norm(layer.normalized(), 2).item() == pytest.approx(1, abs=1e-4)


def test_a_discriminator_with_spectral_norm():
    made = MsImageDis(3, {"dim": 4, "n_layer": 3, "num_scales": 2, "norm": "sn"})
    keys = made.state_dict().keys()
    assert {"cnns.0.0.conv.weight", "cnns.1.1.conv.module.weight_bar"} <= keys
    made.calc_dis_loss(images(2, 3, 32, 32).float(), images(2, 3, 32, 32).float()).backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_both_domains_together_are_each_alone(grouped, recompute, tiny):
    unit = unit_of(tiny)
    unit.execution = GroupedExecution(grouped, recompute)
    x_a, x_b, s_a, s_b = images(2, 3, 16, 16), images(2, 3, 16, 16), rand(2, 3), rand(2, 3)
    contents, styles = unit.encode(x_a, x_b), unit.encode_styles(x_a, x_b)
    decoded = unit.decode(contents[1], contents[0], (s_a, s_b))
    alone = [unit.gen_a.encode(x_a), unit.gen_b.encode(x_b)]
    wanted = unit.gen_a.decode(alone[1][0], s_a), unit.gen_b.decode(alone[0][0], s_b)
    for mine, others in ((contents, [c for c, _ in alone]), (styles, [s for _, s in alone])):
        for a, b in zip(mine, others, strict=True):
            torch.testing.assert_close(a, b)
    for a, b in zip(decoded, wanted, strict=True):
        torch.testing.assert_close(a, b)
    mine, theirs = (
        torch.autograd.grad(sum(y.square().sum() for y in each), unit.generators())
        for each in ((*decoded, *styles), (*wanted, *(s for _, s in alone)))
    )
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_translation_takes_styles_and_any_size(tiny):
    unit = unit_of(tiny)
    x, s = images(2, 3, 19, 17), rand(2, 3)
    y = unit.translate(x, "a2b", s)
    assert y.shape == x.shape
    padded = F.pad(x, (0, 1, 0, 1), mode="replicate")
    state = {name: dict(getattr(unit, name).named_parameters()) for name in ("gen_a", "gen_b")}
    code = plain.content(state["gen_a"], padded)
    torch.testing.assert_close(y, plain.decode(state["gen_b"], code, s)[..., :19, :17])
    torch.testing.assert_close(unit.translate(x, "a2b"), unit.translate(x, "a2b", 0 * s))
    with pytest.raises(ValueError, match="no pixels"):
        unit.translate(x[..., :0], "b2a")


def test_random_styles_are_those_of_their_seed(tiny):
    pair = unit_of(tiny).generator_pair()
    state = torch.get_rng_state()
    first = pair.random_styles(9, seed=4)
    assert first.shape == (9, 3) and torch.equal(first, pair.random_styles(9, seed=4))
    assert torch.equal(first[:2], pair.random_styles(2, seed=4))
    assert not torch.equal(first, pair.random_styles(9, seed=5))
    assert torch.equal(state, torch.get_rng_state())
    x = images(2, 3, 16, 16)
    rows = pair.sample_rows(x, x)
    assert all(row.shape == x.shape for row in rows.values())
    styles = pair.random_styles(2, seed=0)
    torch.testing.assert_close(rows["a to b, style 2"], pair.translate(x, "a2b", styles[1:]))
    torch.testing.assert_close(
        rows["b to a, style of a"], pair.translate(x, "b2a", pair.gen_a.style(x))
    )


def test_weights_are_initialized_as_in_the_release(tiny):
    unit = unit_of(tiny, init_b="copy")
    for name, value in unit.gen_a.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        assert torch.equal(value, dict(unit.gen_b.named_parameters())[name])
    deviation = 2**0.5 / 3**0.5  # He et al. 2015, of 3 features
    assert unit.gen_a.mlp.model[0].fc.weight.std().item() == pytest.approx(deviation, rel=0.5)
    for part in ("gen_a", "gen_b", "dis_a", "dis_b"):
        assert any(name.startswith(part) for name in unit.state_dict())
    with pytest.raises(ValueError, match=re.escape("gen.style_dim=0 must be at least 1")):
        AdaINGen(3, {"style_dim": 0})
