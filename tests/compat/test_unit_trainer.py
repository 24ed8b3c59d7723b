"""Code written for the 2018 release runs on, and its files go both ways."""

from __future__ import annotations

import copy
import re
from unittest.mock import Mock

import pytest
import torch

from fastunit.common.errors import CheckpointError, ConfigError
from fastunit.compat import ATTRIBUTES, UNIT_Trainer, release_trainer
from fastunit.models.domain_pair import TrainablePair
from fastunit.models.perceptual import Perceptual
from tests.support.compare import assert_same
from tests.support.golden import NETWORKS
from tests.support.trainer import assert_alike, batch, make, noise, updated

LOSSES = [
    *(f"loss_dis_{name}" for name in ("a", "b", "total")),
    *(f"loss_gen_{name}_{domain}" for name in ("adv", "vgg") for domain in "ab"),
    *(f"loss_gen_recon_{name}_{domain}" for name in ("x", "kl") for domain in "ab"),
    *(f"loss_gen_cyc_x_{domain}" for domain in "ab"),
    *(f"loss_gen_recon_kl_cyc_{path}" for path in ("aba", "bab")),
    "loss_gen_total",
]


@pytest.fixture
def config() -> dict:
    """Return every key of a release YAML file, for networks that step in milliseconds."""
    return {
        "image_save_iter": 10, "image_display_iter": 5, "display_size": 2,
        "snapshot_save_iter": 3, "log_iter": 1, "max_iter": 5, "batch_size": 2,
        "weight_decay": 0.0001, "beta1": 0.5, "beta2": 0.999, "init": "kaiming", "lr": 0.001,
        "lr_policy": "step", "step_size": 2, "gamma": 0.5, "gan_w": 1, "recon_x_w": 10,
        "recon_h_w": 0, "recon_kl_w": 0.01, "recon_x_cyc_w": 10, "recon_kl_cyc_w": 0.01,
        "vgg_w": 0,
        "gen": {"dim": 4, "activ": "relu", "n_downsample": 1, "n_res": 1, "pad_type": "reflect"},
        "dis": {
            "dim": 4, "norm": "none", "activ": "lrelu", "n_layer": 2, "gan_type": "lsgan",
            "num_scales": 2, "pad_type": "reflect",
        },
        "input_dim_a": 3, "input_dim_b": 1, "num_workers": 2, "new_size_a": 20, "new_size_b": 24,
        "crop_image_height": 16, "crop_image_width": 16, "data_root": "./datasets/none",
    }  # fmt: skip


def pictures(count=2, dtype=torch.float32):
    """Return images of both domains, the same at every call."""
    source = torch.Generator().manual_seed(4)
    a, b = (torch.rand(count, c, 16, 16, generator=source) * 2 - 1 for c in (3, 1))
    return a.to(dtype), b.to(dtype)


def train(trainer, config, iterations, last, folder=None):
    """Train the way scripts for the release do; return the losses logged at each iteration."""
    logged = []
    while iterations < last:
        trainer.update_learning_rate()
        images_a, images_b = pictures()
        torch.manual_seed(iterations)
        trainer.dis_update(images_a, images_b, config)
        trainer.gen_update(images_a, images_b, config)
        logged.append(
            {
                name: float(getattr(trainer, name))
                for name in dir(trainer)
                if ("loss" in name or "grad" in name) and not callable(getattr(trainer, name))
            }
        )
        if folder and (iterations + 1) % config["snapshot_save_iter"] == 0:
            trainer.save(folder, iterations)
        iterations += 1
    return logged


def state(trainer):
    networks = {name: getattr(trainer, name).state_dict() for name in NETWORKS}
    return copy.deepcopy(
        {
            **{
                f"{net}.{key}": value for net, own in networks.items() for key, value in own.items()
            },
            **{
                f"{name}.{index}.{key}": value
                for name in ("gen_opt", "dis_opt")
                for index, own in getattr(trainer, name).state_dict()["state"].items()
                for key, value in own.items()
            },
        }
    )


