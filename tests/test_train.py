"""The training command: what a run writes, how it ends, how it goes on, what it refuses."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from fastunit import checkpoint, config, datasets, train
from fastunit.data import DomainLoader
from fastunit.errors import DataError
from fastunit.session import Session

pytestmark = pytest.mark.usefixtures("restored_logging")
EVERY = {"log_iter": 1, "image_save_iter": 2, "image_display_iter": 1, "snapshot_save_iter": 2}


@pytest.fixture
def config_file(tiny, tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny | EVERY))
    return path


@pytest.fixture
def command(config_file, photos, tmp_path, monkeypatch, capsys):
    """Return a function that runs the command in tmp_path: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object, defaults: bool = True) -> tuple[int, str, str]:
        argv = [*(["--config", config_file, "--data", photos] if defaults else []), *args]
        code = train.main([str(arg) for arg in argv])
        return code, *capsys.readouterr()

    return run


def weights(run_dir: Path, iteration: int) -> dict[str, torch.Tensor]:
    state = checkpoint.load(checkpoint.path_of(run_dir, iteration))
    return state["unit"] | {f"ema.{k}": v for k, v in (state["ema"] or {}).items()}


def assert_bitwise(mine: dict, other: dict) -> None:
    assert mine.keys() == other.keys()
    assert [k for k in mine if not torch.equal(mine[k], other[k])] == []


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_everything(command, tmp_path):
    code, out, _ = command("--seed", 3)
    run_dir = Path("runs/tiny")
    assert code == 0
    result = json.loads((run_dir / "result.json").read_text())
    for direction, label in (("a2b", "a->b"), ("b2a", "b->a")):
        error = result[direction]
        expected = f"{label}: {error['paired_l1']:.4f} translated, {error['identity_l1']:.4f}"
        assert any(expected in line for line in out.splitlines()[-2:])
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


def test_the_seed_decides_every_bit(command):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        command("--output", name, "--seed", seed, "--max-iter", 2)
    assert_bitwise(weights(Path("one"), 2), weights(Path("same"), 2))
    other = weights(Path("other"), 2)
    assert not torch.equal(
        weights(Path("one"), 2)["gen_a.enc.model.0.conv.weight"],
        other["gen_a.enc.model.0.conv.weight"],
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_is_bitwise(command, monkeypatch, number):
    command("--output", "whole", "--max-iter", 7, "--set", "ema_decay=0.9")
    advance = Session.advance

    def interrupted(self, x_a, x_b):
        if self.iteration == 2:
            os.kill(os.getpid(), number)
        return advance(self, x_a, x_b)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "advance", interrupted)
        code, out, err = command("--output", "cut", "--max-iter", 7, "--set", "ema_decay=0.9")
    assert code == 128 + number
    assert "stopped at iteration 3" in out and "Traceback" not in err
    assert checkpoint.iterations(Path("cut"))[-1] == 3
    # No --config: the checkpoint's own configuration goes on.
    code, _, err = command("--resume", "cut", defaults=False)
    assert code == 0 and "at iteration 3" in err
    assert_bitwise(weights(Path("cut"), 7), weights(Path("whole"), 7))
    logged, whole = records(Path("cut")), records(Path("whole"))
    assert [r["iteration"] for r in logged] == [1, 2, 3, 4, 5, 6, 7]
    assert [r["generator_total"] for r in logged] == [r["generator_total"] for r in whole]


def test_resume_auto_takes_the_last_run_and_starts_one_when_there_is_none(command):
    code, _, err = command("--resume", "--max-iter", 2)
    assert code == 0 and "starting afresh" in err
    assert checkpoint.iterations(Path("runs/tiny")) == [2]
    code, _, err = command("--resume", "auto", "--max-iter", 3)
    assert code == 0 and "runs/tiny/checkpoints/00000002.pt" in err
    assert checkpoint.iterations(Path("runs/tiny")) == [2, 3]
    assert not Path("runs/tiny-2").exists()
    # Without --config: the newest of all runs, with its own configuration.
    code, _, err = command("--resume", "--max-iter", 4, defaults=False)
    assert code == 0 and "runs/tiny/checkpoints/00000003.pt" in err


