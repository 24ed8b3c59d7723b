"""Compile a training step's GPU kernels ahead of time: ``python -m fastunit.warm [options]``.

Also for a GPU that is not there. The folder of --out can be carried to another machine with the
same versions of fastunit, PyTorch and Triton: run the same command there, which then finds all and
mends the folder's paths, and train with TRITON_CACHE_DIR set to it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from triton import knobs

from fastunit import config
from fastunit.common import cli
from fastunit.common.errors import UserError
from fastunit.config import Config
from fastunit.kernels.common import runtime
from fastunit.kernels.common.variants import Variant, compile_missing, folder, variants
from fastunit.training.kernel_compilation import step_launches

DEFAULT_ARCH = 90


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastunit.warm") -> int:
    """Record the steps, compile what is missing, and print what there is. Returns the exit code."""
    args = _parser(prog).parse_args(argv)
    return cli.guard(lambda: _run(args))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compile the GPU kernels of a training step ahead of time; needs no GPU.",
    )
    add = parser.add_argument
    add("--version", action="version", version=cli.VERSION)
    add("--config", default="photos", metavar="FILE", help="a YAML file, or a built-in one by name")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override a key, for instance gen.dim=64; may be repeated",
    )
    add("--size", type=int, metavar="N", help="train on crops of N x N pixels")
    add("--batch", type=int, nargs="+", metavar="N", help="batch sizes; one step is for each")
    add(
        "--arch",
        type=int,
        metavar="N",
        help=f"compute capability times ten; default: this machine's GPU, else {DEFAULT_ARCH}",
    )
    add("--multiprocessors", type=int, metavar="N", help="of that GPU, where it is an unusual one")
    add("--out", type=Path, metavar="DIR", help="cache folder; default: Triton's own")
    return parser


def _run(args: argparse.Namespace) -> int:
    if runtime.INTERPRET:
        raise UserError("TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    arch, multiprocessors = _gpu(args)
    start = time.perf_counter()
    with knobs.cache.scope():
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            knobs.cache.dir = str(args.out.resolve())
        found: dict[tuple, Variant] = {}
        for settings in _steps(args):
            launches = step_launches(settings, arch, multiprocessors)
            found.update({variant.key: variant for variant in variants(launches, arch)})
        count = compile_missing(found.values(), os.cpu_count() or 1, _show)
        folders = filter(None, map(folder, found.values()))
        size = sum(path.stat().st_size for each in folders for path in each.iterdir())
        where = knobs.cache.dir
    seconds = time.perf_counter() - start
    print(
        f"{len(found)} kernel variants for compute capability {arch / 10}: {count} compiled, "
        f"{len(found) - count} were there; {seconds:.1f} s, {size / 2**20:.1f} MiB\n"
        f"use them with TRITON_CACHE_DIR={where}"
    )
    return 0


def _gpu(args: argparse.Namespace) -> tuple[int, int | None]:
    """Return the compute capability times ten and, if known, the multiprocessors."""
    if args.arch is not None:
        if args.arch < runtime.OLDEST:
            raise UserError(f"--arch {args.arch}: the kernels need at least {runtime.OLDEST}")
        return args.arch, args.multiprocessors
    if not torch.cuda.is_available():
        return DEFAULT_ARCH, args.multiprocessors
    device = torch.device("cuda", torch.cuda.current_device())
    return runtime.arch(device), args.multiprocessors or runtime.multiprocessors(device)


def _steps(args: argparse.Namespace) -> list[Config]:
    sizes = []
    if args.size is not None:
        keys = "new_size", "crop_image_height", "crop_image_width"
        sizes = [f"{key}={args.size}" for key in keys]
    batches = [[f"batch_size={batch}"] for batch in args.batch or []] or [[]]
    return [config.load(args.config, [*sizes, *args.overrides, *batch]) for batch in batches]


def _show(done: int, total: int) -> None:
    """Rewrite one line on a terminal; in a log file, write the first and the last."""
    if sys.stderr.isatty() or done in (0, total):
        end = "\n" if done == total or not sys.stderr.isatty() else ""
        print(f"\rcompiling kernels: {done} of {total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
