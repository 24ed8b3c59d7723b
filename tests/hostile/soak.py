"""A long training: ``python -m tests.hostile.soak [--iterations 20000]``.

Trains the smallest configuration and prints the growth of memory per 1,000 iterations in the
second half (least squares; the page grows until it has 16 grids), and the numbers of open files and
threads in its beginning and end.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from fastunit import config
from fastunit.training.run import fit
from tests.hostile.kills import SETTINGS, prepare

MOST = 1.0  # MB per 1,000 iterations


def state() -> tuple[float, int, int]:
    """Return this process's resident set in MB, its open files and its threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    size = pages * os.sysconf("SC_PAGESIZE") / 1e6
    return size, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def run(iterations: int) -> tuple[float, tuple[int, int], tuple[int, int], int]:
    """Train; return MB per 1,000 iterations, files and threads (early, late), the page's bytes."""
    samples: list[tuple[int, float, int, int]] = []
    every = max(1, iterations // 200)
    with TemporaryDirectory() as name:
        prepare(Path(name), iterations)
        own = {"image_save_iter": max(500, iterations // 40), "image_display_iter": 200}
        own |= {"snapshot_save_iter": max(500, iterations // 40), "log_iter": every}
        settings = config.from_dict(
            {**SETTINGS, **own, "max_iter": iterations, "data_root": f"{name}/data"}
        )

        def sample(iteration: int, losses: dict[str, float]) -> None:
            samples.append((iteration, *state()))

        fit(settings, output=f"{name}/run", device="cpu", callback=sample)
        page = Path(name, "run", "index.html").stat().st_size
    late = samples[len(samples) // 2 :]
    slope = float(np.polyfit([s[0] for s in late], [s[1] for s in late], 1)[0]) * 1000
    return slope, (late[0][2], late[-1][2]), (late[0][3], late[-1][3]), page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 if nothing has grown, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.soak")
    parser.add_argument("--iterations", type=int, default=20_000)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    slope, files, threads, page = run(args.iterations)
    print(
        f"{args.iterations} iterations: {slope:+.2f} MB per 1,000; files {files[0]} to {files[1]}, "
        f"threads {threads[0]} to {threads[1]}; page of {page / 1e6:.2f} MB"
    )
    return 0 if slope < MOST and files[0] >= files[1] and threads[0] >= threads[1] else 1


if __name__ == "__main__":
    sys.exit(main())
