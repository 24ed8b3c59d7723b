"""Estimates of time and disk space, in words."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from fastunit.training import estimates


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3000, "50 min"),
        (3600, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (187_200, "2 days 4 h"),
    ],
)
def test_a_duration_in_words(seconds, words):
    assert estimates.duration(seconds) == words


def test_a_full_disk_is_told_before_training(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")(10, 7, 3)
    asked = []
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda path: asked.append(path) or usage)
    assert estimates.disk_shortage(3, tmp_path / "not" / "yet") is None
    assert "has only 0 MiB free" in (estimates.disk_shortage(4, tmp_path / "not" / "yet") or "")
    assert asked == [tmp_path, tmp_path]
    assert estimates.disk_shortage(3, Path("relative")) is None
