"""What the tests of data share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test an empty cache folder of its own, and return its path."""
    monkeypatch.setenv("FASTUNIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
