"""Code written for MUNIT's release runs on, with its objective and its files."""

from __future__ import annotations

import copy

import pytest
import torch

from fastunit.common.errors import ConfigError
from fastunit.compat import MUNIT_ATTRIBUTES, MUNIT_Trainer, UNIT_Trainer, networks
from fastunit.compat.trainer import MUNIT_Trainer as Imported
from tests.support import munit as plain
from tests.support.compare import assert_agree, assert_same
from tests.support.golden import NETWORKS
from tests.support.tensors import images, rand

CONFIG = {
    "display_size": 3, "batch_size": 2, "weight_decay": 0.0001, "beta1": 0.5, "beta2": 0.999,
    "init": "kaiming", "lr": 0.001, "lr_policy": "step", "step_size": 2, "gamma": 0.5,
    "gan_w": 1, "recon_x_w": 10, "recon_s_w": 2, "recon_c_w": 3, "recon_x_cyc_w": 5, "vgg_w": 0,
    "gen": {"dim": 4, "mlp_dim": 6, "style_dim": 3, "activ": "relu", "n_downsample": 1, "n_res": 1,
            "pad_type": "reflect"},
    "dis": {"dim": 4, "norm": "none", "activ": "lrelu", "n_layer": 2, "gan_type": "lsgan",
            "num_scales": 2, "pad_type": "reflect"},
    "input_dim_a": 3, "input_dim_b": 1, "num_workers": 2, "new_size": 20,
    "crop_image_height": 16, "crop_image_width": 16, "data_root": "./datasets/none",
}  # fmt: skip
WEIGHTS = {
    "adversarial": "gan_w", "reconstruction": "recon_x_w", "style": "recon_s_w",
    "content": "recon_c_w", "cycle": "recon_x_cyc_w",
}  # fmt: skip


def batch():
    source = torch.Generator().manual_seed(4)
    return [torch.rand(2, c, 16, 16, generator=source).double() * 2 - 1 for c in (3, 1)]


def styles():
    source = torch.Generator().manual_seed(5)
    return {n: torch.randn(2, 3, 1, 1, generator=source, dtype=torch.float64) for n in "ab"}


def make(cls=MUNIT_Trainer, **keys):
    torch.manual_seed(0)
    return cls(CONFIG | keys).double()


def updated(trainer, steps=2):
    for _ in range(steps):
        trainer.update_learning_rate()
        trainer.dis_update(*batch(), CONFIG, noise=styles())
        trainer.gen_update(*batch(), CONFIG, noise=styles())
    losses = {name: torch.as_tensor(getattr(trainer, name)) for name in MUNIT_ATTRIBUTES.values()}
    return losses | {
        f"{name}.{key}": value.clone()
        for name in NETWORKS
        for key, value in getattr(trainer, name).state_dict().items()
    }


def test_losses_are_the_papers():
    trainer, (x_a, x_b), s = make(), batch(), styles()
    wanted = plain.objective(trainer, x_a, x_b, s["a"], s["b"])
    trainer.dis_update(x_a, x_b, CONFIG, noise=s)
    of_dis = {name: wanted.pop(name) for name in ("discriminator_a", "discriminator_b")}
    after = plain.objective(trainer, x_a, x_b, s["a"], s["b"])  # the discriminators have changed
    wanted |= {name: after[name] for name in ("adversarial_a", "adversarial_b")}
    trainer.gen_update(x_a, x_b, CONFIG, noise=s)
    total = sum(CONFIG[WEIGHTS[name[:-2]]] * loss for name, loss in wanted.items())
    wanted |= of_dis | {"generator_total": total, "discriminator_total": sum(of_dis.values())}
    assert wanted.keys() | {"perceptual_a", "perceptual_b"} == MUNIT_ATTRIBUTES.keys()
    for name, loss in wanted.items():
        found = getattr(trainer, MUNIT_ATTRIBUTES[name])
        torch.testing.assert_close(found, loss.detach(), rtol=1e-10, atol=1e-14, msg=name)
    assert trainer.loss_gen_vgg_a == 0
    for name in ("recon_s_a", "recon_c_b", "cycrecon_x_a"):  # the release's names
        assert getattr(trainer, f"loss_gen_{name}") > 0


def test_one_call_updates_as_two_calls_do():
    one, wanted = make(), updated(make())
    for _ in range(2):
        one.update_learning_rate()
        one.update(*batch(), CONFIG, noise=styles())
    assert_agree(updated(one, 0), wanted)


def test_replaced_methods_are_called_and_compute_the_same():
    class Own(MUNIT_Trainer):
        calls = 0

        def recon_criterion(self, input, target):
            Own.calls += 1
            return super().recon_criterion(input, target)

    wanted, found = updated(make()), updated(make(Own))
    assert Own.calls == 2 * 8
    assert_agree(found, wanted)
    trainer, seen = make(), []
    decode = trainer.gen_a.decode
    trainer.gen_a.decode = lambda *codes: seen.append(codes[1].shape) or decode(*codes)
    assert_agree(updated(trainer), wanted)
    assert set(seen) == {(2, 3, 1, 1)} and len(seen) == 2 * (1 + 3)