def test_a_script_for_the_release_trains_saves_and_resumes_bitwise(config, tmp_path):
    torch.manual_seed(0)
    trainer = UNIT_Trainer(config)
    trainer.to("cpu")
    logged = train(trainer, config, 0, config["max_iter"], tmp_path)
    assert all(set(losses) == set(LOSSES) for losses in logged)
    assert all(losses[name] > 0 for losses in logged for name in LOSSES if "vgg" not in name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dis_00000003.pt", "gen_00000003.pt", "optimizer.pt",
    ]  # fmt: skip

    torch.manual_seed(99)
    again = UNIT_Trainer(config)
    iterations = again.resume(tmp_path, hyperparameters=config)
    assert iterations == 3
    assert train(again, config, iterations, config["max_iter"]) == logged[3:]
    assert_same(state(again), state(trainer))
    rates = [o.param_groups[0]["lr"] for o in (again.gen_opt, again.dis_opt, trainer.gen_opt)]
    assert rates == [0.001 * 0.5**2] * 3


def test_files_have_the_releases_layout(config, tmp_path):
    trainer = UNIT_Trainer(config)
    train(trainer, config, 0, 1)
    trainer.save(str(tmp_path), 41)
    for kind in ("gen", "dis"):
        saved = torch.load(tmp_path / f"{kind}_00000042.pt", weights_only=True)
        assert list(saved) == ["a", "b"]
        for domain in saved:
            assert_same(saved[domain], getattr(trainer, f"{kind}_{domain}").state_dict())
    saved = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert list(saved) == ["gen", "dis"]
    for kind, networks in (("gen", NETWORKS[:2]), ("dis", NETWORKS[2:])):
        # The release numbers the parameters of a, then those of b.
        parameters = [p for name in networks for p in getattr(trainer, name).parameters()]
        shapes = [saved[kind]["state"][i]["exp_avg"].shape for i in range(len(parameters))]
        assert shapes == [p.shape for p in parameters]


def test_a_script_for_the_release_translates(config, tmp_path):
    trainer = UNIT_Trainer(config)
    trainer.save(tmp_path, 0)
    other = UNIT_Trainer(config)
    saved = torch.load(tmp_path / "gen_00000001.pt", weights_only=True)
    other.gen_a.load_state_dict(saved["a"])
    other.gen_b.load_state_dict(saved["b"])
    other.eval()
    x_a, x_b = pictures()
    with torch.no_grad():
        content, _ = other.gen_a.encode(x_a)
        outputs = other.gen_b.decode(content)
    assert torch.equal(outputs, trainer.forward(x_a, x_b)[0])


def test_forward_and_sample(config):
    trainer = UNIT_Trainer(config)
    x_a, x_b = pictures(3)
    gen_a, gen_b = trainer.gen_a, trainer.gen_b
    with torch.no_grad():
        h_a, h_b = gen_a.encode(x_a)[0], gen_b.encode(x_b)[0]
        x_ab, x_ba = gen_b.decode(h_a), gen_a.decode(h_b)
        wanted = (x_a, gen_a.decode(h_a), x_ab, x_b, gen_b.decode(h_b), x_ba)
    outputs = trainer.sample(x_a, x_b)
    assert all(module.training for module in trainer.modules())
    assert len(outputs) == 6
    for mine, target in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(mine, target)
        assert not mine.requires_grad
    for mine, target in zip(trainer(x_a, x_b), (x_ab, x_ba), strict=True):
        torch.testing.assert_close(mine, target)
    assert all(module.training for module in trainer.modules())


def test_losses_are_there_before_and_after_the_updates(config):
    trainer = UNIT_Trainer(config)
    assert set(ATTRIBUTES.values()) == set(LOSSES)
    assert all(getattr(trainer, name) == 0 for name in LOSSES)
    x_a, x_b = pictures()
    trainer.dis_update(x_a, x_b)
    assert {name for name in LOSSES if getattr(trainer, name) != 0} == set(LOSSES[:3])
    trainer.gen_update(x_a, x_b)
    off = {"loss_gen_vgg_a", "loss_gen_vgg_b"}
    assert {name for name in LOSSES if getattr(trainer, name) == 0} == off
    values = (getattr(trainer, name) for name in LOSSES if name not in off)
    assert all(value.shape == () and not value.requires_grad for value in values)


