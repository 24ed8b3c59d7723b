"""Kills at random moments: ``python -m tests.hostile.kills [--rounds 500] [--seed 0]``.

One training is killed (SIGKILL) again and again, at random moments and at file operations: before
or after the N-th of OPERATIONS, whose N is random; and resumed each time, while it
checks, trains, saves and prunes. Counted are checkpoints that cannot be read, litter after the next
start, and bits: the end must be that of an uninterrupted training.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from fastunit import train
from fastunit.common.errors import CheckpointError
from fastunit.training import checkpoint

SETTINGS = {
    "gen": {"dim": 2, "n_downsample": 1, "n_res": 1},
    "dis": {"dim": 2, "n_layer": 1, "num_scales": 1},
    **{"crop_image_height": 16, "crop_image_width": 16, "display_size": 2, "ema_decay": 0.9},
    **{"image_save_iter": 20, "image_display_iter": 10, "snapshot_save_iter": 5},
    "checkpoint": {"keep_last": 2},
}
OPERATIONS = ("fsync", "replace", "unlink", "mkdir", "open")  # of the module os
FOREVER = 600.0  # seconds
LITTER = re.compile(r"\.fastunit-\d+-\d+\.tmp.*")


def prepare(folder: Path, iterations: int) -> list[str]:
    """Write images and a configuration; return the arguments of a training."""
    rng = np.random.default_rng(0)
    for split in ("trainA", "trainB", "testA", "testB"):
        (folder / "data" / split).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / split / f"{index}.png")
    (folder / "c.yaml").write_text(yaml.safe_dump({**SETTINGS, "max_iter": iterations}))
    data = ["--config", str(folder / "c.yaml"), "--data", str(folder / "data")]
    return [*data, "--device", "cpu"]


def train_in_child(
    folder: Path, arguments: Sequence[str], *, calls: int = 0, after: bool = False, seconds: float
) -> tuple[int, str]:
    """Train in a forked process, which has all imports; return its exit code and messages.

    It is killed at the `calls`-th file operation, before or after it, and after `seconds`. The
    exit code is then -9.
    """
    path = folder / "stderr"
    pid = os.fork()
    if not pid:
        code = 99
        try:
            os.chdir(folder)
            for number in (1, 2):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            if calls:
                _kill_at(calls, after)
            code = train.main(list(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), path.read_text(errors="replace")


def _kill_at(calls: int, after: bool) -> None:
    """Let this process kill itself at its N-th file operation."""
    left = calls

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **options)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    for name in OPERATIONS:
        setattr(os, name, wrapped(getattr(os, name)))


def problems(run: Path, err: str) -> list[str]:
    """Return what is wrong in a run's folder after a kill."""
    found = [f"traceback: {err.strip().splitlines()[-1]}"] if "Traceback" in err else []
    for iteration in checkpoint.iterations(run):
        try:
            checkpoint.load(checkpoint.path_of(run, iteration))
        except CheckpointError as error:
            found.append(str(error))
    return found


def litter(run: Path) -> list[str]:
    """Return temporary files, and parts of checkpoints that there are not."""
    found = [str(path) for path in run.rglob("*") if LITTER.fullmatch(path.name)]
    whole = {path.name for path in (run / checkpoint.FOLDER).glob("[0-9]*.pt")}
    parts = (run / checkpoint.FOLDER).glob("*_*.pt")
    return found + [str(path) for path in parts if path.name.partition("_")[2] not in whole]


def run(
    rounds: int, seed: int, iterations: int = 60, minutes: float = math.inf
) -> tuple[int, list[str]]:
    """Kill a training `rounds` times or more; return the number of kills and what went wrong.

    After `minutes` no other training begins to be killed.
    """
    end = time.monotonic() + 60 * minutes
    rng, kills, trainings = random.Random(seed), 0, 0
    wrong: list[str] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FASTUNIT_CACHE"] = str(folder / "cache")
        arguments = prepare(folder, iterations)
        begun = time.monotonic()
        whole = [*arguments, "--output", "whole"]
        code, err = train_in_child(folder, whole, seconds=FOREVER)
        if code:
            return 0, [err[-2000:]]
        length = time.monotonic() - begun
        expected = _bits(folder / "whole", iterations)
        while kills < rounds and time.monotonic() < end:
            trainings, code = trainings + 1, -9
            output = folder / f"run{trainings}"
            while code:
                resume = ["--resume", str(output)] if (output / "config.yaml").exists() else []
                words = [*arguments, "--output", str(output), *resume]
                calls = rng.randrange(1, 300) if rng.random() < 0.5 else 0
                seconds = FOREVER if calls else rng.random() * length
                if kills >= rounds or time.monotonic() > end:
                    calls, seconds = 0, FOREVER
                after = rng.random() < 0.5
                code, err = train_in_child(folder, words, calls=calls, after=after, seconds=seconds)
                wrong += [f"kill {kills}: {each}" for each in problems(output, err)]
                if code not in (0, -9):
                    return kills, [*wrong, f"exit code {code}: {err[-1500:]}"]
                kills += code == -9
            wrong += litter(output)
            if not _same(_bits(output, iterations), expected):
                wrong.append(f"training {trainings}: other bits than without kills")
    return kills, wrong


def _bits(run: Path, iteration: int) -> dict[str, torch.Tensor]:
    state = checkpoint.load(checkpoint.path_of(run, iteration))
    return {**state["unit"], **{f"ema.{name}": value for name, value in state["ema"].items()}}


def _same(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 if nothing went wrong, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.kills")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after these")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    kills, wrong = run(args.rounds, args.seed, minutes=args.minutes)
    print("\n".join(wrong[:20]))
    print(f"{kills} kills, {len(wrong)} problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
