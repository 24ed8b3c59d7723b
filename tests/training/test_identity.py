"""The identity term: each generator is asked to leave alone what is in its domain already."""

from __future__ import annotations

import pytest
import torch

from fastunit.common.errors import ConfigError
from fastunit.config import from_dict
from fastunit.models.unit import networks
from fastunit.training.objective import Batch, decode_both, generator_losses
from fastunit.training.step import TrainStep
from tests.support.steps import noise_for, without_networks
from tests.support.tensors import images

PAPER = {
    "network": "paper",
    "paper": {
        "gen": {"ch": 4, "n_enc_front_blk": 2, "n_enc_res_blk": 1, "n_gen_res_blk": 1}
        | {"n_gen_front_blk": 2},
        "dis": {"name": "COCOSharedDis", "ch": 3, "n_front_layer": 1, "n_shared_layer": 1},
    },
}
KINDS = {"release": {}, "paper": PAPER, "learned": {"latent": "learned", "share": {"enc": 0}}}


@pytest.fixture(params=KINDS)
def make(tiny, request):
    """Return a maker of float64 training steps whose networks begin alike."""
    kind = KINDS[request.param]
    own = without_networks(tiny) if "paper" in kind else tiny

    def made(**changes) -> TrainStep:
        torch.manual_seed(11)
        config = from_dict(own | kind | changes)
        return TrainStep(networks(config).double(), config)

    return made


@pytest.fixture
def batch():
    return images(4, 3, 16, 20), images(4, 3, 16, 20)


def l1(x, y):
    return (x - y).abs().sum() / x.numel()


def test_the_term_is_its_formula_and_leaves_the_others_alone(make, batch):
    x_a, x_b = batch
    step = make(identity_w=3.0)
    unit, config = step.unit, step.config
    decoded = decode_both(unit, Batch(x_a, x_b))
    states = []
    found = []
    for weighted in (config, make().config):
        torch.manual_seed(3)
        found.append(generator_losses(unit, Batch(x_a, x_b), weighted, decoded=decoded))
        states.append(torch.get_rng_state())
    losses, plain = found
    assert torch.equal(*states)  # codes without noise, as in translation
    a_again = unit.gen_a.decode(unit.gen_b.code(x_a))
    b_again = unit.gen_b.decode(unit.gen_a.code(x_b))
    wanted = {"identity_a": l1(a_again, x_a), "identity_b": l1(b_again, x_b)}
    wanted["generator_total"] = plain["generator_total"] + 3 * sum(wanted.values())
    assert losses.keys() - plain.keys() == {"identity_a", "identity_b"}
    for name in losses:
        torch.testing.assert_close(losses[name], (plain | wanted)[name], msg=name)
    mine, theirs = (
        torch.autograd.grad(total["generator_total"], unit.generators(), retain_graph=True)
        for total in (losses, wanted)
    )
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)
    # What b's generator makes of a is not what a's discriminator sees, and the other way round.
    assert torch.equal(unit.translate(x_a, "b2a"), a_again)


@pytest.mark.parametrize("changes", [{"share_fakes": False}, {"accumulate": 2}])
def test_the_term_is_the_same_however_a_step_is_taken(changes, make, batch):
    steps = make(identity_w=3.0), make(identity_w=3.0, pair_domains="on", **changes)
    noise = noise_for(steps[0].unit, *batch)
    losses = [step(*batch, noise=noise) for step in steps]
    for name in losses[0]:
        torch.testing.assert_close(losses[1][name], losses[0][name], msg=name)
    for mine, wanted in zip(*(step.unit.parameters() for step in steps), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-8)


def test_images_of_the_domains_may_differ_in_size_and_number(make):
    step = make(identity_w=1.0)
    losses = step(torch.rand(2, 3, 16, 16).double(), torch.rand(1, 3, 24, 16).double())
    assert losses["identity_a"] > 0 and losses["identity_b"] > 0


def test_domains_of_other_channels_are_refused_naming_the_keys(tiny):
    wanted = r"identity_w=2\.0 .*input_dim_a=3 and input_dim_b=1 differ; set identity_w=0"
    with pytest.raises(ConfigError, match=wanted):
        from_dict(tiny | {"identity_w": 2, "input_dim_b": 1})
    assert from_dict(tiny | {"identity_w": 0, "input_dim_b": 1}).identity_w == 0
