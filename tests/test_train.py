"""The training command: what a run writes and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from fastunit import config, train
from fastunit.data import builtin
from fastunit.report import summary
from fastunit.training import checkpoint
from fastunit.training.state import TrainState
from tests.support.checkout import ROOT
from tests.support.processes import python


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_everything(command, tmp_path):
    code, out, _ = command("--seed", 3)
    run_dir = Path("runs/tiny")
    assert code == 0
    result = json.loads((run_dir / "result.json").read_text())
    assert out.splitlines()[-len(summary.lines(result)) :] == summary.lines(result)
    for way in ("a2b", "b2a"):
        assert {"paired_l1", "identity_l1", "constant_l1", "statistics_l1"} <= result[way].keys()
        assert 0 <= result[way]["retrieval"] <= 1 and result[way]["chance"] == 0.5
    assert result["seconds"] > 0 and result["images_per_s"] > 0
    assert config.load(run_dir / "config.yaml").seed == 3
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["seed"] == 3 and environment["versions"]["torch"] == torch.__version__
    samples = sorted(p.name for p in (run_dir / "samples").iterdir())
    assert samples == ["00000000.png", "00000002.png", "00000004.png", "latest.png"]
    assert (run_dir / "index.html").stat().st_size > 10_000
    assert list((run_dir / "tensorboard").iterdir())
    assert checkpoint.iterations(run_dir) == [2, 4]
    assert (run_dir / "checkpoints/gen_00000004.pt").is_file()
    logged = records(run_dir)
    assert [r["iteration"] for r in logged] == [1, 2, 3, 4]
    assert {"cycle_a", "adversarial_b", "learning_rate", "images_per_s", "data_wait"} <= set(
        logged[0]
    )


def test_a_second_run_takes_a_new_folder(command):
    command("--max-iter", 1)
    first = (Path("runs/tiny") / "result.json").read_bytes()
    assert command("--max-iter", 1)[0] == 0
    assert (Path("runs/tiny") / "result.json").read_bytes() == first
    assert Path("runs/tiny-2/result.json").is_file()


def test_the_demo_domains_train(tmp_path, monkeypatch, config_file):
    drawn = builtin.demo_root
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtin, "demo_root", lambda builtin: drawn(4, 2, builtin=builtin))
    args = ["--config", str(config_file), "--set", "data.builtin=scenes", "--max-iter", "1"]
    assert train.main(args) == 0
    assert json.loads(Path("runs/tiny/result.json").read_text())["pairs"] == 2


def test_the_demo_has_a_plan(capsys):
    assert train.main(["--dry-run"]) == 0
    assert "train_a: 400" in capsys.readouterr().out


def shadow(folder: Path, *packages: str) -> dict[str, str]:
    """Return the environment of a Python in which packages are not installed."""
    for package in packages:
        (folder / package).mkdir()
        lines = f"raise ModuleNotFoundError(name={package!r})"
        (folder / package / "__init__.py").write_text(lines)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (["train"], "PIL", "train"),
        (["train"], "tensorboard", "train"),
        (["train"], "matplotlib", "train"),
        (["adapt", "--data", "x"], "matplotlib", "train"),
        (["translate", "x", "y", "z", "--direction", "a2b"], "PIL", "translate"),
    ],
)
def test_a_missing_package_is_one_message(tmp_path, command, package, extra):
    name, *rest = command
    done = python("-m", f"fastunit.{name}", *rest, env=shadow(tmp_path, package))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{package} is not installed" in done.stderr
    assert f"-e '{ROOT}[{extra}]'" in done.stderr  # from this checkout, in any folder


@pytest.mark.parametrize("name", ["train", "translate", "adapt"])
def test_help_needs_no_package_and_no_pytorch(tmp_path, name):
    needed = ("torch",) if name == "adapt" else ()  # which lists the digits' data sets
    packages = {"torch", "yaml", "PIL", "tqdm", "tensorboard", "matplotlib", "nvidia"} - {*needed}
    done = python("-m", f"fastunit.{name}", "--help", env=shadow(tmp_path, *packages))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m fastunit.{name}")


def test_the_built_in_configurations_are_named(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    assert "demo, emoji, maps, munit, paper, photos" in " ".join(capsys.readouterr().out.split())


def test_the_demo_s_networks_are_not_trained_on_photographs_by_default(command, tmp_path):
    for split in ("trainA", "trainB"):
        (tmp_path / "large" / split).mkdir(parents=True)
        Image.new("RGB", (200, 160)).save(tmp_path / "large" / split / "0.png")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = command("--data", tmp_path / "large", defaults=False)
    assert code == 2 and "160 pixels" in err and "--config photos" in err
    assert sorted(tmp_path.rglob("*")) == before
    quick = ("--max-iter", "1e0", "--set", "image_display_iter=1", "--dry-run")
    for choice in (("--config", "demo"), ("--set", "crop_image_height=48")):
        assert command("--data", tmp_path / "large", *choice, *quick, defaults=False)[0] == 0


def test_small_images_are_trained_on_with_the_demo_s_settings(command, photos, tmp_path):
    code, _, err = command("--data", photos, "--set", "lr=-1", defaults=False)
    assert code == 2 and "lr=-1" in err
    code, out, err = command("--data", photos, "--dry-run", defaults=False)
    assert code == 0 and "expected time" in out, err


def test_the_expected_disk_space_is_enough_and_not_far_too_much(command, tmp_path):
    _, out, _ = command("--dry-run", "--set", "checkpoint.keep_last=1")
    unit, number = {"MiB": 2**20, "GiB": 2**30}, re.search(r"disk space: about (\d+) (\w+)", out)
    expected = int(number[1]) * unit[number[2]]
    command("--output", "run", "--set", "checkpoint.keep_last=1")
    used = sum(path.stat().st_size for path in Path("run").rglob("*") if path.is_file())
    assert used <= expected <= used + 4 * 2**20  # 3 MiB are for the page


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good(command, monkeypatch):
    advance = TrainState.advance

    def poisoned(self, x_a, x_b):
        losses = advance(self, x_a, x_b)
        return losses | {
            "cycle_b": losses["cycle_b"] * (float("nan") if self.iteration >= 4 else 1)
        }

    monkeypatch.setattr(TrainState, "advance", poisoned)
    code, _, err = command("--output", "run", "--max-iter", 9)
    assert code == 1
    assert "cycle_b became nan at iteration 4" in err
    assert "last good checkpoint is run/checkpoints/00000002.pt" in err
    assert checkpoint.iterations(Path("run")) == [2]


def test_dry_run_prints_the_plan_and_writes_nothing(command, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = command("--dry-run", "--set", "gen.dim=8")
    assert code == 0 and sorted(tmp_path.rglob("*")) == before
    plan = yaml.safe_load(out.split("parameters:")[0])
    assert plan["gen"]["dim"] == 8
    unit = TrainState(config.from_dict(plan), torch.device("cpu")).unit
    assert f"discriminator a: {sum(p.numel() for p in unit.dis_a.parameters()):,}" in out
    assert "train_a: 5" in out and "train_b: 3" in out and "test_a: 2" in out
    assert "expected memory" in out and "MiB" in out
    assert "expected time: about" in out and "(4 iterations" in out


def broken(photos: Path) -> None:
    (photos / "trainB" / "1.png").write_bytes(b"no image")


def small(photos: Path) -> None:
    Image.new("RGB", (30, 9)).save(photos / "testA" / "1.png")


@pytest.mark.parametrize(
    ("spoil", "options", "reason"),
    [
        (broken, (), "1.png: not an image"),
        (small, ("--set", "new_size=null"), "1.png: too small: 30x9"),
        (None, ("--set", "input_dim_a=4"), "4 channels are read from TIFF and .npy files alone"),
        (
            None,
            ("--set", "data.range_b=[0,99]"),
            "not of 16 bits or floating, as data.range_b=",
        ),
        (None, ("--set", "crop_image_width=64"), "for a crop of 64x16 (width x height)"),
    ],
)
def test_a_dry_run_refuses_the_data_that_training_refuses(command, photos, spoil, options, reason):
    if spoil:
        spoil(photos)
    found = [command(*options, *more) for more in ((), ("--dry-run",))]
    assert [code for code, _, _ in found] == [2, 2]
    errors = [err[err.index("error:") :] for _, _, err in found]
    assert errors[0] == errors[1] and reason in errors[1]
    assert found[1][1] == "" and not Path("runs").exists()


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("input_dim_b=2", "input_dim_b is 2"), ("new_size=null", "data.builtin=scenes are too small")],
)
def test_a_dry_run_of_the_demo_refuses_too(setting, reason, capsys):
    sizes = ["--set", "crop_image_height=128", "--set", "crop_image_width=128"]
    argv = ["--dry-run", *(sizes if "new_size" in setting else []), "--set", setting]
    assert train.main(argv) == 2
    assert reason in capsys.readouterr().err


def test_without_flips_a_resumed_run_goes_on_as_one(command):
    words = ["--set", "data.flip=false", "--output"]
    assert command(*words, "whole")[0] == 0
    assert command(*words, "parts", "--max-iter", 2)[0] == 0
    assert command("--resume", "parts", "--max-iter", 4, defaults=False)[0] == 0
    whole, parts = (checkpoint.load(checkpoint.path_of(Path(run), 4)) for run in ("whole", "parts"))
    assert whole["config"]["data"]["flip"] is False
    assert all(torch.equal(whole["unit"][key], parts["unit"][key]) for key in whole["unit"])


def test_unpaired_test_sets_are_told(command, photos):
    (photos / "testB" / "0.png").rename(photos / "testB" / "x.png")
    code, out, _ = command("--max-iter", 1)
    assert code == 0 and "no held-out error" in out
    assert "a2b" not in json.loads(Path("runs/tiny/result.json").read_text())


def test_without_test_sets_the_grids_show_training_images(command, photos):
    for folder in ("testA", "testB"):
        for file in (photos / folder).iterdir():
            file.unlink()
        (photos / folder).rmdir()
    assert command("--max-iter", 1)[0] == 0
    assert Path("runs/tiny/samples/latest.png").is_file()


def test_domains_of_different_channels_and_sizes(command):
    code, out, _ = command("--max-iter", 1, "--set", "input_dim_b=1", "--set", "new_size_b=22")
    assert code == 0 and "no held-out error" in out


def test_bad_files_are_refused_before_anything_is_written(command, photos, tmp_path):
    (photos / "trainA" / "empty.jpg").touch()
    (photos / "testB" / "text.png").write_text("not an image")
    code, _, err = command()
    assert code == 2
    assert "empty.jpg: empty: zero bytes" in err and "text.png: not an image" in err
    assert "data.skip_bad=true" in err and not Path("runs").exists()
    code, _, err = command("--set", "data.skip_bad=true", "--max-iter", 1)
    assert code == 0 and "2 of 14 image files" in err


BAD_COMMANDS = [
    (["--set", "gen.dims=3"], ["unknown key 'gen.dims'", "gen.dim"]),
    (["--set", "lr=abc"], ["lr='abc'"]),
    (["--max-iter", "0"], ["max_iter=0"]),
    (["--config", "absent.yaml"], ["absent.yaml"]),
    (
        ["--config", "foto"],
        ["configuration foto: there is no file", "did you mean photos?", "emoji"],
    ),
    (["--data", "nowhere"], ["nowhere", "does not exist"]),
    (["--data", "tiny.yaml"], ["tiny.yaml", "not a folder"]),
    (["--device", "tpu"], ["tpu", "auto, cpu, cuda"]),
    (["--resume", "nothing.pt"], ["nothing.pt"]),
    (["--resume", "photos"], ["photos", "checkpoints"]),
    (["--resume", "tiny.yaml"], ["tiny.yaml", "damaged or unreadable"]),
    (["--output", "photos"], ["photos", "not empty"]),
    (["--output", "tiny.yaml"], ["tiny.yaml", "is a file"]),
    (["--output", "tiny.yaml/x"], ["tiny.yaml/x", "cannot be made"]),
    (["--set", "vgg_w=1"], ["vgg_model_path", "vgg_w=0"]),
    (["--set", "data.builtin=scenes"], ["data.builtin=scenes", "data_root"]),
    (["--set", "input_dim_a=2"], ["input_dim", "2"]),
]


@pytest.mark.parametrize(
    ("args", "words"), BAD_COMMANDS, ids=[" ".join(a) for a, _ in BAD_COMMANDS]
)
def test_bad_commands_are_refused_by_name(command, args, words, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, _, err = command(*args)
    assert code == 2
    for word in words:
        assert word in err
    assert "Traceback" not in err and sorted(tmp_path.rglob("*")) == before