def test_styles_are_drawn_where_they_are_not_given():
    for cls in (MUNIT_Trainer, type("Own", (MUNIT_Trainer,), {"recon_criterion": lambda s, x, y: (
        x - y).abs().mean()})):  # fmt: skip
        trainer, found = make(cls), []
        for seed in (1, 1, 2):
            one = copy.deepcopy(trainer)
            torch.manual_seed(seed)
            one.dis_update(*batch(), CONFIG)
            one.gen_update(*batch(), CONFIG)
            found.append(float(one.loss_gen_total))
        assert found[0] == found[1] != found[2]


def test_forward_and_sample_use_the_shown_styles():
    trainer, (x_a, x_b) = make(), batch()
    assert trainer.s_a.shape == (3, 3, 1, 1) and trainer.s_a.dtype == torch.float64
    assert not any(name.startswith("s_") for name in trainer.state_dict())
    gen_a, gen_b = trainer.gen_a, trainer.gen_b
    with torch.no_grad():
        (c_a, own_a), (c_b, own_b) = gen_a.encode(x_a), gen_b.encode(x_b)
        x_ab, x_ba = gen_b.decode(c_a, trainer.s_b[:2]), gen_a.decode(c_b, trainer.s_a[:2])
        wanted = {0: x_a, 1: gen_a.decode(c_a, own_a), 2: x_ab}
        wanted |= {4: x_b, 5: gen_b.decode(c_b, own_b), 6: x_ba}
    outputs, again = trainer.sample(x_a, x_b), trainer.sample(x_a, x_b)
    assert len(outputs) == 8 and trainer.training
    for index, value in wanted.items():
        torch.testing.assert_close(outputs[index], value)
    assert not any(torch.equal(outputs[i], again[i]) for i in (3, 7))
    assert [outputs[i].shape for i in (3, 7)] == [x_b.shape, x_a.shape]
    for mine, target in zip(trainer(x_a, x_b), (x_ab, x_ba), strict=True):
        torch.testing.assert_close(mine, target)
    with pytest.raises(ValueError, match=r"4 images need as many styles, but .*display_size=3"):
        trainer.sample(x_a.repeat(2, 1, 1, 1), x_b)
    assert trainer.training


def test_styles_that_do_not_fit_are_refused_whatever_is_replaced():
    own = type("Own", (MUNIT_Trainer,), {"recon_criterion": lambda s, x, y: (x - y).abs().mean()})
    for cls in (MUNIT_Trainer, own):
        trainer = cls(CONFIG).double()
        x_a, x_b = torch.rand(2, 3, 16, 16).double(), torch.rand(2, 1, 16, 16).double()
        wrong = {name: torch.rand(3, 2).double() for name in "ab"}
        for update in (trainer.dis_update, trainer.gen_update):
            with pytest.raises(ValueError, match=r"noise a of shape \(3, 2\) must be of \(2, 3\)"):
                update(x_a, x_b, noise=wrong)


def test_files_have_the_releases_layout_and_resume_to_the_bit(tmp_path):
    trainer = make()
    updated(trainer, 1)
    trainer.save(tmp_path, 0)
    saved = torch.load(tmp_path / "gen_00000001.pt", weights_only=True)
    for name in "ab":
        network = networks.AdaINGen({"a": 3, "b": 1}[name], CONFIG["gen"]).double()
        network.load_state_dict(saved[name])
    other = make()
    assert other.resume(tmp_path, CONFIG) == 1
    assert_same(updated(other), updated(trainer))


def test_wrong_hyperparameters_are_named():
    assert Imported is MUNIT_Trainer
    with pytest.raises(ConfigError, match=r"gen\.style_dim=0 must be at least 1"):
        MUNIT_Trainer(CONFIG | {"gen": {"style_dim": 0}})
    with pytest.raises(ValueError, match="network=release: MUNIT_Trainer has MUNIT's networks"):
        MUNIT_Trainer({key: CONFIG[key] for key in ("lr", "batch_size")} | {"network": "release"})
    with pytest.raises(ValueError, match="network=munit: UNIT_Trainer has UNIT's networks"):
        UNIT_Trainer({"network": "munit", "gen": {"style_dim": 3}})
    with pytest.warns(UserWarning, match="unused hyperparameters: focus_w") as seen:
        MUNIT_Trainer(CONFIG | {"focus_w": 2})
    assert seen[0].filename == __file__
    trainer = make()
    with pytest.raises(ConfigError, match="recon_s_w='much' must be a finite number"):
        trainer.gen_update(*batch(), {"recon_s_w": "much"})
    with pytest.raises(ValueError, match=r"noise a of shape \(1, 3\) must be of \(2, 3\)"):
        trainer.gen_update(images(2, 3, 16, 16), images(2, 1, 16, 16), noise={
            "a": rand(1, 3), "b": rand(2, 3)})  # fmt: skip
