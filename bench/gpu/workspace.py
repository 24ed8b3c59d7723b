"""The folder and time limit of a stage of prove.py, and its outcome."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.gpu import measure

DONE, FAILED, LEFT_OUT = "done", "FAILED", "left out"
LAST = 3000  # characters of a log that are shown


@dataclass(frozen=True)
class Outcome:
    """A stage's outcome: done, FAILED or left out, with details."""

    what: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.details}" if self.details else self.what

    @staticmethod
    def of(codes: Mapping[str, int], details: str = "") -> Outcome:
        """Return the outcome of commands with these exit codes, by name."""
        failed = [f"{name} ended with {code}" for name, code in codes.items() if code]
        words = ", ".join(filter(None, [*failed, details]))
        return Outcome(FAILED if failed else DONE, words)

    @staticmethod
    def left_out(reason: str) -> Outcome:
        return Outcome(LEFT_OUT, reason)


@dataclass
class Workspace:
    """A stage's output folder and time limit, and the data folders; runs its commands."""

    out: Path
    seconds: float
    data: tuple[Path, ...] = ()
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - (time.monotonic() - self.begun))

    def run(
        self, words: Sequence[object], changes: Mapping[str, str] | None = None, seconds: float = 0
    ) -> int:
        """Run a command with output to prove.log; print the end of it, return the exit code."""
        log = self.out / "prove.log"
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n$ {' '.join(map(str, words))}\n")
        begin = log.stat().st_size
        # exec: the command replaces the shell, so that signals after a timeout reach it.
        shell = ["bash", "-c", 'exec "$@" >>"$0" 2>&1', str(log.resolve()), *map(str, words)]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | (changes or {})
        code = measure.run(shell, seconds or self.left, environment)
        with log.open("rb") as file:
            file.seek(begin)
            print(file.read().decode(errors="replace")[-LAST:], flush=True)
        return code
