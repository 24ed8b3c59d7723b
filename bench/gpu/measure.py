"""The GPU report: ``python -m bench.gpu.measure [--out DIR] [--quick]``.

Measures the GPU's ceilings (matmul and copy rates), runs the benchmarks of `STAGES` one after the
other within `LIMIT` seconds, writes DIR/GPU-DATE.json, .md and .png, and prints the table of
training steps last. When a stage's time is over, its results so far are kept. The strongest
baseline is reported as out of time if compiling it takes longer than --patience; ``--only strongest
--limit 500 --patience 450`` gives it a call of its own.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from bench.model.peaks import Ceilings, measured
from bench.report import markdown, tables
from fastunit.common import cli
from fastunit.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LIMIT, QUICK_LIMIT = 460, 150  # seconds, of all stages
GRACE = 20  # seconds that a stage gets to end after its time limit
LEAST = 10  # seconds that must be left to start a stage
SECONDS, QUICK_SECONDS = 8, 3  # for the rounds of a comparison
PATIENCE = 120  # seconds


class Stage(NamedTuple):
    """Benchmarks that run in one process: files, pytest's -k, and the seconds they may take."""

    files: tuple[str, ...]
    select: str
    seconds: int
    compiled: bool = False  # with the strongest baseline


_LISTED = "([256-1] or [256-8] or [512-1])"
# The most important first: the last ones get the time that the others leave.
STAGES = {
    "step": Stage(("step/bench_step.py",), f"bench_opponents and {_LISTED}", 60),
    "norm": Stage(("ops/bench_norm_act.py",), "forward or backward", 25),
    "layers": Stage(
        ("ops/bench_conv_gemm.py", "ops/bench_upsample_conv.py"),
        "(ours or channels_last) and (forward or dgrad or wgrad)",
        60,
    ),
    "blocks": Stage(
        ("ops/bench_conv_norm_act.py", "ops/bench_upsample_conv.py"),
        "both and (residual or up-)",
        50,
    ),
    "ablation": Stage(("step/bench_ablation.py",), "[256-1]", 100),
    "translate": Stage(("step/bench_translate.py",), "[256-1] or [256-8]", 15),
    "data": Stage(("step/bench_data.py",), "bench_data", 25),
    "strongest": Stage(
        ("step/bench_step.py",), f"bench_opponents and {_LISTED}", 400, compiled=True
    ),
    "sizes": Stage(("step/bench_step.py",), f"bench_opponents and not {_LISTED}", 200),
}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError(
            "bench.gpu.measure needs an NVIDIA GPU that PyTorch can use; without one run "
            "python -m pytest bench/"
        )
    print(f"{torch.cuda.get_device_name()}: measuring its ceilings", flush=True)
    ceilings = measured()
    print(f"{ceilings.tflop_per_s:.0f} TFLOP/s, {ceilings.gb_per_s:.0f} GB/s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        paths, failed = measure(args, ceilings, Path(folder))
        if not paths:
            raise UserError("no stage has left results; what went wrong is printed above")
        results = markdown.merged(paths)
    stem = folder_of(args.out) / file_stem(torch.cuda.get_device_name(), datetime.date.today())
    written, _ = markdown.write(results, stem)
    print(f"\nwrote {', '.join(map(str, written))}")
    for name in failed:
        print(f"{name}: not completely measured; see above")
    for table in filter(None, (f(results["benchmarks"]) for f in (tables.ablation, tables.times))):
        print("", *table, sep="\n")
    return 1 if failed else 0


def measure(
    args: argparse.Namespace, ceilings: Ceilings, folder: Path
) -> tuple[list[Path], list[str]]:
    """Run the stages; return the files of results and the names of the stages with failures."""
    paths, failed = [], []
    limit = args.limit or (QUICK_LIMIT if args.quick else LIMIT)
    for name, stage, seconds in planned(args.only, limit):
        if args.quick and stage.compiled:
            continue
        path = folder / f"{name}.json"
        print(f"\n{name}: at most {seconds:.0f} s", flush=True)
        if run(command(stage, path, seconds, ceilings, args), seconds, os.environ) != 0:
            failed.append(name)
        if path.is_file() and path.stat().st_size > 0:
            paths.append(path)
    return paths, failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.measure", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="default: $OUT, else bench/results")
    add(
        "--quick",
        action="store_true",
        help="no compiled contenders, fewer rounds",
    )
    add(
        "--only",
        nargs="+",
        choices=STAGES,
        default=list(STAGES),
        metavar="STAGE",
        help=", ".join(STAGES),
    )
    add("--limit", type=float, metavar="SECONDS", help=f"for all stages; default {LIMIT}")
    add(
        "--patience",
        type=float,
        default=PATIENCE,
        metavar="SECONDS",
        help="for compiling a contender; default %(default)s",
    )
    return parser


def planned(names: Sequence[str], limit: float) -> Iterator[tuple[str, Stage, float]]:
    """Yield the stages in order, each with its time limit in seconds."""
    end = time.monotonic() + limit
    for name in (name for name in STAGES if name in names):
        stage, left = STAGES[name], end - time.monotonic()
        if left < LEAST:
            print(f"{name}: left out, the {limit:.0f} s are spent", flush=True)
            continue
        yield name, stage, min(stage.seconds, left) if len(names) > 1 else left


def command(
    stage: Stage, path: Path, seconds: float, ceilings: Ceilings, args: argparse.Namespace
) -> list[str]:
    """Return pytest's command line for a stage that writes its results to `path`."""
    select = f"({stage.select}) and not compiled" if args.quick else stage.select
    options = {
        "--benchmark-json": path,
        "--ceilings": f"{ceilings.tflop_per_s},{ceilings.gb_per_s}",
        "--budget": f"{seconds:g}",
        "--seconds": QUICK_SECONDS if args.quick else SECONDS,
        "--patience": args.patience if stage.compiled else 0,
    }
    files = [f"bench/{name}" for name in stage.files]
    pairs = [f"{option}={value}" for option, value in options.items()]
    return [sys.executable, "-m", "pytest", *files, "-q", "--benchmark-quiet", "-k", select, *pairs]


def run(words: Sequence[str], seconds: float, environment: Mapping[str, str]) -> int:
    """Run a command from the checkout; return its exit code, nonzero after a timeout."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, start_new_session=True, preexec_fn=_hear_interrupts
    )
    try:
        return process.wait(seconds + GRACE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest still writes what it has
        try:
            return process.wait(GRACE) or 1
        except subprocess.TimeoutExpired:
            return 1
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        process.wait()


def _hear_interrupts() -> None:
    """Handle SIGINT again, which background jobs of a shell inherit as ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def folder_of(given: Path | None) -> Path:
    """Return the report's folder: the given one, else $OUT, else bench/results."""
    return given or Path(os.environ.get("OUT") or ROOT / "bench" / "results")


def file_stem(gpu: str, date: datetime.date) -> str:
    """Return a file name for a GPU: nvidia-h100-80gb-hbm3-2026-01-31."""
    return f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}-{date.isoformat()}"


if __name__ == "__main__":
    sys.exit(cli.guard(main))
