"""How runs end and go on: signals, checkpoints, resume to the bit, folders held by one process."""

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

from fastunit import config
from fastunit.common.errors import DataError
from fastunit.data.pipeline import DomainLoader
from fastunit.training import checkpoint
from fastunit.training.state import TrainState


def weights(run_dir: Path, iteration: int) -> dict[str, torch.Tensor]:
    state = checkpoint.load(checkpoint.path_of(run_dir, iteration))
    return state["unit"] | {f"ema.{k}": v for k, v in (state["ema"] or {}).items()}


def assert_bitwise(mine: dict, other: dict) -> None:
    assert mine.keys() == other.keys()
    assert [k for k in mine if not torch.equal(mine[k], other[k])] == []


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


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
    advance = TrainState.advance

    def interrupted(self, x_a, x_b):
        if self.iteration == 2:
            os.kill(os.getpid(), number)
        return advance(self, x_a, x_b)

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "advance", interrupted)
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


def test_without_dali_it_is_said_once_and_resume_is_bitwise(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    code, _, err = command("--output", "whole", "--max-iter", 4)
    assert code == 0 and err.count("images are read by Pillow") == 1
    command("--output", "cut", "--max-iter", 2)
    code, _, _ = command("--resume", "cut", "--max-iter", 4, defaults=False)
    assert code == 0
    assert_bitwise(weights(Path("cut"), 4), weights(Path("whole"), 4))


def test_resume_auto_takes_the_last_run_and_starts_one_when_there_is_none(command):
    code, _, err = command("--resume", "--max-iter", 2)
    assert code == 0 and "starting a new run" in err
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


def test_grids_of_an_abandoned_future_are_deleted(command):
    command("--output", "run", "--max-iter", 4)
    for path in Path("run/checkpoints").glob("*00000004.pt"):
        path.unlink()
    code, _, _ = command("--resume", "run", "--max-iter", 3, defaults=False)
    names = sorted(path.name for path in Path("run/samples").iterdir())
    assert code == 0 and names == ["00000000.png", "00000002.png", "latest.png"]


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
    saved = torch.load("run/checkpoints/00000002.pt", weights_only=True)["spent"]["seconds"]
    assert 0 < saved < json.loads(Path("run/result.json").read_text())["seconds"]
    command("--resume", "run", "--max-iter", 4, defaults=False)
    second = json.loads(Path("run/result.json").read_text())
    assert second["seconds"] > saved
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
    loaders = TrainState.loaders

    def slow(self, domains):
        os.kill(os.getpid(), signal.SIGTERM)
        return loaders(self, domains)

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "loaders", slow)
        assert command("--output", "run")[0] == 143
    assert checkpoint.iterations(Path("run")) == [0]
    assert command("--resume", "run", defaults=False)[0] == 0


def test_two_trainings_do_not_share_a_folder(command):
    command("--output", "run", "--max-iter", 1)
    with open("run/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = command("--resume", "run", "--max-iter", 2, defaults=False)
    assert code == 2 and "another process is training in run" in err


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the command in a process of its own; none outlives the test."""
    started = []

    def run(*args: str) -> subprocess.Popen:
        argv = [sys.executable, "-m", "fastunit.train", "--device", "cpu", *args]
        started.append(subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_a_run_killed_in_another_process_resumes_bitwise(start, config_file, photos, tmp_path):
    """The real thing: SIGTERM at an arbitrary moment, no test code inside the process."""
    shared = ["--config", str(config_file), "--data", str(photos), "--max-iter", "400"]
    for key in ("image_save_iter", "image_display_iter", "snapshot_save_iter"):
        shared += ["--set", f"{key}=1000"]  # nothing but steps, to be quick
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
    for process in (start("--resume", "cut"), whole):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert_bitwise(weights(tmp_path / "cut", 400), weights(tmp_path / "whole", 400))
