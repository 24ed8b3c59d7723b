"""Disks that refuse writes, folders that others use, and what killed processes leave."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from fastunit.common import files
from fastunit.report import gallery
from fastunit.report.metrics import Metrics, read_metrics
from fastunit.training import checkpoint, loop, run_dir
from tests.support.doubles import raising

FULL = OSError(errno.ENOSPC, "No space left on device")


def full_for(monkeypatch, name: str, times: int = 10**9) -> list[Path]:
    """Let `files.atomic` fail for paths that contain `name`, as often; returns those paths."""
    atomic, seen = files.atomic, []

    def refuse(path: Path):
        if name in str(path) and len(seen) < times:
            seen.append(path)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return atomic(path)

    monkeypatch.setattr(files, "atomic", refuse)
    return seen


def test_a_full_disk_names_path_need_and_last_good_checkpoint(command, monkeypatch):
    full_for(monkeypatch, "/00000004.pt")
    code, _, err = command("--output", "run", "--max-iter", 4)
    assert code == 3 and "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert "cannot write run/checkpoints/00000004.pt: No space left on device" in last
    assert "it needs about" in last and "MB are free there" in last
    assert "the last good checkpoint is run/checkpoints/00000002.pt" in last
    monkeypatch.undo()


def test_retry_goes_on_and_tries_again(command, monkeypatch):
    seen = full_for(monkeypatch, "/00000002.pt")
    monkeypatch.setattr(loop, "RETRY", 0.0)
    retry = ("--set", "checkpoint.on_save_error=retry")
    code, _, err = command("--output", "run", "--max-iter", 4, *retry)
    assert code == 0 and "trying again" in err and seen
    assert checkpoint.iterations(Path("run"))[-1] == 4


def test_samples_that_cannot_be_written_are_only_warned_of(command, monkeypatch):
    full_for(monkeypatch, "/samples/")
    code, _, err = command("--output", "run", "--max-iter", 2)
    assert code == 0 and "cannot write samples" in err
    assert checkpoint.iterations(Path("run")) == [2]


def test_metrics_are_kept_while_the_disk_is_full(tmp_path, monkeypatch, caplog):
    with Metrics(tmp_path) as metrics:
        metrics.write(1, {"x": 1.0})
        file = metrics._file

        class Short:
            """Takes ten bytes, as a disk that is nearly full."""

            fileno = file.fileno

            def write(self, data: bytes) -> int:
                return file.write(data[:10])

        metrics._file = Short()
        metrics.write(2, {"x": 2.0})
        metrics.write(3, {"x": 3.0})
        assert [record["iteration"] for record in read_metrics(tmp_path)] == [1]
        assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
        metrics._file = file
        metrics.write(4, {"x": 4.0})
    assert [record["iteration"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert caplog.text.count("No space left on device; training goes on") == 1


def test_tensorboard_that_fails_ends_alone(tmp_path, monkeypatch, caplog):
    with Metrics(tmp_path) as metrics:
        monkeypatch.setattr(metrics._board, "add_scalar", raising(FULL))
        for iteration in (1, 2):
            metrics.write(iteration, {"x": 1.0})
    assert len(read_metrics(tmp_path)) == 2 and caplog.text.count("TensorBoard, which ends") == 1


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"iteration": "x"}', "[" * 10**5])
def test_lines_that_are_no_records_end_the_metrics(tmp_path, line):
    good = json.dumps({"iteration": 1})
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    assert len(read_metrics(tmp_path)) == 1


def test_other_files_among_the_samples_are_left_alone(command):
    command("--output", "run", "--max-iter", 2)
    (Path("run/samples") / "00000000 (copy).png").write_bytes(b"x")
    (Path("run/samples") / "99999999x.png").write_bytes(b"x")
    code, _, _ = command("--resume", "run", "--max-iter", 4, defaults=False)
    assert code == 0 and len(gallery.grids(Path("run"))) == 3
    assert (Path("run/samples") / "00000000 (copy).png").exists()


def test_a_grid_that_a_kill_has_prevented_is_made_on_resume(command):
    command("--output", "run", "--max-iter", 2)
    Path("run/samples/00000002.png").unlink()
    for name in ("run/.fastunit-999999999-0.tmp", "run/checkpoints/gen_00000007.pt"):
        Path(name).touch()
    code, _, _ = command("--resume", "run", "--max-iter", 3, defaults=False)
    assert code == 0 and Path("run/samples/00000002.png").exists()
    left = {path.name for path in Path("run").rglob("*")}
    assert "gen_00000007.pt" not in left and not any(".tmp" in name for name in left)


def test_a_run_killed_while_its_first_file_was_written_starts_anew(command):
    Path("run").mkdir()
    for name in (".lock", ".fastunit-999999999-0.tmp.yaml"):
        (Path("run") / name).touch()
    code, _, _ = command("--output", "run", "--max-iter", 1)
    assert code == 0 and not list(Path("run").glob("*.tmp*"))
    Path("other").mkdir()
    (Path("other") / f".fastunit-{os.getpid()}-0.tmp.yaml").touch()  # somebody writes it now
    code, _, err = command("--output", "other", "--max-iter", 1)
    assert code == 2 and "output other is not empty" in err


def test_a_run_that_was_ended_before_its_first_checkpoint_starts_again(
    command, tmp_path, monkeypatch
):
    command("--output", "run", "--max-iter", 2)
    for path in Path("run/checkpoints").iterdir():
        path.unlink()
    code, _, err = command("--output", "run")
    assert code == 2 and "--resume run" in err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the data are found from there too
    code, _, err = command("--resume", tmp_path / "run", defaults=False)
    assert code == 0 and checkpoint.iterations(tmp_path / "run") == [2]
    code, _, err = command("--resume", tmp_path / "run", "--max-iter", 1, defaults=False)
    assert code == 2 and "max_iter=1 is below iteration 2" in err
    code, _, err = command("--resume", tmp_path / "run", defaults=False)
    assert code == 0 and "has reached max_iter=2: nothing is trained" in err


def test_a_folder_that_another_run_has_used_meanwhile_is_not_taken_over(command, monkeypatch):
    find = run_dir.find_run

    def late(*args):
        run = find(*args)
        monkeypatch.setattr(run_dir, "find_run", find)
        command("--output", "run", "--max-iter", 2)  # begins later and ends earlier
        return run

    monkeypatch.setattr(run_dir, "find_run", late)
    code, _, err = command("--output", "run", "--max-iter", 4)
    assert code == 2 and "another process has trained in run meanwhile" in err
    assert checkpoint.iterations(Path("run")) == [2]


def test_translation_finds_checkpoints_that_training_replaces(command, monkeypatch):
    command("--output", "run", "--max-iter", 2)
    load, old = checkpoint.load, checkpoint.path_of(Path("run"), 2)

    def replaced(path: Path):
        if path == old and old.exists():
            old.rename(checkpoint.path_of(Path("run"), 3))
        return load(path)

    monkeypatch.setattr(checkpoint, "load", replaced)
    state = checkpoint.load_newest(Path("run"))
    assert state is not None and state["iteration"] == 2


def test_checkpoints_are_also_written_by_time(command):
    minutes = ("--set", "checkpoint.minutes=1e-9", "--set", "snapshot_save_iter=1000")
    code, _, _ = command("--output", "run", "--max-iter", 3, *minutes)
    assert code == 0 and checkpoint.iterations(Path("run")) == [1, 2, 3]
