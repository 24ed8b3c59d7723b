"""Python in a process of its own, and how many processes a compiler may start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def python(
    *words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this Python with the words and return what became of it, its output as text.

    Args:
        words: what follows `python` on the command line.
        cwd: the directory to run in.
        env: variables beside those of this process.
    """
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
    )


def compiler_processes(workers: int, cores: int) -> int:
    """Return how many processes torch.compile may start in each of pytest's workers.

    PyTorch's default is one for each core, in every worker: 8 workers on 16 cores make 128.
    """
    return max(1, cores // workers)
