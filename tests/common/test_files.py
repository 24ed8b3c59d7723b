"""The writer of files: whole or not at all, with the disk's own error; digests; litter."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from fastunit.common import files
from fastunit.common.errors import CheckpointError, StorageError
from tests.support.doubles import raising


def test_the_longest_names_can_be_written(tmp_path):
    for name in ("n" * 251 + ".txt", "写" * 84 + ".tx", "." + "x" * 254):
        files.write_text("x", tmp_path / name)
        assert (tmp_path / name).read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 3


def test_what_cannot_be_encoded_is_escaped(tmp_path):
    files.write_text(os.fsdecode(b"caf\xe9"), tmp_path / "x")
    assert (tmp_path / "x").read_text() == "caf\\udce9"


def test_errors_have_the_files_path(tmp_path):
    with pytest.raises(OSError) as caught, files.atomic(tmp_path / "x"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert caught.value.filename == str(tmp_path / "x") and not list(tmp_path.iterdir())


class Full:
    """A file on a disk with room for some bytes."""

    def __init__(self, file, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


@pytest.mark.parametrize("room", [0, 1, 500, 5000, 8500])
def test_a_full_disk_is_named_as_such(tmp_path, monkeypatch, room):
    files.save({"x": 1}, tmp_path / "x.pt")
    record = files._Recorder
    monkeypatch.setattr(files, "_Recorder", lambda file: record(Full(file, room)))
    with pytest.raises(StorageError, match=r"x\.pt: No space left on device; it needs about 0\.0"):
        files.save({"x": torch.zeros(2000)}, tmp_path / "x.pt")
    assert files.read(tmp_path / "x.pt") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_what_is_needed_counts_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
    state = {"a": [torch.zeros(10**6), (torch.zeros(500_000),)], "b": "x"}
    with pytest.raises(StorageError, match=r"needs about 6\.0 MB, and [\d.]+ MB are free there"):
        files.save(state, tmp_path / "x.pt")


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "x.pt"
    files.save({"x": torch.arange(5), "text": "y"}, path)
    good = path.read_bytes()
    for index in range(len(good)):
        data = bytearray(good)
        data[index] ^= 1 << index % 8
        path.write_bytes(data)
        try:
            assert not files.sealed(path)  # damage to the digest itself, or
        except CheckpointError:
            continue
        with pytest.raises(CheckpointError):
            files.read(path)


def test_cut_and_extended_files_are_noticed(tmp_path):
    path = tmp_path / "x.pt"
    files.save({"x": torch.arange(500)}, path)
    good = path.read_bytes()
    for data in (good[:-1], good[:1000], good[:-90], good + good, b"", b"PK"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            files.read(path)


def plain(path: Path) -> bytearray:
    """Write a file as torch.save does, without a digest."""
    torch.save({"x": torch.arange(5.0)}, path)
    assert not files.sealed(path) and files.read(path)["x"][4] == 4
    return bytearray(path.read_bytes())


def test_a_tensor_that_is_marked_as_a_folder_is_refused(tmp_path):
    data = plain(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        at = archive.start_dir
    while data[at : at + 4] == b"PK\1\2":
        data[at + 38] |= 0x10  # external attributes
        at += 46 + sum(struct.unpack_from("<3H", data, at + 28))
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"its entry .* is damaged"):
        files.read(tmp_path / "x.pt")


def test_compressed_files_and_entries_given_twice_are_refused(tmp_path):
    plain(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data * 1000)
    with pytest.raises(CheckpointError, match="is damaged"):
        files.read(tmp_path / "y.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive, pytest.warns(UserWarning):
        archive.writestr(next(iter(content)), b"x")
    with pytest.raises(CheckpointError, match=r"damaged|two entries"):
        files.read(tmp_path / "x.pt")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_checkpoints_that_never_end_are_refused(tmp_path, make):
    make(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a regular file but a"):
        files.read(tmp_path / "x.pt")


def test_litter_of_dead_processes_is_removed(tmp_path):
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    names = [f".fastunit-{dead}-0.tmp.png", f".fastunit-{dead}-1.tmp", ".fastunit-x.tmp", "y.tmp"]
    own = f".fastunit-{os.getpid()}-0.tmp"
    for name in (*names, own):
        (tmp_path / name).touch()
    files.remove_temporaries(tmp_path)
    files.remove_temporaries(tmp_path / "absent")
    assert {path.name for path in tmp_path.iterdir()} == {*names[2:], own}


class Other:
    """A class that checkpoints do not contain."""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"lr: 0.1\n", "torch.save did not write it"),
        (b"", "torch.save did not write it"),
        (b"\x89PNG\r\n\x1a\n", "torch.save did not write it"),
        (pickle.dumps({"x": 1}, protocol=2), "Invalid magic number"),
        (None, "it contains .*Other; only tensors"),
    ],
)
def test_files_of_others_are_named_without_advice_to_run_their_code(tmp_path, content, reason):
    path = tmp_path / "x.pt"
    if content is None:
        torch.save({"x": Other()}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as refused:
        files.read(path)
    message = str(refused.value)
    assert message.startswith(f"checkpoint {path} is damaged or unreadable: ")
    assert "weights_only" not in message and "\n" not in message and "\x1b" not in message
