"""What is known of checked images, kept from one start to the next."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tracemalloc
from pathlib import Path

import pytest

from fastunit.common.errors import DataError
from fastunit.data import decoding, image_io, passed, validation
from fastunit.data.file_list import Files
from fastunit.data.validation import SizeRule, validate
from tests.support.files import picture, saved

pytest.importorskip("nvidia.dali", reason="the files are checked with NVIDIA DALI")
ANY = SizeRule(None, None)


@pytest.fixture
def index(cache) -> Path:
    """Return the file that remembers which images were checked."""
    return cache / validation.INDEX


def rows(index: Path) -> list[tuple[bytes]]:
    with contextlib.closing(sqlite3.connect(index)) as database:
        return database.execute("SELECT name FROM images").fetchall()


def check(files, rule=ANY, skip_bad=False, **options):
    return validate(files, rule=rule, workers=2, skip_bad=skip_bad, **options)


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch, capsys, index):
    files = [saved(tmp_path / f"{i}.png") for i in range(3)]
    check(files)
    assert "checking images" in capsys.readouterr().err
    assert len(rows(index)) == 3
    read = []
    measure = validation._measure
    monkeypatch.setattr(
        validation, "_measure", lambda *file: read.append(file[0]) or measure(*file)
    )
    with pytest.raises(DataError, match=r"3 of 3 .*\n.*too small"):
        check(files, SizeRule(None, (99, 99)))  # another crop: from the index alone
    assert check(files) == tuple(files)
    assert read == [] and capsys.readouterr().err == ""
    os.utime(files[1], ns=(0, 1))
    picture(60, 60).save(files[2])
    assert check(files) == tuple(files)
    assert sorted(read) == files[1:]


@pytest.mark.parametrize(
    "content", [b"{", b"", b"SQLite format 3\0" + bytes(2000), os.urandom(5000)]
)
def test_a_damaged_index_is_rebuilt(tmp_path, index, content):
    file = saved(tmp_path / "x.png")
    index.parent.mkdir()
    index.write_bytes(content)
    assert check([file]) == (file,)
    assert rows(index) == [(b"x.png",)]


def test_a_file_replaced_with_its_size_and_time_kept_is_read_again(tmp_path):
    file = saved(tmp_path / "x.bmp")
    check([file])
    before = file.stat()
    (tmp_path / "y.bmp").write_bytes(b"BM" + bytes(before.st_size - 2))
    os.utime(tmp_path / "y.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "y.bmp").rename(file)
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(DataError, match="1 of 1"):
        check([file])


def test_an_unwritable_index_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    file = saved(tmp_path / "x.png")
    assert check([file], index=tmp_path / "file/images") == (file,)
    assert "cannot write" in caplog.text


def test_an_interrupt_keeps_what_was_checked(tmp_path, monkeypatch, index):
    files = [saved(tmp_path / f"{i}.png") for i in range(3)]
    measure = validation._measure

    def interrupted(file: Path, reading: image_io.Reading):
        if file == files[2]:
            raise KeyboardInterrupt
        return measure(file, reading)

    monkeypatch.setattr(validation, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        validate(files, rule=ANY, workers=1, skip_bad=False)
    assert len(rows(index)) == 2


def test_a_check_that_is_killed_goes_on_where_it_was_a_minute_ago(tmp_path, monkeypatch, index):
    files = [saved(tmp_path / f"{i}.png") for i in range(3)]
    measure, kept = validation._measure, []

    def recorded(file: Path, reading: image_io.Reading):
        kept.append(len(rows(index)))  # what another process sees: committed
        return measure(file, reading)

    monkeypatch.setattr(validation, "_measure", recorded)
    monkeypatch.setattr(validation, "_AHEAD", 1)
    monkeypatch.setattr("fastunit.data.index._EVERY", 0)
    validate(files, rule=ANY, workers=1, skip_bad=False)
    assert kept == [0, 1, 2]


def test_memory_hardly_grows_with_the_number_of_files(tmp_path, monkeypatch):
    """A million paths take 100 MB; what is kept of each file may be as much again."""
    known = validation.Decoded(36, 48, bytes(16), None)
    monkeypatch.setattr(validation, "_measure", lambda file, reading: known)
    monkeypatch.setattr(validation, "state_of", lambda file: b"state")
    monkeypatch.setattr("fastunit.data.index.state_of", lambda file: b"state")
    files = Files(str(tmp_path / f"{i}.png") for i in range(20_000))
    for _ in ("first", "again, by the index"):
        tracemalloc.start()
        assert check(files) == files
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        passed._passed.clear()
        assert most < 500 * len(files)


def test_no_files_need_no_check(index):
    assert check([]) == () and not index.exists()


def test_each_loader_has_its_own_entries_in_the_index(tmp_path, monkeypatch):
    file = saved(tmp_path / "x.png")
    asked, measure = [], decoding.measure

    def counted(file: Path, reading: image_io.Reading):
        asked.append(reading.loader)
        return measure(file, reading)

    monkeypatch.setattr(decoding, "measure", counted)
    for loader in ("auto", "pillow", "auto", "pillow"):
        check([file], SizeRule(None, None, image_io.Reading(loader=loader)))
    assert asked == ["auto", "pillow"]
