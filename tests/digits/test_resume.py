"""How runs of adaptation end and go on: signals, checkpoints, resume to the bit, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastunit import train
from fastunit.common import files
from fastunit.digits.state import AdaptationState
from fastunit.training import checkpoint
from fastunit.training.run_dir import find_run

# All that draws random numbers or keeps a state: deformation, dropout, noise, averages.
EVERYTHING = ("ema_decay=0.5", "self_label_w=2", "self_label_threshold=0", "rotation=9", "lr=0.01")
LONG = ["--iterations", 7, "--set", "warmup=2"]
LONG += [word for key in EVERYTHING for word in ("--set", key)]


def tensors(value: object, key: str = "") -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint by its path in it."""
    if isinstance(value, torch.Tensor):
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    items = [(k, v) for k, v in items if isinstance(v, (dict, list, torch.Tensor))]
    return {name: x for k, v in items for name, x in tensors(v, f"{key}.{k}").items()}


def assert_same(run: str, other: str) -> None:
    """Compare the last checkpoint, the networks' file and the result of two runs."""
    for path in (str(checkpoint.path_of(Path(), 7)), "checkpoint.pt"):
        mine, theirs = (tensors(files.read(Path(folder, path))) for folder in (run, other))
        assert mine.keys() == theirs.keys() and len(mine) > 20
        assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []
    one, two = (json.loads(Path(folder, "result.json").read_text()) for folder in (run, other))
    for result in (one, two):
        del result["seconds"], result["environment"]
    assert one == two


def records(run: str) -> list[dict]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


@pytest.fixture
def cut(command, monkeypatch):
    """Return a function that has a run in "cut" stopped by a signal in an iteration."""

    def run(number: int, iteration: int, *args: object) -> tuple[int, str, str]:
        advance = AdaptationState.advance

        def interrupted(self):
            if self.iteration == iteration - 1:
                os.kill(os.getpid(), number)
            return advance(self)

        with monkeypatch.context() as patch:
            patch.setattr(AdaptationState, "advance", interrupted)
            return command("--output", "cut", *args)

    return run


@pytest.mark.parametrize(
    ("number", "iteration", "extra"),
    [
        (signal.SIGINT, 4, ()),
        (signal.SIGTERM, 1, ()),
        (signal.SIGTERM, 5, ("--source-only",)),
        (signal.SIGTERM, 3, ("--set", "ema_decay=0", "--set", "holdout=0.3", "--source", "svhn")),
    ],
)
def test_a_signal_saves_and_resume_is_bitwise(number, iteration, extra, cut, command, folder):
    command("--output", "whole", *LONG, *extra)
    code, out, err = cut(number, iteration, *LONG, *extra)
    assert code == 128 + number and "Traceback" not in err
    going_on = f"continue with --data {folder} --resume cut"
    assert out == f"stopped at iteration {iteration}; {going_on}\n"
    assert checkpoint.iterations(Path("cut")) == [iteration]
    assert not Path("cut/result.json").exists() and not Path("cut/checkpoint.pt").exists()
    # The checkpoint's own configuration and data sets go on.
    code, _, err = command("--resume", "cut", "--device", "cpu", small=False)
    assert code == 0 and f"at iteration {iteration}" in err
    assert_same("cut", "whole")
    assert records("cut") == records("whole")


def test_a_killed_run_goes_on_from_its_last_checkpoint(command):
    """As after SIGKILL: later records and no result are there, a checkpoint is damaged."""
    often = (*LONG, "--set", "snapshot_save_iter=2", "--set", "checkpoint.keep_last=9")
    command("--output", "whole", *often)
    command("--output", "run", *often)
    assert checkpoint.iterations(Path("run")) == [2, 4, 6, 7]
    for name in ("result.json", "checkpoint.pt", "checkpoints/00000007.pt"):
        Path("run", name).unlink()
    damaged = checkpoint.path_of(Path("run"), 6)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    code, _, err = command("--resume", "run", small=False)
    assert code == 0 and "00000006.pt is damaged" in err and "00000004.pt at iteration 4" in err
    assert_same("run", "whole")
    assert records("run") == records("whole")


def test_a_finished_run_is_measured_again_and_can_be_extended(command):
    command("--output", "run", *LONG)
    before = json.loads(Path("run/result.json").read_text())
    Path("run/result.json").unlink()
    assert command("--resume", "run", small=False)[0] == 0
    again = json.loads(Path("run/result.json").read_text())
    assert again.pop("seconds") > before.pop("seconds")
    assert again["target_accuracy"] == before["target_accuracy"]
    assert command("--resume", "run", "--output", "branch", small=False)[0] == 0
    branch = json.loads(Path("branch/result.json").read_text())
    assert branch["target_accuracy"] == before["target_accuracy"]
    code, _, err = command("--resume", "run", "--iterations", 8, "--set", "beta1=0.3", small=False)
    assert code == 0 and "settings: iterations 7 -> 8, beta1 0.5 -> 0.3" in err
    state = checkpoint.load(checkpoint.path_of(Path("run"), 8))
    assert state["optimizers"][1]["param_groups"][0]["betas"] == (0.3, 0.999)


