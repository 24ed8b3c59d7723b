"""Checkpoints are whole or absent, keep what they should, and give everything back."""

from __future__ import annotations

import errno
import os
import pickle

import pytest
import torch

from fastunit.common import files
from fastunit.common.errors import CheckpointError, StorageError, TrainingDiverged
from fastunit.config import from_dict, to_dict
from fastunit.models.unit import UNIT
from fastunit.training import checkpoint
from fastunit.training.state import TrainState
from tests.support.doubles import raising


@pytest.fixture
def session(tiny) -> TrainState:
    return TrainState(from_dict(tiny | {"ema_decay": 0.5}), torch.device("cpu"))


def train(session: TrainState, steps: int) -> None:
    for _ in range(steps):
        session.advance(torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 3, 16, 16) * 2 - 1)


def damage(path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "flipped":
        middle = len(data) // 2  # more bytes than the padding between the archive's records
        data[middle : middle + 128] = bytes(b ^ 0xFF for b in data[middle : middle + 128])
    elif how == "empty":
        data = bytearray()
    path.write_bytes(data)


def equal(mine, other) -> bool:
    if isinstance(mine, torch.Tensor):
        return torch.equal(mine, other)
    if isinstance(mine, dict):
        return mine.keys() == other.keys() and all(equal(mine[k], other[k]) for k in mine)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(other) and all(map(equal, mine, other))
    return mine == other


def test_a_restored_session_continues_bitwise(session, tmp_path):
    train(session, 3)
    path = session.save(tmp_path)
    train(session, 2)
    again = TrainState(session.config, torch.device("cpu"))
    again.restore(checkpoint.load(path), str(path))
    train(again, 2)
    assert again.iteration == 5
    assert equal(again.state(), session.state())


def test_checkpoints_hold_plain_values_and_tensors_only(session, tmp_path):
    train(session, 1)
    state = checkpoint.load(session.save(tmp_path))
    assert {"unit", "step", "ema", "random", "positions", "config", "iteration"} <= state.keys()
    assert state["positions"] == {"a": 2, "b": 2}
    assert from_dict(state["config"]) == session.config


def test_the_newest_and_every_mth_are_kept(session, tmp_path, tiny):
    keep = {"checkpoint": {"keep_last": 2, "keep_every": 3}, "snapshot_save_iter": 10}
    for iteration in range(10, 100, 10):
        checkpoint.save(tmp_path, session.state() | {"iteration": iteration}, session.unit)
        checkpoint.prune(tmp_path, from_dict(tiny | keep), iteration)
    assert checkpoint.iterations(tmp_path) == [30, 60, 80, 90]
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {f"{kind}{n:08d}.pt" for n in (30, 60, 80, 90) for kind in ("", "gen_", "dis_")}


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_falls_back_and_says_so(session, tmp_path, caplog, how):
    first = session.save(tmp_path)
    train(session, 1)
    damage(session.save(tmp_path), how)
    state = checkpoint.load_newest(tmp_path)
    assert state["iteration"] == 0
    assert "00000001.pt" in caplog.text and "the previous one" in caplog.text
    damage(first, how)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        checkpoint.load_newest(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    files.save({"value": 1}, path)

    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, "no space left on device")))
    with pytest.raises(StorageError, match=r"x\.pt: no space left .* needs about 0\.0 MB, and \d"):
        files.save({"value": 2}, path)
    assert files.read(path) == {"value": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_weights_that_are_not_finite_are_never_saved(session, tmp_path):
    session.save(tmp_path)
    train(session, 1)
    with torch.no_grad():
        session.unit.gen_b.dec.model[-1].conv.bias[0] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"gen_b.dec.model.*conv.bias.*iteration 1"):
        session.save(tmp_path)
    assert checkpoint.iterations(tmp_path) == [0]


def test_files_that_would_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        files.read(path)
    torch.save(Evil(), path)
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        files.read(path)
    assert not (tmp_path / "pwned").exists()