def test_resume_passes_over_a_damaged_checkpoint(command):
    command("--output", "run", "--max-iter", 4)
    newest = checkpoint.path_of(Path("run"), 4)
    newest.write_bytes(newest.read_bytes()[:-100])
    code, _, err = command("--output", "run", "--resume", "auto", "--max-iter", 4)
    assert code == 0
    assert "00000004.pt is damaged" in err and "continuing run/checkpoints/00000002.pt" in err
    checkpoint.load(newest)


def test_resume_branches_into_another_folder(command):
    command("--output", "run", "--max-iter", 4)
    before = checkpoint.path_of(Path("run"), 2).read_bytes()
    code, _, _ = command(
        "--resume", "run/checkpoints/00000002.pt", "--output", "branch", "--max-iter", 3
    )
    assert code == 0 and checkpoint.iterations(Path("branch")) == [3]
    assert checkpoint.path_of(Path("run"), 2).read_bytes() == before
    assert checkpoint.iterations(Path("run")) == [2, 4]


def test_resume_from_the_releases_files(command):
    command("--output", "run", "--max-iter", 2)
    release = "run/checkpoints/gen_00000002.pt"
    code, _, err = command("--resume", release, "--max-iter", 3)
    assert code == 0 and "gen_00000002.pt at iteration 2" in err
    assert checkpoint.iterations(Path("runs/tiny")) == [3]
    # Without --config: that of the run the file lies in.
    code, _, _ = command("--resume", release, "--output", "x", "--max-iter", 3, defaults=False)
    assert code == 0 and config.load("x/config.yaml").gen.dim == 4


def test_an_earlier_checkpoint_is_not_continued_in_place(command):
    command("--output", "run", "--max-iter", 4)
    before = sorted(Path("run").rglob("*"))
    code, _, err = command("--resume", "run/checkpoints/00000002.pt", "--max-iter", 6)
    assert code == 2 and "later checkpoints" in err and "iteration 4" in err and "--output" in err
    assert sorted(Path("run").rglob("*")) == before


def test_changed_settings_win_on_resume(command):
    command("--output", "run", "--max-iter", 2)
    settings = ("lr=0.01", "beta1=0.3", "step_size=2", "gamma=0.1")
    args = [word for text in settings for word in ("--set", text)]
    code, _, err = command("--resume", "run", "--max-iter", 3, *args, defaults=False)
    assert code == 0 and "lr 0.0001 -> 0.01" in err and "gamma 0.5 -> 0.1" in err
    assert records(Path("run"))[-1]["learning_rate"] == pytest.approx(0.01 * 0.1)
    for optimizer in ("gen_opt", "dis_opt"):
        state = checkpoint.load(checkpoint.path_of(Path("run"), 3))["step"][optimizer]
        assert state["param_groups"][0]["betas"] == (0.3, 0.999)
    code, _, _ = command(
        "--resume", "run", "--max-iter", 4, "--set", "lr_policy=constant", defaults=False
    )
    assert code == 0 and records(Path("run"))[-1]["learning_rate"] == 0.01


def test_other_files_on_resume_are_told(command, photos):
    command("--output", "run", "--max-iter", 1)
    (photos / "trainB" / "2.png").unlink()
    code, _, err = command("--resume", "run", "--max-iter", 2, defaults=False)
    assert code == 0 and "domain b has other files" in err and "domain a" not in err


def test_time_and_images_of_all_parts_are_counted(command):
    command("--output", "run", "--max-iter", 2)
    first = json.loads(Path("run/result.json").read_text())
    command("--resume", "run", "--max-iter", 4, defaults=False)
    second = json.loads(Path("run/result.json").read_text())
    assert second["seconds"] > first["seconds"]
    command("--resume", "run", defaults=False)
    third = json.loads(Path("run/result.json").read_text())
    assert third["images_per_s"] == second["images_per_s"] > 0


