"""Only regular files are read, up to a limit, whatever a path leads to."""

from __future__ import annotations

import os

import pytest

from fastunit.common import regular


def test_content_and_links_to_it(tmp_path):
    data = os.urandom(3 * 2**20 + 5)
    (tmp_path / "x").write_bytes(data)
    (tmp_path / "link").symlink_to("x")
    assert regular.read(tmp_path / "link", len(data)) == data
    with pytest.raises(OSError, match=r"3,145,733 bytes, more than the limit of 3,145,732.*x"):
        regular.read(tmp_path / "x", len(data) - 1)
    (tmp_path / "empty").touch()
    assert regular.read(tmp_path / "empty", 0) == b""


def zeros(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "kind"), [(os.mkfifo, "a named pipe"), (os.mkdir, "a folder"), (zeros, "a device")]
)
def test_others_are_refused_at_once(tmp_path, make, kind):
    make(tmp_path / "x")
    for refuse in (lambda path: regular.read(path, 9), regular.check):
        with pytest.raises(OSError, match=f"not a regular file but {kind}"):
            refuse(tmp_path / "x")


def test_a_file_that_grows_is_cut_off(tmp_path):
    # its status says 0 bytes
    with pytest.raises(OSError, match="larger than the limit"):
        regular.read("/proc/self/status", 10)  # type: ignore[arg-type]