def test_misfits_are_named(session, tmp_path, tiny):
    path = session.save(tmp_path)
    wider = TrainState(from_dict(tiny | {"gen": tiny["gen"] | {"dim": 8}}), torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"gen_a\.enc\.model\.0\.conv\.weight is of shape"):
        wider.restore(checkpoint.load(path), str(path))
    state = checkpoint.load(path)
    files.save(state | {"format": 99}, path)
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(path)
    files.save({"something": 1}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of fastunit"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match=r"no checkpoint .*absent\.pt"):
        checkpoint.load(tmp_path / "absent.pt")


def test_the_release_files_continue_a_session(session, tmp_path, tiny):
    train(session, 2)
    session.save(tmp_path)
    folder = tmp_path / "checkpoints"
    files.save(
        {"gen": session.step.gen_opt.state_dict(), "dis": session.step.dis_opt.state_dict()},
        folder / "optimizer.pt",
    )
    other = TrainState(session.config, torch.device("cpu"))
    other.restore_release(folder / "gen_00000002.pt")
    assert other.iteration == 2
    assert equal(other.unit.state_dict(), session.unit.state_dict())
    for part in ("gen_opt", "dis_opt"):
        assert equal(other.step.state_dict()[part], session.step.state_dict()[part])
    assert other.step.gen_scheduler.last_epoch == session.step.gen_scheduler.last_epoch == 2


def test_release_files_without_their_partner_are_named(session, tmp_path):
    session.save(tmp_path)
    folder = tmp_path / "checkpoints"
    (folder / "dis_00000000.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint .*dis_00000000\.pt"):
        session.restore_release(folder / "gen_00000000.pt")
    with pytest.raises(CheckpointError, match="neither a checkpoint of fastunit nor named like"):
        session.restore_release(folder / "00000000.pt")


def test_generators_for_translation_are_the_averaged_ones(session, tmp_path):
    train(session, 2)
    path = session.save(tmp_path)
    pair, settings = checkpoint.load_generators(path)
    assert settings == session.config and not pair.training
    assert equal(pair.state_dict(), session.generator_pair.state_dict())
    assert not equal(pair.gen_a.state_dict(), session.unit.gen_a.state_dict())
    raw, _ = checkpoint.load_generators(path.with_name("gen_00000002.pt"), session.config)
    assert equal(raw.gen_a.state_dict(), session.unit.gen_a.state_dict())
    with pytest.raises(CheckpointError, match="--config"):
        checkpoint.load_generators(path.with_name("gen_00000002.pt"))
    with pytest.raises(CheckpointError, match="holds dis networks"):
        checkpoint.load_generators(path.with_name("dis_00000002.pt"), session.config)


def test_a_stored_configuration_that_no_longer_fits_is_named(session, tmp_path):
    path = session.save(tmp_path)
    state = checkpoint.load(path)
    files.save(state | {"config": to_dict(session.config) | {"novel": 1}}, path)
    with pytest.raises(CheckpointError, match="unknown key 'novel'"):
        checkpoint.load_generators(path)


def test_average_follows_its_ramp(session):
    start = {k: v.clone() for k, v in session.unit.gen_a.state_dict().items()}
    train(session, 1)
    first = {k: v.clone() for k, v in session.unit.gen_a.state_dict().items()}
    train(session, 1)
    second = session.unit.gen_a.state_dict()
    key = "enc.model.0.conv.weight"
    assert not torch.equal(start[key], first[key])
    expected = 2 / 11 * (0.1 * start[key] + 0.9 * first[key]) + 9 / 11 * second[key]
    torch.testing.assert_close(session.generator_pair.gen_a.state_dict()[key], expected)


def test_sharing_survives_averaging_and_loading(session, tmp_path):
    train(session, 1)
    pair, _ = checkpoint.load_generators(session.save(tmp_path))
    for generators in (pair, session.generator_pair, session.unit):
        assert generators.gen_a.enc.res_blocks[-1] is generators.gen_b.enc.res_blocks[-1]
    assert isinstance(session.unit, UNIT)


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(FileExistsError, match="is not a regular file; choose another path"):
            files.write_text("text", path)
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_a_checkpoint_that_has_lost_its_digest_is_refused(session, tmp_path):
    path = session.save(tmp_path)
    torch.save(torch.load(path, weights_only=True), path)
    with pytest.raises(CheckpointError, match="lost its digest"):
        checkpoint.load(path)


def test_a_checkpoint_that_has_grown_is_refused(session, tmp_path):
    path = session.save(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="cut off, or longer than it was"):
        checkpoint.load(path)
