"""The release's configuration files as they are, and going on from its checkpoints."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
import yaml

from fastunit import VAEGen, config
from fastunit.common import files
from fastunit.common.errors import ConfigError
from fastunit.config import from_dict
from fastunit.training import lr_schedule, memory, release_files
from fastunit.training.state import TrainState

FILES = sorted((Path(__file__).parent / "release").glob("*.yaml"))


def test_there_are_five():
    assert len(FILES) == 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_the_release_loads_and_its_run_is_planned(path, command, photos, monkeypatch):
    # Takes seconds, and is not asked for here.
    monkeypatch.setattr(memory, "forecast", lambda settings, device: "not asked")
    for split in ("trainA", "trainB", "testA", "testB"):
        names = sorted(each.name for each in (photos / split).iterdir())
        (photos / f"{split}.txt").write_text("\n".join(names) + "\n")
    loaded, given = config.load(path), yaml.safe_load(path.read_text())
    for name in ("gan_w", "lr", "max_iter", "crop_image_width", "num_workers"):
        assert getattr(loaded, name) == float(given[name])
    assert loaded.gen.n_res == given["gen"]["n_res"]
    code, out, err = command("--config", path, "--dry-run", "--set", "vgg_w=0", defaults=False)
    assert code == 0, err
    assert "would train" in out and "warning" not in err
    assert ("gen.mlp_dim, gen.style_dim: read and unused" in err) == ("template" in path.stem)


def test_a_run_decodes_with_no_workers(command):
    code, _, err = command("--max-iter", 1, "--set", "num_workers=0")
    assert code == 0, err
    assert config.load("runs/tiny/config.yaml").num_workers == 0


def test_a_generator_takes_the_releases_section(caplog):
    with caplog.at_level(logging.INFO, "fastunit"):
        VAEGen(3, {"dim": 4, "n_downsample": 1, "n_res": 1, "mlp_dim": 256, "style_dim": 8})
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == (
        "gen.mlp_dim, gen.style_dim: read and unused (MUNIT's style code, which UNIT does not have)"
    )


@pytest.mark.parametrize("key", ["recon_s_w", "recon_c_w"])
def test_munits_weights_are_refused_for_what_they_are(key, caplog):
    with pytest.raises(ConfigError, match=rf"{key}=1 is MUNIT's weight .*leave it out, or set"):
        from_dict({key: 1})
    for zero in (0, "0.0"):
        assert from_dict({key: zero}) == from_dict({})
    with pytest.raises(ConfigError, match=r"unknown key 'recon_y_w'.*did you mean recon_x_w"):
        from_dict({"recon_y_w": 1})


# The rate of the update after an iteration: lr * gamma^(iteration // step_size).
SCHEDULES = {
    "step": {"lr": 0.008, "lr_policy": "step", "step_size": 10, "gamma": 0.5},
    "tenth": {"lr": 0.01, "lr_policy": "step", "step_size": 7, "gamma": 0.1},
    "constant": {"lr": 0.003, "lr_policy": "constant", "step_size": 10, "gamma": 0.5},
}
RATES = [
    ("step", 9, 0.008 / 2), ("step", 10, 0.008 / 2), ("step", 35, 0.008 / 8),
    ("step", 50, 0.008 / 32), ("tenth", 21, 1e-5), ("constant", 50, 0.003),
]  # fmt: skip


OTHER = {"lr": 0.5, "initial_lr": 0.5, "betas": (0.1, 0.2), "weight_decay": 3.0, "amsgrad": True}


def session(tiny, keys=None):
    return TrainState(from_dict(tiny | (keys or {})), torch.device("cpu"))


def images():
    return torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)


@pytest.fixture
def saved(tiny, tmp_path):
    """Return a function that leaves the release's files of an iteration, and their gen file."""

    def save(iteration, changes=None):
        made, folder = session(tiny), tmp_path / "outputs"
        made.advance(*images())
        release_files.save_networks(made.unit, folder, iteration)
        if changes is not None:
            state = {"gen": made.step.gen_opt.state_dict(), "dis": made.step.dis_opt.state_dict()}
            for each in state.values():
                each["param_groups"][0].update(changes)
            files.save(state, folder / "optimizer.pt")
        return folder / f"gen_{iteration:08d}.pt"

    return save