def test_the_weights_of_each_call_count(config):
    trainer = UNIT_Trainer(config)
    x_a, x_b = pictures()
    trainer.dis_update(x_a, x_b, config | {"gan_w": 3})
    sum_of_both = trainer.loss_dis_a + trainer.loss_dis_b
    torch.testing.assert_close(trainer.loss_dis_total, 3 * sum_of_both)
    trainer.dis_update(x_a, x_b)  # back to the constructor's
    torch.testing.assert_close(trainer.loss_dis_total, trainer.loss_dis_a + trainer.loss_dis_b)

    only_kl = dict.fromkeys(("gan_w", "recon_x_w", "recon_x_cyc_w", "recon_kl_cyc_w"), 0)
    trainer.gen_update(x_a, x_b)
    assert trainer.loss_gen_cyc_x_a > 0
    # PyYAML reads 1e-1 as text; the constructor takes it, so the updates do.
    trainer.gen_update(x_a, x_b, only_kl | {"recon_kl_w": "1e-1"})
    kl = trainer.loss_gen_recon_kl_a + trainer.loss_gen_recon_kl_b
    torch.testing.assert_close(trainer.loss_gen_total, 0.1 * kl)
    for name in ("cyc_x_a", "cyc_x_b", "recon_kl_cyc_aba", "recon_kl_cyc_bab"):
        assert getattr(trainer, f"loss_gen_{name}") == 0, name  # not what the last update left
    with pytest.raises(ConfigError, match="recon_x_w='much' must be a finite number"):
        trainer.gen_update(x_a, x_b, {"recon_x_w": "much"})
    with pytest.raises(ValueError, match=r"vgg_w=1\.0 needs the perceptual term"):
        trainer.gen_update(x_a, x_b, {"vgg_w": 1})


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_device_and_precision_with_given_noise(config, device, dtype, tmp_path):
    trainer = UNIT_Trainer(config).to(device, dtype)
    x_a, x_b = (x.to(device) for x in pictures(dtype=dtype))
    noise = {k: torch.randn(2, 8, 8, 8, dtype=dtype).to(device) for k in ("a", "b", "ba", "ab")}
    twin = copy.deepcopy(trainer)
    for one in (trainer, twin):
        one.update_learning_rate()
        one.dis_update(x_a, x_b, config, noise={"a": noise["a"], "b": noise["b"]})
        one.gen_update(x_a, x_b, config, noise=noise)
    for name in ("loss_dis_total", "loss_gen_total"):  # no noise but the given one
        assert getattr(trainer, name).dtype == dtype
        torch.testing.assert_close(getattr(trainer, name), getattr(twin, name))
    trainer.save(tmp_path, 0)
    twin.resume(tmp_path, config)
    assert_same(state(twin), state(trainer))
    assert {p.dtype for p in twin.parameters()} == {dtype}
    assert {output.dtype for output in twin.sample(x_a, x_b)} == {dtype}


@pytest.mark.parametrize("share", [True, False])
def test_one_call_updates_as_two_calls_do(monkeypatch, share):
    trainer, twin = make(share_fakes=share), make(share_fakes=share)
    assert twin.gen_a.enc.model[1].conv.weight.is_contiguous(memory_format=torch.channels_last)
    wanted = updated(twin)
    encoded = []
    encode = TrainablePair.encode
    monkeypatch.setattr(TrainablePair, "encode", lambda *x: (encoded.append(x), encode(*x))[1])
    for _ in range(2):
        trainer.update_learning_rate()
        trainer.update(*batch(), noise=noise())  # the same for both updates, as in `updated`
    assert len(encoded) == (4 if share else 6)  # with the cycle's
    assert all(p.grad is None for p in trainer.dis_a.parameters())
    assert_alike(updated(trainer, 0), wanted)


