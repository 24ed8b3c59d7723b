"""Estimates of disk space."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

from fastunit.training import estimates


def test_a_full_disk_is_told_before_training(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")(10, 7, 3)
    asked = []
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda path: asked.append(path) or usage)
    assert estimates.disk_shortage(3, tmp_path / "not" / "yet") is None
    assert "has only 0 MiB free" in (estimates.disk_shortage(4, tmp_path / "not" / "yet") or "")
    assert asked == [tmp_path, tmp_path]
    assert estimates.disk_shortage(3, Path("relative")) is None