@pytest.mark.parametrize("with_optimizer", [True, False], ids=["optimizer.pt", "none"])
@pytest.mark.parametrize(("name", "iteration", "rate"), RATES)
def test_the_rate_and_the_settings_are_the_configurations(
    name, iteration, rate, with_optimizer, tiny, saved, caplog
):
    path = saved(iteration, OTHER if with_optimizer else None)
    run = session(tiny, SCHEDULES[name] | {"beta1": 0.25, "weight_decay": 0.125})
    with caplog.at_level(logging.INFO, "fastunit"):
        run.restore_release(path)
    said = caplog.text
    if with_optimizer:
        assert re.search(r"the configuration overrides .*/optimizer\.pt: lr 0\.5 -> ", said)
        assert "betas (0.1, 0.2) -> (0.25, 0.999)" in said and "weight_decay 3.0 -> 0.125" in said
    else:
        assert "Adam starts anew, at a learning rate of" in said
    assert run.iteration == iteration
    for _ in range(3):
        run.advance(*images())
        wanted = lr_schedule.rate(run.config, run.iteration)
        if run.iteration == iteration + 1:
            assert wanted == pytest.approx(rate)
        assert run.step.learning_rate == pytest.approx(wanted)
        for optimizer in (run.step.gen_opt, run.step.dis_opt):
            (group,) = optimizer.param_groups
            assert group["lr"] == pytest.approx(wanted) and not group["amsgrad"]
            assert (group["betas"], group["weight_decay"]) == ((0.25, 0.999), 0.125)
    steps = {int(each["step"]) for each in run.step.gen_opt.state.values()}
    assert steps == {4 if with_optimizer else 3}


def test_nothing_is_said_where_the_files_settings_are_the_configurations(tiny, saved, caplog):
    run = session(tiny, {"step_size": 10})
    with caplog.at_level(logging.INFO, "fastunit"):
        run.restore_release(saved(20, {"lr": 1e-4 * 0.5 * 0.5}))
    assert "wins over" not in caplog.text


def test_the_folder_is_named_after_the_run_the_files_lie_in(command):
    assert command("--output", "runs/mine-2", "--max-iter", 1)[0] == 0
    path = "runs/mine-2/checkpoints/gen_00000001.pt"
    code, out, _ = command("--resume", path, "--max-iter", 2, defaults=False)
    assert code == 0 and "into runs/demo" not in out
    assert Path("runs/mine-3/checkpoints/00000002.pt").is_file() and not Path("runs/demo").exists()


def test_a_dry_run_refuses_what_training_refuses(command, saved):
    path = saved(4)
    cases = {
        "is not a file; give vgg_model_path": ("--set", "vgg_w=1", "--set", "vgg_model_path=x.pth"),
        "vgg_model_path is not set": ("--set", "vgg_w=1"),
        "does not fit the networks": ("--resume", path, "--set", "gen.dim=8"),
        "graphs=on needs": ("--set", "graphs=on", "--device", "cpu"),
        "precision=tf32 needs": ("--set", "precision=tf32", "--device", "cpu"),
    }
    for message, options in cases.items():
        for dry in ((), ("--dry-run",)):
            code, out, err = command("--output", "run", *options, *dry)
            assert code == 2 and message in err and "would train" not in out, (message, err)
    path.with_name("dis_00000004.pt").unlink()
    code, _, err = command("--resume", path, "--dry-run")
    assert code == 2 and "dis_00000004.pt" in err
    assert not Path("run").exists()