def test_one_call_calls_what_a_subclass_overrides():
    class Own(UNIT_Trainer):
        def dis_update(self, x_a, x_b, hyperparameters=None):
            seen.append(hyperparameters)
            super().dis_update(x_a, x_b, hyperparameters)

    seen, weights = [], {"gan_w": 2}
    own, two = make(Own), make()
    torch.manual_seed(3)
    own.update(*batch(), weights)
    torch.manual_seed(3)
    two.dis_update(*batch(), weights)
    two.gen_update(*batch(), weights)
    assert seen == [weights]
    assert_alike(updated(own, 0), updated(two, 0))
    own.gen_a.encode = (calls := Mock(side_effect=own.gen_a.encode))
    own.update(*batch())
    assert len(calls.mock_calls) == 3


def test_unknown_keys_are_left_out_with_a_warning(config):
    extra = {"focus_w": 2, "style_dim": 8}
    with pytest.warns(UserWarning, match=r"unused hyperparameters: focus_w, style_dim") as seen:
        trainer = UNIT_Trainer(config | extra)
    assert seen[0].filename == __file__
    train(trainer, config | extra, 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr_policy": "exp"}, "lr_policy='exp' must be one of step, constant"),
        ({"init": "he"}, "init='he' must be one of gaussian, xavier"),
        ({"gen": {"dims": 4}}, "gen.dims' in section gen; did you mean gen.dim?"),
        ({"dis": {"norm": "adain"}}, "dis.norm='adain' must be one of none, bn, in, ln, sn"),
        ({"vgg_w": 1}, "vgg_model_path is not set"),
        ({"vgg_w": 1, "vgg_model_path": "."}, "vgg16.weight is missing: put the release's"),
        ({"share": {"enc": 2}}, "share.enc=2 is more than the gen.n_res=1"),
    ],
)
def test_wrong_hyperparameters_are_named(config, change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        UNIT_Trainer(config | change)


def test_the_perceptual_term_trains_and_moves_with_the_trainer(config, monkeypatch):
    UNIT_Trainer(config | {"vgg_model_path": "."})  # the release sets it, needed or not
    monkeypatch.setattr(release_trainer, "load_perceptual", lambda path: Perceptual())
    trainer = UNIT_Trainer(config | {"vgg_w": 2.0, "vgg_model_path": "vgg16.pth"}).double()
    before = copy.deepcopy(trainer.vgg.state_dict())
    x_a, x_b = pictures(1, torch.float64)
    trainer.dis_update(x_a, x_b, config)
    trainer.gen_update(x_a, x_b)
    assert trainer.loss_gen_vgg_a > 0 and trainer.loss_gen_vgg_b > 0
    assert_same(trainer.vgg.state_dict(), before)


@pytest.mark.parametrize("files", [[], ["gen_1.pt", "gen_00000001.pth", "dis_00000001.pt"]])
def test_nothing_to_resume_from(config, tmp_path, files):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name} holds no gen_XXXXXXXX\.pt"):
        UNIT_Trainer(config).resume(tmp_path)
    with pytest.raises(CheckpointError, match=r"absent holds no gen_XXXXXXXX\.pt"):
        UNIT_Trainer(config).resume(tmp_path / "absent")


def test_resume_takes_the_newest(config, tmp_path):
    trainer = UNIT_Trainer(config)
    for iterations in (9, 99, 1, 44, 10, 6):
        trainer.save(tmp_path, iterations)
    for newest in (100, 45, 11, 10, 7, 2):
        assert trainer.resume(tmp_path, config) == newest
        (tmp_path / f"gen_{newest:08d}.pt").unlink()


@pytest.mark.parametrize("name", ["gen_00000001.pt", "dis_00000001.pt", "optimizer.pt"])
def test_files_missing_or_damaged_are_named(config, tmp_path, name):
    trainer = UNIT_Trainer(config)
    trainer.save(tmp_path, 0)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=re.escape(name)):
        trainer.resume(tmp_path)
    if not name.startswith("gen"):
        (tmp_path / name).unlink()
        with pytest.raises(CheckpointError, match=re.escape(name)):
            trainer.resume(tmp_path)
