"""The least time of a training step on a GPU: ``python -m bench.model.roofline --config photos``.

The floor is the sum over the step's kernels (costs.py) of the longer of two times: issued FLOPs
divided by the rate of a large bf16 matmul, bytes divided by the bandwidth of a large copy. Small
images stay in the L2 cache, so kernels bound by bytes can be faster than their floor.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

from bench.model import costs
from bench.model.peaks import Ceilings
from fastunit import config
from fastunit.common import cli
from fastunit.common.errors import UserError

COLUMNS = ("part", "direct GFLOP", "needed GFLOP", "issued GFLOP", "GB", "floor ms")


class Total(NamedTuple):
    """Totals of some kernels for the whole batch; `floor_ms` if they run one after the other."""

    direct_gflop: float
    needed_gflop: float
    issued_gflop: float
    gb: float
    floor_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if min(args.tflops, args.gbps) <= 0:
        raise UserError(f"--tflops {args.tflops} and --gbps {args.gbps} must be above 0")
    settings = config.load(args.config, args.overrides)
    ceilings = Ceilings(args.tflops, args.gbps)
    height, width = settings.crop
    print(
        f"{height}x{width}, batch {settings.batch_size}: {args.tflops:g} TFLOP/s, "
        f"{args.gbps:g} GB/s\n"
    )
    print("\n".join(table(costs.step(settings), ceilings)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.model.roofline", description=__doc__)
    add = parser.add_argument
    add("--config", default="photos", metavar="FILE", help="a YAML file, or a built-in one by name")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key, for instance batch_size=1",
    )
    add("--tflops", type=float, default=800.0, help="TFLOP/s of bf16 matmuls; default %(default)s")
    add("--gbps", type=float, default=3000.0, help="GB/s of copies; default %(default)s")
    return parser


def floor_ms(settings: config.Config, ceilings: Ceilings) -> float:
    """Return the least milliseconds of a training step in bf16."""
    return total(costs.step(settings), ceilings).floor_ms


def total(kernels: Sequence[costs.Kernel], ceilings: Ceilings) -> Total:
    """Return the totals of kernels."""
    return Total(
        sum(kernel.direct for kernel in kernels) / 1e9,
        sum(kernel.needed for kernel in kernels) / 1e9,
        sum(kernel.issued for kernel in kernels) / 1e9,
        sum(kernel.bytes for kernel in kernels) / 1e9,
        1e3 * sum(ceilings.seconds(kernel.issued, kernel.bytes) for kernel in kernels),
    )


def table(kernels: Sequence[costs.Kernel], ceilings: Ceilings) -> list[str]:
    """Return the lines of a Markdown table: the parts of a step and their total."""
    lines = [COLUMNS, ("---", *["--:"] * (len(COLUMNS) - 1))]
    for part in dict.fromkeys(kernel.part for kernel in kernels):
        found = total([kernel for kernel in kernels if kernel.part == part], ceilings)
        lines.append((part, *_cells(found)))
    lines.append(("**step**", *_cells(total(kernels, ceilings))))
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _cells(found: Total) -> list[str]:
    flops = (found.direct_gflop, found.needed_gflop, found.issued_gflop)
    return [*(f"{value:.1f}" for value in flops), f"{found.gb:.2f}", f"{found.floor_ms:.2f}"]


if __name__ == "__main__":
    sys.exit(cli.guard(main))
