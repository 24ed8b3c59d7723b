"""A long training: ``python -m tests.hostile.soak [--iterations 20000]``.

Trains the smallest configuration, with sample grids, pages and checkpoints, and measures the growth
of the resident set and of what malloc has handed out (without its free memory), in MB per 1,000
iterations of the second half (least squares), and the numbers of open files and threads in the
middle and at the end. The verdict: no growth of MOST or more, no more files, no more threads.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from fastunit import config
from fastunit.training.run import fit
from tests.hostile.kills import SETTINGS, prepare

MOST = 1.0  # MB per 1,000 iterations
SAMPLES = 200  # measurements in a run


class Sample(NamedTuple):
    """This process at one iteration: MB resident, MB in use by malloc, open files, threads."""

    iteration: int
    resident: float
    used: float
    files: int
    threads: int


class Verdict(NamedTuple):
    """Growth in the second half, in MB per 1,000 iterations, and what has grown too much."""

    resident: float
    used: float
    middle: Sample
    end: Sample
    page: int  # bytes of the page
    grown: list[str]


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _Mallinfo


def sample(iteration: int) -> Sample:
    """Measure this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = _libc.mallinfo2()
    return Sample(
        iteration,
        pages * os.sysconf("SC_PAGESIZE") / 1e6,
        (memory.uordblks + memory.hblkhd) / 1e6,
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
    )


def run(iterations: int, pages: int = 40) -> Verdict:
    """Train, with as many pages and checkpoints; return what has grown."""
    samples: list[Sample] = []
    every = max(1, iterations // pages)
    with TemporaryDirectory() as name:
        prepare(Path(name), iterations)
        own = {"image_save_iter": every, "snapshot_save_iter": every, "image_display_iter": 200}
        own |= {"max_iter": iterations, "log_iter": max(1, iterations // SAMPLES)}
        settings = config.from_dict({**SETTINGS, **own, "data_root": f"{name}/data"})

        def measure(iteration: int, losses: dict[str, float]) -> None:
            samples.append(sample(iteration))
            if len(samples) % (SAMPLES // 20) == 0:
                print(
                    "iteration {:,}: {:.1f} MB resident, {:.1f} MB in use by malloc, {} files, "
                    "{} threads".format(*samples[-1]),
                    flush=True,
                )

        fit(settings, output=f"{name}/run", device="cpu", callback=measure)
        page = Path(name, "run", "index.html").stat().st_size
    return judge(samples, page)


def judge(samples: Sequence[Sample], page: int = 0) -> Verdict:
    """Return the verdict on the second half of the samples."""
    late = samples[len(samples) // 2 :]
    middle, end = late[0], late[-1]
    times = [each.iteration for each in late]
    slopes = {
        "resident": float(np.polyfit(times, [each.resident for each in late], 1)[0]) * 1000,
        "used": float(np.polyfit(times, [each.used for each in late], 1)[0]) * 1000,
    }
    grown = [name for name, slope in slopes.items() if slope >= MOST]
    grown += ["files"] if end.files > middle.files else []
    grown += ["threads"] if end.threads > middle.threads else []
    return Verdict(**slopes, middle=middle, end=end, page=page, grown=grown)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 if nothing has grown, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.soak")
    parser.add_argument("--iterations", type=int, default=20_000)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = run(args.iterations)
    middle, end = found.middle, found.end
    print(
        f"{args.iterations:,} iterations, of the second half: resident {found.resident:+.2f} MB "
        f"per 1,000, in use by malloc {found.used:+.2f}; files {middle.files} to {end.files}, "
        f"threads {middle.threads} to {end.threads}; page of {found.page / 1e6:.2f} MB"
    )
    print(f"grown: {', '.join(found.grown)}" if found.grown else "nothing has grown")
    return 1 if found.grown else 0


if __name__ == "__main__":
    sys.exit(main())