def test_old_checkpoints_are_pruned(command):
    command("--output", "run", *LONG, "--set", "snapshot_save_iter=1")
    assert checkpoint.iterations(Path("run")) == [5, 6, 7]


def test_resume_auto_takes_the_newest_run_of_its_data_sets(command):
    code, _, err = command("--resume")
    assert code == 0 and "starting a new run" in err
    code, _, err = command("--resume", "auto", "--iterations", 4)
    assert code == 0 and "runs/adapt-mnist-usps/checkpoints/00000003.pt" in err
    assert command("--resume", "--target", "svhn")[0] == 0
    assert checkpoint.iterations(Path("runs/adapt-mnist-svhn")) == [3]
    assert find_run(None, "auto", None).state is None  # no run for fastunit.train


REFUSED = {
    "another seed": (("--seed", 3), "was trained with seed 0, not 3; continue with the same"),
    "another geometry": (("--set", "geometry=pad"), "was trained with geometry box, not pad"),
    "another holdout": (("--set", "holdout=0.5"), "was trained with holdout 0.0, not 0.5"),
    "another source": (("--source", "svhn"), "was trained with source mnist, not svhn"),
    "another target": (("--target", "svhn"), "was trained with target usps, not svhn"),
    "another method": (("--source-only",), "was trained with method adapted, not source only"),
    "other networks": (("--set", "dis_ch=3"), "does not fit"),
    "an average, unknown": (("--set", "ema_dec=0.5"), "did you mean ema_decay?"),
    "an earlier checkpoint": (
        ("--resume", "run/checkpoints/00000002.pt"),
        "run has later checkpoints than run/checkpoints/00000002.pt",
    ),
    "nothing": (("--resume", "data"), "nothing to resume: data has no checkpoints/XXXXXXXX.pt"),
    "the networks alone": (("--resume", "run/checkpoint.pt"), "is not a checkpoint of fastunit"),
    "a translation's": (("--resume", "00000009.pt"), "in 00000009.pt cannot be used: unknown key"),
    "a translation's, with --config": (
        ("--resume", "00000009.pt", "--config", "digits"),
        "in 00000009.pt cannot be used: unknown key",
    ),
    "the release's": (("--resume", "gen_00000001.pt"), "is of the 2018 release, which has no dig"),
    "a used folder": (("--output", "data"), "output data is not empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_on_is_refused_in_one_message(case, command):
    command("--output", "run", "--set", "snapshot_save_iter=2", "--set", "warmup=1")
    files.save({"format": 1, "iteration": 9, "config": {"gen": {"dim": 4}}}, Path("00000009.pt"))
    files.save({}, Path("gen_00000001.pt"))
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    extra, words = REFUSED[case]
    code, out, err = command("--resume", "run", "--device", "cpu", *extra, small=False)
    assert code == 2 and words in err and "Traceback" not in err and not out
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_other_data_are_refused(command, folder, save_digits):
    command("--output", "run")
    with_fewer = torch.zeros(9, 16, 16, dtype=torch.uint8).numpy()
    save_digits(folder, "usps", "train", images=with_fewer, labels=with_fewer[:, 0, 0])
    code, _, err = command("--resume", "run", "--iterations", 5, small=False)
    assert code == 2 and "00000003.pt does not fit this run: 9 images instead of 14" in err


def test_an_average_may_start_later(command):
    command("--output", "run", "--set", "ema_decay=0")
    more = ("--iterations", 5, "--set", "ema_decay=0.9")
    code, _, err = command("--resume", "run", *more, small=False)
    assert code == 0 and "has no averaged classifier: the average starts here" in err
    assert checkpoint.load(checkpoint.path_of(Path("run"), 5))["ema_updates"] == 2


def test_a_dry_run_says_what_it_would_continue(command):
    command("--output", "run")
    code, out, _ = command("--resume", "run", "--dry-run", "--device", "cpu", small=False)
    assert code == 0 and "into run/ (continues run/checkpoints/00000003.pt)" in out


def test_training_of_images_refuses_a_run_of_digits(command, capsys):
    command("--output", "run")
    assert train.main(["--resume", "run"]) == 2
    assert "the configuration in run/checkpoints/00000003.pt cannot be" in capsys.readouterr().err


def test_a_signal_in_another_process(folder, command):
    argv = [sys.executable, "-m", "fastunit.adapt", "--data", str(folder), "--device", "cpu"]
    argv += ["--iterations", "100000", "--output", "run", "--set", "log_every=1"]
    argv += ["--set", "gen_ch=2", "--set", "dis_ch=2", "--set", "batch_size=4"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        metrics = Path("run/metrics.jsonl")
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()  # if it has not ended, else `with` would wait for ever
    assert process.returncode == 130, err
    assert "Traceback" not in err and "--resume run" in out
    left = {path.name for path in Path("run").iterdir()}
    known = {".lock", "checkpoints", "config.yaml", "environment.json"}
    assert left == known | {"metrics.jsonl", "tensorboard"}
    (stopped,) = checkpoint.iterations(Path("run"))
    going_on = ("--resume", "run", "--iterations", stopped + 1, "--set", "warmup=0")
    assert command(*going_on, small=False)[0] == 0