def test_a_photo_that_vanishes_saves_first(command, monkeypatch):
    following = DomainLoader.__next__

    def vanishing(self):
        if self.position == 6:
            raise DataError("lost.png has vanished")
        return following(self)

    monkeypatch.setattr(DomainLoader, "__next__", vanishing)
    code, _, err = command("--output", "run", "--max-iter", 9, "--set", "snapshot_save_iter=100")
    assert code == 2 and "lost.png" in err
    assert checkpoint.iterations(Path("run")) == [3]


def test_a_signal_before_the_first_iteration_can_be_resumed(command, monkeypatch):
    loaders = Session.loaders

    def slow(self, domains):
        os.kill(os.getpid(), signal.SIGTERM)
        return loaders(self, domains)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "loaders", slow)
        assert command("--output", "run")[0] == 143
    assert checkpoint.iterations(Path("run")) == [0]
    assert command("--resume", "run", defaults=False)[0] == 0


def test_two_trainings_do_not_share_a_folder(command):
    command("--output", "run", "--max-iter", 1)
    with open("run/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = command("--resume", "run", "--max-iter", 2, defaults=False)
    assert code == 2 and "another process is training in run" in err


def test_the_demo_domains_train(tmp_path, monkeypatch, config_file):
    drawn = datasets.demo_root
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "demo_root", lambda: drawn(4, 2))
    args = ["--config", str(config_file), "--set", "data.builtin=scenes", "--max-iter", "1"]
    assert train.main(args) == 0
    assert json.loads(Path("runs/tiny/result.json").read_text())["pairs"] == 2


def test_the_demo_has_a_plan(capsys):
    assert train.main(["--dry-run"]) == 0
    assert "train_a: 400" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "package"),
    [("train", "PIL"), ("train", "tensorboard"), ("train", "matplotlib"), ("translate", "tqdm")],
)
def test_a_missing_package_is_one_message(tmp_path, command, package):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise ModuleNotFoundError(name={package!r})")
    done = subprocess.run(
        [sys.executable, "-m", f"fastunit.{command}", "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{package} is not installed" in done.stderr and "fastunit[train]" in done.stderr


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good(command, monkeypatch):
    advance = Session.advance

    def poisoned(self, x_a, x_b):
        losses = advance(self, x_a, x_b)
        return losses | {
            "cycle_b": losses["cycle_b"] * (float("nan") if self.iteration >= 4 else 1)
        }

    monkeypatch.setattr(Session, "advance", poisoned)
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
    unit = Session(config.from_dict(plan), torch.device("cpu")).unit
    assert f"discriminator a: {sum(p.numel() for p in unit.dis_a.parameters()):,}" in out
    assert "train_a: 5" in out and "train_b: 3" in out and "test_a: 2" in out
    assert "expected memory" in out and "MiB" in out


def test_unpaired_test_sets_are_told(command, photos):
    (photos / "testB" / "0.png").rename(photos / "testB" / "x.png")
    code, out, _ = command("--max-iter", 1)
    assert code == 0 and "no held-out paired error" in out
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
    assert code == 0 and "no held-out paired error" in out


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


def test_a_run_killed_in_another_process_resumes_bitwise(config_file, photos, tmp_path):
    """The real thing: SIGTERM at an arbitrary moment, no test code inside the process."""

    def start(*args: str) -> subprocess.Popen:
        argv = [sys.executable, "-m", "fastunit.train", "--device", "cpu", *args]
        return subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    shared = ("--config", str(config_file), "--data", str(photos), "--max-iter", "400")
    whole, cut = start(*shared, "--output", "whole"), start(*shared, "--output", "cut")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size > 2000):
        assert time.monotonic() < deadline and cut.poll() is None
        time.sleep(0.01)
    cut.send_signal(signal.SIGTERM)
    _, err = cut.communicate(timeout=120)
    assert cut.returncode == 143, err
    stopped = checkpoint.iterations(tmp_path / "cut")[-1]
    assert 1 <= stopped < 400
    resumed = start("--resume", "cut")
    assert resumed.communicate(timeout=120) and resumed.returncode == 0
    assert whole.communicate(timeout=120) and whole.returncode == 0
    assert_bitwise(weights(tmp_path / "cut", 400), weights(tmp_path / "whole", 400))
