"""The training command: what a run writes, how it ends, how it goes on, what it refuses."""

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
import yaml

from fastunit import checkpoint, cli, config, train
from fastunit.session import Session

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
        code = cli.guard(lambda: train.main([str(arg) for arg in argv]))
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
    code, _, _ = command("--resume", "--max-iter", 2)
    assert code == 0 and checkpoint.iterations(Path("runs/tiny")) == [2]
    code, _, err = command("--resume", "auto", "--max-iter", 3)
    assert code == 0 and "runs/tiny/checkpoints/00000002.pt" in err
    assert checkpoint.iterations(Path("runs/tiny")) == [2, 3]
    assert not Path("runs/tiny-2").exists()


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
    code, _, err = command("--resume", "run/checkpoints/gen_00000002.pt", "--max-iter", 3)
    assert code == 0 and "gen_00000002.pt at iteration 2" in err
    assert checkpoint.iterations(Path("runs/tiny")) == [3]


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

    shared = ("--config", str(config_file), "--data", str(photos), "--max-iter", "40")
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
    assert 1 <= stopped < 40
    resumed = start("--resume", "cut")
    assert resumed.communicate(timeout=120) and resumed.returncode == 0
    assert whole.communicate(timeout=120) and whole.returncode == 0
    assert_bitwise(weights(tmp_path / "cut", 40), weights(tmp_path / "whole", 40))
