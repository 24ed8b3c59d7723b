"""Long lists of files, kept as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastunit.common.spread import spread
from fastunit.data.file_list import Files

PATHS = (Path("a/1.png"), Path("a/2.png"), Path("/b c/3.png"))


def test_it_is_a_sequence_of_paths():
    files = Files(PATHS)
    assert files == PATHS and list(PATHS) == list(files)
    assert files[1] == PATHS[1] and files[-1:] == PATHS[-1:] and len(files[:2]) == 2
    assert isinstance(files[0], Path) and isinstance(files[1:], Files)
    assert PATHS[1] in files and Path("a") not in files and not Files(())
    assert spread(files, 2) == [PATHS[0], PATHS[2]]
    assert files != PATHS[:2] and files != "a" and hash(files) == hash(Files(files))
    assert files[:1] + PATHS[1:] == PATHS
    assert Files(files).names is files.names == ("a/1.png", "a/2.png", "/b c/3.png")
    with pytest.raises(IndexError):
        files[3]
