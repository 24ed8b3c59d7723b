"""Switches of the kernels that are read from the environment, once, at import."""

from __future__ import annotations

import os
import warnings


def is_on(name: str) -> bool:
    """Return whether a variable is 1. Unset, empty and 0 are off, and, with a warning, all else."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        warnings.warn(f"{name}={value!r} is ignored: set it to 1 (on) or 0 (off)", stacklevel=2)
    return value == "1"
