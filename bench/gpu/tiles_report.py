"""The tiles of a step's GEMMs with the cost model's times: ``python -m bench.gpu.tiles_report``.

Needs no GPU. With ``--time`` the cheapest candidates of each GEMM are timed on this machine's GPU,
and those that beat the model's choice are printed as entries of MEASURED in kernels/conv/tiles.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor

from bench.gpu import aot
from bench.report import tables
from fastunit import config
from fastunit.common import cli
from fastunit.common.errors import UserError
from fastunit.kernels.common import runtime
from fastunit.kernels.conv import gemm, tiles
from fastunit.kernels.conv.tile_costs import GPUS, Choice, Product, cost, waves

TIMED = 6  # candidates of a GEMM
BETTER = 0.97  # a measured time this much below the choice's is worth an entry
HEADER = ["GEMM", "launches", "results", "rows", "columns", "sum over", "tile", "splits"]
HEADER += ["programs", "waves", "modelled us", "together"]


@dataclass(frozen=True)
class Blank:
    """A tensor by what it looks like, without its values."""

    numbers: int  # in its storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @staticmethod
    def of(value: Any) -> Any:
        """Return a tensor's, that of the tensors of an epilogue, or the value itself."""
        if isinstance(value, gemm.Epilogue):
            return gemm.Epilogue(*map(Blank.of, value))
        if not isinstance(value, Tensor):
            return value
        numbers = value.untyped_storage().nbytes() // value.element_size()
        shape, stride = tuple(value.shape), value.stride()
        return Blank(numbers, value.dtype, shape, stride, value.storage_offset())

    @staticmethod
    def filled(value: Any, device: torch.device) -> Any:
        """Undo `of`, with random numbers."""
        if isinstance(value, gemm.Epilogue):
            return gemm.Epilogue(*(Blank.filled(each, device) for each in value))
        if not isinstance(value, Blank):
            return value
        storage = torch.randn(value.numbers, device=device).to(value.dtype)
        return storage.as_strided(value.shape, value.stride, value.offset)


@dataclass
class Call:
    """What computes a GEMM, its arguments as blanks, and its launches in a step."""

    function: Callable[..., object]
    arguments: tuple[Any, ...]
    launches: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.time and not torch.cuda.is_available():
        raise UserError("--time needs an NVIDIA GPU that PyTorch can use; leave it out")
    arch, count = args.arch, None
    if args.time:
        arch = runtime.arch(torch.device("cuda", 0))
        count = runtime.multiprocessors(torch.device("cuda", 0))
    settings = config.load(args.config, [*aot.SIZES, *args.overrides])
    found = gemms(settings, arch, count)
    lines = page(found)
    if args.time:
        lines += ["", *entries({product: timed(product, call) for product, call in found.items()})]
    text = "\n".join(lines) + "\n"
    if args.output is None:
        print(text, end="")
    else:
        args.output.write_text(text, encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tiles_report", description=__doc__)
    add = parser.add_argument
    add("--arch", type=int, choices=GPUS, default=90, help="default: 90; with --time the GPU's")
    add("--config", default="photos", metavar="FILE", help="a YAML file, or a built-in one by name")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key; batch_size=1 and crops of 256 are set already",
    )
    add("--time", action="store_true", help="time the cheapest candidates on this GPU")
    add("-o", "--output", type=Path, metavar="FILE", help="Markdown; default: standard output")
    return parser


def gemms(
    settings: config.Config, arch: int, multiprocessors: int | None = None
) -> dict[Product, Call]:
    """Return the GEMMs of a training step, recorded without a GPU."""
    found: dict[Product, Call] = {}
    best = tiles.best
    calls: list[Call] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(Call(function, tuple(map(Blank.of, args))))
            return function(*args)

        return call

    def noted(product: Product) -> Choice:
        found.setdefault(product, calls[-1]).launches += 1
        return best(product)

    with (
        patch.object(gemm, "_gemm", noting(gemm._gemm)),
        patch.object(gemm, "_correlate", noting(gemm._correlate)),
        patch.object(tiles, "best", noted),
    ):
        aot.step_launches(settings, arch, torch.bfloat16, multiprocessors)
    return found


def page(found: dict[Product, Call]) -> list[str]:
    """Return the lines of a Markdown table, the largest share of the time first."""
    rows, total = [], dict.fromkeys(("conv_gemm", "wgrad"), 0.0)
    for product, call in found.items():
        choice = tiles.best(product)
        modelled = cost(product, choice)
        total[product.kernel] += call.launches * modelled
        sizes = product.results, product.rows, product.columns, product.runs * product.run
        numbers = call.launches, *sizes, _tile(choice), choice.splits
        programs = product.programs(choice.tile) * choice.splits
        filled = f"{waves(product, choice):.2f}"
        times = f"{modelled:.1f}", f"{call.launches * modelled:.0f}"
        rows.append([product.kernel, *map(str, numbers), str(programs), filled, *times])
    rows.sort(key=lambda row: -float(row[-1]))
    sums = ", ".join(f"{name} {time / 1000:.2f}" for name, time in total.items())
    return [*tables.markdown(HEADER, rows), "", f"Modelled ms of a step: {sums}."]


def timed(product: Product, call: Call) -> dict[Choice, float]:
    """Return the times in µs of a GEMM's cheapest candidates on this GPU."""
    device = torch.device("cuda", 0)
    arguments = [Blank.filled(value, device) for value in call.arguments]
    cheapest = sorted(tiles.candidates(product), key=lambda choice: cost(product, choice))[:TIMED]
    found: dict[Choice, float] = {}
    for choice in cheapest:
        with forced(choice):
            milliseconds: Any = triton.testing.do_bench(
                lambda: call.function(*arguments), warmup=5, rep=20, return_mode="median"
            )
        found[choice] = 1000 * milliseconds
    return found


@contextmanager
def forced(choice: Choice) -> Iterator[None]:
    """Let every GEMM take one tile inside the block."""
    with patch.object(tiles, "best", lambda product: choice):
        yield


def entries(times: dict[Product, dict[Choice, float]]) -> list[str]:
    """Return entries of MEASURED for what is faster than the choice of the cost function."""
    lines = []
    for product, of_choice in times.items():
        chosen, fastest = tiles.best(product), min(of_choice, key=of_choice.__getitem__)
        if of_choice[fastest] < BETTER * of_choice[chosen]:
            gain = f"{of_choice[fastest]:.1f} us, not {of_choice[chosen]:.1f}"
            lines.append(f"    {product!r}: {fastest!r},  # {gain}")
    return ["```python", "MEASURED = {", *lines, "}", "```"]


def _tile(choice: Choice) -> str:
    tile = choice.tile
    return f"{tile.block_m}x{tile.block_n}x{tile.block_k}"


if __name__ == "__main__":
    sys.exit(cli.guard(main))
