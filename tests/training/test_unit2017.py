"""The paper's networks in the training step, checkpoints, resume and translation."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fastunit import translate
from fastunit.common import files
from fastunit.common.errors import CheckpointError, ConfigError
from fastunit.compat import UNIT_Trainer
from fastunit.config import from_dict, to_dict
from fastunit.models.domain_pair import evaluating
from fastunit.models.unit import PaperUNIT, networks
from fastunit.training import checkpoint, memory
from fastunit.training.objective import Batch, discriminator_losses, generator_losses
from fastunit.training.state import TrainState
from fastunit.training.step import TrainStep
from tests.support.compare import assert_agree
from tests.support.steps import noise_for, without_networks
from tests.support.tensors import images

CPU = torch.device("cpu")
BLOCKS = {"n_enc_front_blk": 2, "n_enc_res_blk": 1, "n_enc_shared_blk": 1}
BLOCKS |= {"n_gen_shared_blk": 1, "n_gen_res_blk": 1, "n_gen_front_blk": 2}
LAYERS = {"n_layer": 2}
SHARED_LAYERS = {"n_front_layer": 1, "n_shared_layer": 1}
WEIGHTS = {"gan_w": 10, "recon_x_w": 100, "recon_kl_w": 0.1}
WEIGHTS |= {"recon_x_cyc_w": 100, "recon_kl_cyc_w": 0.1, "init": "gaussian"}


def paper(tiny, gen="COCOResGen", dis="COCOMsDis", dropout=0.0, **changes):
    """Return a mapping that `from_dict` takes."""
    own = without_networks(tiny)
    sections = {
        "gen": {"name": gen, "ch": 4, "res_dropout_ratio": dropout, **BLOCKS},
        "dis": {"name": dis, "ch": 3, **(SHARED_LAYERS if dis == "COCOSharedDis" else LAYERS)},
    }
    return own | WEIGHTS | {"network": "paper", "paper": sections} | changes


@pytest.mark.parametrize("dis", ["COCODis", "COCOMsDis", "COCOSharedDis"])
@pytest.mark.parametrize("gen", ["COCOResGen", "COCOResGen2"])
def test_losses_are_the_papers(gen, dis, tiny):
    config = from_dict(paper(tiny, gen, dis))
    unit = PaperUNIT(config).double()
    x_a, x_b = images(2, 3, 16, 16), images(2, 3, 16, 16)
    noise = noise_for(unit, x_a, x_b)
    found = generator_losses(unit, Batch(x_a, x_b, noise), config)
    found |= discriminator_losses(unit, Batch(x_a, x_b, noise), config)

    first = torch.cat([noise["a"], noise["b"]])
    x_aa, x_ba, x_ab, x_bb, shared = unit.gen(x_a, x_b, first)
    # The cycle: b's translation goes into a's side, and the other way round.
    again = torch.cat([noise["ba"], noise["ab"]])
    _, x_aba, x_bab, _, back = unit.gen(x_ba, x_ab, again)
    fake, real = unit.dis(x_ba, x_ab), unit.dis(x_a, x_b)

    def entropy(outputs, target):
        return sum(
            F.binary_cross_entropy_with_logits(y, torch.full_like(y, target)) for y in outputs
        )

    mu, mu_back = shared - first, back - again
    wanted = {
        "adversarial_a": entropy(fake[0], 1.0),
        "adversarial_b": entropy(fake[1], 1.0),
        "discriminator_a": entropy(fake[0], 0.0) + entropy(real[0], 1.0),
        "discriminator_b": entropy(fake[1], 0.0) + entropy(real[1], 1.0),
        "reconstruction_a": (x_aa - x_a).abs().mean(),
        "reconstruction_b": (x_bb - x_b).abs().mean(),
        "cycle_a": (x_aba - x_a).abs().mean(),
        "cycle_b": (x_bab - x_b).abs().mean(),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)
    # Of both domains at once and counted twice: as much as once of each.
    torch.testing.assert_close(found["kl_a"] + found["kl_b"], 2 * mu.square().mean())
    torch.testing.assert_close(
        found["cycle_kl_a"] + found["cycle_kl_b"], 2 * mu_back.square().mean()
    )


def fresh(tiny, **changes):
    """Return a step whose networks always begin with the same numbers."""
    torch.manual_seed(3)
    config = from_dict(paper(tiny, **changes))
    return TrainStep(networks(config).double(), config)


def trained(step):
    """Return weights, gradients and losses after a step on images that are always the same."""
    torch.manual_seed(6)
    x_a, x_b = images(2, 3, 16, 16), images(2, 3, 16, 16)
    noise = noise_for(step.unit, x_a, x_b)
    torch.manual_seed(4)  # of dropout
    losses = step(x_a, x_b, noise)
    gradients = {f"{n}.grad": p.grad for n, p in step.unit.gen.named_parameters()}
    return losses | gradients | step.unit.state_dict()


@pytest.mark.parametrize("latent", ["unit", "learned"])
@pytest.mark.parametrize("dis", ["COCOMsDis", "COCOSharedDis"])
@pytest.mark.parametrize("gen", ["COCOResGen", "COCOResGen2"])
def test_paired_and_unpaired_steps_agree(gen, dis, latent, tiny):
    found = [
        trained(fresh(tiny, gen=gen, dis=dis, latent=latent, pair_domains=paired))
        for paired in ("on", "off")
    ]
    assert_agree(*found)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("paired", ["on", "off"])
def test_recomputed_activations_change_nothing(paired, dropout, tiny):
    found = [
        trained(fresh(tiny, dropout=dropout, pair_domains=paired, checkpoint_activations=recompute))
        for recompute in (True, False)
    ]
    assert_agree(*found)


def test_a_compiled_step_computes_the_same(tiny):
    torch.compiler.reset()
    compiled, eager = (fresh(tiny, pair_domains="on", compile=mode) for mode in ("on", "off"))
    assert_agree(trained(compiled), trained(eager))
    assert compiled.compiled.is_on


def test_bf16_trains_close_to_float32(tiny):
    losses = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(3)
        config = from_dict(paper(tiny, precision=precision))
        step = TrainStep(networks(config), config)
        x_a, x_b = (images(2, 3, 16, 16).float() for _ in "ab")
        torch.manual_seed(5)
        noise = {n: v.float() for n, v in noise_for(step.unit, x_a, x_b).items()}
        losses[precision] = step(x_a, x_b, noise)
        assert all(p.dtype == torch.float32 for p in step.unit.parameters())
    for name, value in losses["fp32"].items():
        # A few roundings of 2^-9 each, and far more than a wrong computation would leave.
        assert abs(losses["bf16"][name] - value) <= 0.05 * abs(value), name
    assert any(losses["bf16"][name] != value for name, value in losses["fp32"].items())


@pytest.mark.parametrize("dis", ["COCODis", "COCOSharedDis"])
def test_a_run_trains_resumes_to_the_bit_and_translates(dis, tiny, command, photos, config_file):
    import yaml

    every = yaml.safe_load(config_file.read_text())
    kept = {k: every[k] for k in every if k not in ("gen", "dis", "share")}
    config_file.write_text(
        yaml.safe_dump(kept | paper(tiny, dis=dis, ema_decay=0.5) | {"max_iter": 4})
    )
    assert command("--output", "whole")[0] == 0
    assert command("--output", "cut", "--max-iter", 2)[0] == 0
    assert command("--resume", "cut", "--max-iter", 4, defaults=False)[0] == 0
    states = [checkpoint.load(checkpoint.path_of(Path(run), 4)) for run in ("whole", "cut")]
    for part in ("unit", "ema"):
        mine, other = (state[part] for state in states)
        assert mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)
    assert not torch.equal(
        states[0]["ema"]["encode_A.0.model.0.weight"],
        states[0]["unit"]["gen.encode_A.0.model.0.weight"],
    )
    argv = ["whole", photos / "testA", "out", "--direction", "a2b", "--device", "cpu"]
    assert translate.main([str(arg) for arg in argv]) == 0
    assert len(list(Path("out").iterdir())) == 2


def test_what_is_looked_at_is_without_dropout(tiny, tmp_path):
    session = TrainState(from_dict(paper(tiny, dropout=0.5)), CPU)
    x = torch.rand(2, 3, 16, 16)
    state = torch.get_rng_state()
    with evaluating(session.generator_pair):
        rows = session.generator_pair.sample_rows(x, x)
    assert torch.equal(torch.get_rng_state(), state) and session.unit.gen.training
    pair, _ = checkpoint.load_generators(session.save(tmp_path))
    torch.testing.assert_close(pair.translate(x, "a2b"), rows["a to b"])
    assert not torch.equal(session.generator_pair.translate(x, "a2b"), rows["a to b"])


def test_replaced_layers_are_the_ones_that_run(tiny):
    unit, x = networks(from_dict(paper(tiny, dis="COCOSharedDis"))), torch.rand(1, 3, 16, 16)
    for owner, name in (
        (unit.gen.encode_A[0].model, "0"),
        (unit.gen, "enc_shared"),
        (unit.gen, "decode_B"),
        (unit.dis, "model_B"),
        (unit.dis, "model_S"),
    ):
        old = getattr(owner, name)
        before = unit.gen.translate(x, "a2b"), unit.dis_b(x)[0]
        new = copy.deepcopy(old)
        for parameter in new.parameters():
            torch.nn.init.normal_(parameter)
        setattr(owner, name, new)
        after = unit.gen.translate(x, "a2b"), unit.dis_b(x)[0]
        assert not all(map(torch.equal, before, after)), name


def test_files_have_the_releases_names(tiny, tmp_path):
    config = from_dict(paper(tiny))
    session = TrainState(config, CPU)
    saved = session.save(tmp_path)
    generators = files.read(saved.with_name("gen_00000000.pt"))
    assert generators.keys() == session.unit.gen.state_dict().keys()
    assert {"encode_A.0.model.0.weight", "enc_shared.0.model.3.bias"} <= generators.keys()
    discriminators = files.read(saved.with_name("dis_00000000.pt"))
    assert "model_2_B.1.model.0.weight" in discriminators
    other, _ = checkpoint.load_generators(saved.with_name("gen_00000000.pt"), config)
    x = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(other.translate(x, "b2a"), session.unit.translate(x, "b2a"))
    with pytest.raises(CheckpointError, match=r"dis_0+\.pt does not fit .* is missing"):
        checkpoint.load_generators(saved.with_name("dis_00000000.pt"), config)
    with pytest.raises(CheckpointError, match="holds the paper's networks; use network=paper"):
        checkpoint.load_generators(saved.with_name("gen_00000000.pt"), from_dict(tiny))
    files.save({"a": {}, "b": {}}, tmp_path / "gen_00000009.pt")
    with pytest.raises(CheckpointError, match="2018 release's networks: use network=release"):
        checkpoint.load_generators(tmp_path / "gen_00000009.pt", config)


def test_learned_variance_is_of_both_domains(tiny):
    session = TrainState(from_dict(paper(tiny, latent="learned")), CPU)
    assert session.unit.gen_a.sigma is session.unit.gen_b.sigma is session.unit.gen.sigma
    before = session.unit.gen.sigma.weight.clone()
    session.advance(*(images(2, 3, 16, 16).float() for _ in "ab"))
    assert not torch.equal(session.unit.gen.sigma.weight, before)
    assert "sigma.weight" not in networks(from_dict(paper(tiny))).gen.state_dict()


def test_parts_are_counted_once(tiny):
    config = from_dict(paper(tiny, dis="COCOSharedDis"))
    counts, unit = memory.parameter_counts(config), networks(config)
    assert sum(counts.values()) == sum(p.numel() for p in unit.parameters())
    for name, modules in (
        ("shared by the generators", (unit.gen.enc_shared, unit.gen.dec_shared)),
        ("shared by the discriminators", (unit.dis.model_S,)),
    ):
        assert counts[name] == sum(p.numel() for m in modules for p in m.parameters()) > 0
    assert memory.forecast(config, CPU).total > 0


def shared_dis(**keys):
    return {"paper": {"dis": {"name": "COCOSharedDis", **keys}}}


def test_what_does_not_fit_the_paper_is_refused(tiny):
    for changes, message in (
        ({"share": {"enc": 1}}, "share.enc=1 is for network=release; .*gen.n_enc_shared_blk"),
        ({"share": {"dec": 1}}, "share.dec=1 is for network=release; .*gen.n_gen_shared_blk"),
        ({"crop_image_height": 17}, r"crop_image_height=17 must be a multiple of 2 \(2 to the"),
        ({"network": "papers"}, "network='papers' must be one of release, paper"),
        ({"paper": {"gen": {"name": "VAEGen"}}}, "paper.gen.name='VAEGen' must be one of COCO"),
        ({"paper": {"dis": {"layers": 3}}}, "unknown key 'paper.dis.layers'"),
        ({"paper": {"dis": {"n_layer": 5}}}, "paper.dis.n_layer=5 halves crops of 16 .* most 4"),
        ({"paper": {"dis": {"n_front_layer": 2}}}, "n_front_layer=2 is not for COCOMsDis"),
        (shared_dis(n_layer=4), "paper.dis.n_layer=4 is not for COCOSharedDis"),
        (shared_dis(n_shared_layer=2), "n_shared_layer, together=5 halves crops of 16"),
        (
            {"gen": {"dim": 7}},
            "section gen is for network=release or munit, but network=paper; leave",
        ),
        (
            {"dis": {"dim": 7}},
            "section dis is for network=release or munit, but network=paper; leave",
        ),
        ({"network": "release"}, "section paper is for network=paper, but network=release"),
        ({"paper": {"gen": {"n_gen_front_blk": 2}}}, "n_gen_front_blk=2 must be .*front_blk=3"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_dict(paper(tiny) | changes)
    with pytest.raises(ValueError, match="network=paper: UNIT_Trainer has UNIT's networks"):
        UNIT_Trainer(to_dict(from_dict(paper(tiny))))


def test_the_papers_configuration_has_its_weights():
    from fastunit import config

    settings = config.load("paper")
    assert (settings.gan_w, settings.recon_x_w, settings.recon_kl_w) == (10, 100, 0.1)
    assert (settings.recon_x_cyc_w, settings.recon_kl_cyc_w) == (100, 0.1)
    assert (settings.lr, settings.beta1, settings.batch_size) == (1e-4, 0.5, 1)
    counts = memory.parameter_counts(settings)
    assert counts["shared by the generators"] == 2 * 2 * (256 * 256 * 9 + 256)
