"""MUNIT's objective against its formulas, its training step, runs and translation."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from fastunit import config
from fastunit.common.errors import CheckpointError, ConfigError
from fastunit.config import from_dict
from fastunit.models.munit import AdaINGen
from fastunit.models.styled_pair import StyledPair
from fastunit.models.unit import networks
from fastunit.training import checkpoint, memory
from fastunit.training.munit_objective import (
    decode_both,
    discriminator_losses,
    drawn_styles,
    generator_losses,
)
from fastunit.training.objective import WEIGHTS, Batch
from fastunit.training.step import TrainStep
from tests.support import munit as plain
from tests.support.compare import assert_agree
from tests.support.munit import GEN, munit
from tests.support.tensors import images, rand

# Distinct primes, so that no two weights can be exchanged unseen.
OWN = {"gan_w": 2.0, "recon_x_w": 3.0, "recon_s_w": 5.0, "recon_c_w": 7.0, "recon_x_cyc_w": 11.0}
SHAPES = {
    "alike": ((2, 3, 16, 16), (2, 3, 16, 16)),
    "unlike": ((2, 1, 16, 24), (3, 3, 20, 16)),
}


class Setting:
    """Networks and images of both domains, and styles for their translations."""

    def __init__(self, tiny, shapes, **changes) -> None:
        own = {"input_dim_a": shapes[0][1], "input_dim_b": shapes[1][1]}
        self.config = from_dict(munit(tiny, **OWN, **own, **changes))
        self.unit = networks(self.config).double()
        self.x_a, self.x_b = (images(*shape) for shape in shapes)
        self.styles = {"a": rand(len(self.x_b), 3, 1, 1), "b": rand(len(self.x_a), 3, 1, 1)}
        self.batch = Batch(self.x_a, self.x_b, self.styles)

    def formulas(self):
        styles, kind = (self.styles[name] for name in "ab"), self.config.dis.gan_type
        return plain.objective(self.unit, self.x_a, self.x_b, *styles, kind)


@pytest.mark.parametrize("gan", ["lsgan", "nsgan"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_losses_are_their_formulas(shapes, gan, tiny):
    s = Setting(tiny, SHAPES[shapes], dis=tiny["dis"] | {"gan_type": gan, "num_scales": 2})
    wanted = s.formulas()
    of_dis = {name: wanted.pop(name) for name in list(wanted) if "discriminator" in name}
    of_dis["discriminator_total"] = 2 * sum(of_dis.values())
    total = sum(OWN[WEIGHTS[name[:-2]]] * loss for name, loss in wanted.items())
    wanted["generator_total"] = total
    decoded = decode_both(s.unit, s.batch)
    for shared in (None, decoded):
        for losses, expected, parameters in (
            (generator_losses(s.unit, s.batch, s.config, decoded=shared), wanted,
             s.unit.generators()),
            (discriminator_losses(s.unit, s.batch, s.config, shared), of_dis,
             s.unit.discriminators()),
        ):  # fmt: skip
            assert losses.keys() == expected.keys()
            for name, loss in losses.items():
                torch.testing.assert_close(loss, expected[name], rtol=1e-10, atol=0, msg=name)
            key = next(name for name in losses if "total" in name)
            mine, theirs = (
                torch.autograd.grad(each[key], parameters, retain_graph=True)
                for each in (losses, expected)
            )
            for a, b in zip(mine, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_the_perceptual_term_compares_with_the_source(tiny):
    s = Setting(tiny, SHAPES["alike"])

    class StandIn:
        def pair(self, outputs, targets):
            assert all(map(torch.equal, targets, (s.x_b, s.x_a)))
            return tuple(each.mean() for each in outputs)

    settings = replace(s.config, vgg_w=13.0)
    with pytest.raises(ValueError, match=r"vgg_w=13\.0 needs the perceptual term"):
        generator_losses(s.unit, s.batch, settings)
    losses = generator_losses(s.unit, s.batch, settings, StandIn())
    decoded = decode_both(s.unit, s.batch)
    torch.testing.assert_close(losses["perceptual_a"], decoded.x_ba.mean())
    torch.testing.assert_close(losses["perceptual_b"], decoded.x_ab.mean())
    without = generator_losses(s.unit, s.batch, s.config)["generator_total"]
    added = 13 * (losses["perceptual_a"] + losses["perceptual_b"])
    torch.testing.assert_close(losses["generator_total"], without + added)


@pytest.mark.parametrize(
    ("off", "left", "calls"),
    [
        ((), (), {"content": 2, "style": 2, "dec": 3}),
        (("recon_s_w",), ("style",), {"content": 2, "style": 1, "dec": 3}),
        (("recon_x_cyc_w",), ("cycle",), {"content": 2, "style": 2, "dec": 2}),
        (("recon_c_w",), ("content",), {"content": 2, "style": 2, "dec": 3}),
        (
            ("recon_c_w", "recon_x_cyc_w"), ("content", "cycle"),
            {"content": 1, "style": 2, "dec": 2},
        ),
    ],
)  # fmt: skip
def test_without_a_weight_a_term_and_its_passes_are_left_out(off, left, calls, tiny):
    s, found = Setting(tiny, SHAPES["unlike"]), Counter()
    for name, layer in (("content", "enc_content"), ("style", "enc_style"), ("dec", "dec")):
        last = s.unit.get_submodule(f"gen_a.{layer}.model")[-1]
        last.register_forward_hook(lambda *_, n=name: found.update([n]))
    losses = generator_losses(s.unit, s.batch, replace(s.config, **dict.fromkeys(off, 0.0)))
    assert found == calls
    wanted = {name: loss for name, loss in s.formulas().items() if "discriminator" not in name}
    wanted = {name: loss for name, loss in wanted.items() if name[:-2] not in left}
    assert losses.keys() == wanted.keys() | {"generator_total"}
    total = sum(OWN[WEIGHTS[name[:-2]]] * loss for name, loss in wanted.items())
    torch.testing.assert_close(losses["generator_total"], total)


def test_styles_are_drawn_afresh_and_follow_the_seed(tiny):
    s = Setting(tiny, SHAPES["unlike"])
    torch.manual_seed(5)
    first = drawn_styles(Batch(s.x_a, s.x_b), s.unit.gen_a.style_dim)
    second = drawn_styles(Batch(s.x_a, s.x_b), s.unit.gen_a.style_dim)
    torch.manual_seed(5)
    again = drawn_styles(Batch(s.x_a, s.x_b), s.unit.gen_a.style_dim)
    assert [each.shape for each in first] == [(3, 3), (2, 3)]
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], second[0])
    del s.styles["b"]
    with pytest.raises(ValueError, match=r"noise has no b; it must hold a, b"):
        drawn_styles(s.batch, s.unit.gen_a.style_dim)
    wrong = Batch(s.x_a, s.x_b, {"a": rand(3, 3), "b": rand(3, 3)})
    with pytest.raises(ValueError, match=r"noise b of shape \(3, 3\) must be of \(2, 3\)"):
        drawn_styles(wrong, s.unit.gen_a.style_dim)


def trained(tiny, **changes):
    """Return losses, gradients and weights after two steps that begin alike."""
    torch.manual_seed(3)
    settings = from_dict(munit(tiny, **OWN, **changes))
    step = TrainStep(networks(settings).double(), settings)
    torch.manual_seed(6)
    x_a, x_b = images(2, 3, 16, 16), images(2, 3, 16, 16)
    for _ in range(2):
        losses = step(x_a, x_b, {name: rand(2, 3) for name in "ab"})
    gradients = {f"{n}.grad": p.grad for n, p in step.unit.named_parameters() if "gen" in n}
    return losses | gradients | step.unit.state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"pair_domains": "on"},
        {"share_fakes": False},
        {"checkpoint_activations": True},
        {"checkpoint_activations": True, "pair_domains": "on"},
        {"accumulate": 2, "pair_domains": "on"},
    ],
)
def test_a_step_is_the_same_however_it_is_taken(changes, tiny):
    wanted = trained(tiny, pair_domains="off")
    assert_agree(trained(tiny, **changes), wanted)
    assert all(value.any() for name, value in wanted.items() if name.endswith("weight.grad"))


def test_a_compiled_step_computes_the_same(tiny):
    torch.compiler.reset()
    assert_agree(trained(tiny, compile="on"), trained(tiny, compile="off"))


def test_bf16_trains_close_to_float32(tiny):
    losses = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(3)
        settings = from_dict(munit(tiny, precision=precision))
        step = TrainStep(networks(settings), settings)
        torch.manual_seed(5)
        x_a, x_b = (images(2, 3, 16, 16).float() for _ in "ab")
        losses[precision] = step(x_a, x_b, {name: rand(2, 3).float() for name in "ab"})
    for name, value in losses["fp32"].items():
        # A few roundings of 2^-9 each, and far more than a wrong computation would leave.
        assert abs(losses["bf16"][name] - value) <= 0.05 * abs(value), name
    assert any(losses["bf16"][name] != value for name, value in losses["fp32"].items())


def test_memory_is_forecast_and_parameters_are_counted(tiny):
    settings = from_dict(munit(tiny))
    found, unit = memory.forecast(settings, torch.device("cpu")), networks(settings)
    assert found.activations > 0
    assert found.weights == sum(
        t.numel() * t.element_size() for t in [*unit.parameters(), *unit.buffers()]
    )
    counts = memory.parameter_counts(settings)
    assert sum(counts.values()) == sum(p.numel() for p in unit.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": {"enc": 1}}, "share.enc=1 is for UNIT, not for network=munit; leave it out"),
        ({"latent": "learned"}, "latent=learned is for UNIT, not for network=munit"),
        ({"identity_w": 1}, "identity_w=1.0 is for UNIT, not for network=munit"),
        ({"recon_kl_w": 0.5}, "recon_kl_w=0.5 weighs the KL of UNIT's codes.* recon_s_w and"),
        ({"crop_image_height": 8}, "crop_image_height=8 is too small for these networks"),
        ({"dis": {"norm": "adain"}}, "dis.norm='adain' must be one of none, bn, in, ln, sn"),
        ({"gen": {"styledim": 4}}, "did you mean gen.style_dim"),
        ({"paper": {"gen": {"ch": 3}}}, "section paper is for network=paper, but network=munit"),
    ],
)  # fmt: skip
def test_what_does_not_fit_munit_is_refused(changes, message, tiny):
    with pytest.raises(ConfigError, match=message):
        from_dict(munit(tiny) | changes)


def test_a_run_trains_resumes_to_the_bit_and_keeps_the_releases_files(tiny, command, config_file):
    every = yaml.safe_load(config_file.read_text())
    keys = munit(every, ema_decay=0.5, max_iter=4)
    config_file.write_text(yaml.safe_dump(keys))
    assert command("--output", "whole")[0] == 0
    assert command("--output", "cut", "--max-iter", 2)[0] == 0
    assert command("--resume", "cut", "--max-iter", 4, defaults=False)[0] == 0
    states = [checkpoint.load(checkpoint.path_of(Path(run), 4)) for run in ("whole", "cut")]
    for part in ("unit", "ema"):
        mine, other = (state[part] for state in states)
        assert mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)
    key = "gen_a.mlp.model.0.fc.weight"
    assert not torch.equal(states[0]["ema"][key], states[0]["unit"][key])
    record = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()][-1]
    assert {"style_a", "content_b", "cycle_a"} <= record.keys()
    assert not any(name.startswith(("kl", "cycle_kl")) for name in record)

    gen = Path("whole/checkpoints/gen_00000004.pt")
    saved = torch.load(gen, weights_only=True)
    made = AdaINGen(3, GEN)
    for name in "ab":
        made.load_state_dict(saved[name])
    pair, found = checkpoint.load_generators(gen)
    assert isinstance(pair, StyledPair) and found.network == "munit"
    assert torch.equal(pair.gen_b.state_dict()["mlp.model.0.fc.weight"], saved["b"][key[6:]])
    with pytest.raises(CheckpointError, match=r"MUNIT's networks; use network=munit"):
        checkpoint.load_generators(gen, from_dict(tiny))


def test_the_shipped_configuration_trains(command, photos):
    sizes = {"gen.dim": 4, "gen.n_res": 1, "gen.mlp_dim": 8, "dis.dim": 4, "dis.n_layer": 2}
    sizes |= {"dis.num_scales": 1, "new_size": 20, "crop_image_height": 16, "crop_image_width": 16}
    sets = [word for key, value in sizes.items() for word in ("--set", f"{key}={value}")]
    words = ["--config", "munit", "--data", photos, "--output", "run", "--device", "cpu"]
    assert command(*words, "--max-iter", 2, *sets, defaults=False)[0] == 0
    used = config.load(Path("run/config.yaml"))
    assert isinstance(used, config.MunitConfig) and used.gen.style_dim == 8
    assert (used.recon_s_w, used.recon_c_w, used.recon_x_cyc_w) == (1, 1, 0)
    pair, _ = checkpoint.load_generators(Path("run"))
    state = pair.state_dict()
    assert state["gen_a.mlp.model.0.fc.weight"].shape == (8, 8)
    assert len(list(Path("run/samples").iterdir())) > 1
