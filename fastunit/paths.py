"""Where fastunit keeps files of its own."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder for generated data and indexes; it need not exist yet.

    ``$FASTUNIT_CACHE``, else ``$XDG_CACHE_HOME/fastunit``, else ``~/.cache/fastunit``.
    """
    if explicit := os.environ.get("FASTUNIT_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastunit"
