"""Compile the kernels of a training step without a GPU and print properties of the machine code.

``python -m bench.gpu.aot`` prints a Markdown table; docs/kernels.md explains it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import torch

from bench.gpu.compile import LOCAL, TENSOR_CORE, Code, MachineCode, compile_variant
from fastunit import config
from fastunit.common import cli
from fastunit.common.errors import UserError
from fastunit.kernels.common import runtime
from fastunit.kernels.common.variants import Variant, variants
from fastunit.training import kernel_compilation

# One photograph at a time, as the paper trains.
SIZES = ["batch_size=1", "new_size=256", "crop_image_height=256", "crop_image_width=256"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
COLUMNS = {
    "kernel": "---",
    "sm": "--:",
    "type": "---",
    "tile": "---",
    "warps": "--:",
    "stages": "--:",
    "launches": "--:",
    "registers": "--:",
    "stack": "--:",
    "shared KiB": "--:",
    "loop": "--:",
    "tensor": "--:",
    "loads": "---",
    "local": "--:",
}


class Row(NamedTuple):
    """A variant, its number of launches in a training step, and its machine code."""

    variant: Variant
    launches: int
    binary: MachineCode


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if runtime.INTERPRET:
        raise UserError("TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    settings = config.load(args.config, [*SIZES, *args.overrides])
    rows: list[Row] = []
    for arch in args.arch:
        for dtype in args.dtype:
            rows += compile_launches(step_launches(settings, arch, DTYPES[dtype]), arch)
    print("\n".join(table(rows, args.full)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.aot", description=__doc__)
    add = parser.add_argument
    add("--arch", type=int, nargs="+", choices=TENSOR_CORE, default=list(TENSOR_CORE))
    add("--config", default="photos", metavar="FILE", help="a YAML file, or a built-in one by name")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key; batch_size=1 and crops of 256 are set already",
    )
    add("--dtype", nargs="+", choices=DTYPES, default=["bfloat16"])
    add("--full", action="store_true", help="a row for every variant, not only each tile's worst")
    return parser


def step_launches(
    settings: config.Config, arch: int, dtype: torch.dtype, multiprocessors: int | None = None
) -> list[runtime.Launch]:
    """Record the launches of one training step, forward and backward; nothing is computed.

    With grouped execution, as on a GPU, unless the settings turn it off. In bfloat16 weights are
    float32 and autocast is on, as in training.
    """
    mixed = dtype == torch.bfloat16
    settings = replace(settings, precision="bf16" if mixed else "inherit")
    dtype = torch.float32 if mixed else dtype
    return kernel_compilation.step_launches(settings, arch, multiprocessors, dtype)


def compile_launches(launches: Iterable[runtime.Launch], arch: int) -> list[Row]:
    """Compile every variant among the launches, on all cores."""
    found = variants(launches, arch)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of the work is in child processes
        binaries = list(pool.map(compile_variant, found))
    return [Row(*row) for row in zip(found, found.values(), binaries, strict=True)]


def table(rows: Sequence[Row], full: bool = True) -> list[str]:
    """Return the lines of a Markdown table; unless `full`, a kernel's worst row for each tile."""
    kinds: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        kinds[_kind(row.variant)].append(row)
    lines = [list(COLUMNS), list(COLUMNS.values())]
    for kind, alike in sorted(kinds.items()):
        if full:
            lines += [_cells(kind, row, alike) for row in sorted(alike, key=_cost, reverse=True)]
        else:
            worst = max(alike, key=_cost)
            lines.append(_cells(kind, worst._replace(launches=sum(r.launches for r in alike))))
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _kind(variant: Variant) -> tuple:
    options = variant.options
    return (
        variant.name,
        variant.target.arch,
        variant.dtype,
        _tile(variant),
        options.num_warps,
        options.num_stages,
    )


def _tile(variant: Variant) -> tuple[int, ...]:
    """Return the kernel's BLOCK_... constants in the order of its arguments."""
    return tuple(v for name, v in variant.constants.items() if name.startswith("BLOCK"))


def _cost(row: Row) -> tuple[int, ...]:
    binary = row.binary
    return binary.stack, binary.registers, binary.shared, len(binary.loop or binary.code)


def _cells(kind: tuple, row: Row, alike: Sequence[Row] = ()) -> list[str]:
    """Return a row's cells; the name is followed by the arguments that differ from similar rows."""
    binary = row.binary
    name, arch, dtype, tile, warps, stages = kind
    loop = binary.loop or ()
    return [
        " ".join([f"`{name}`", *_differences(row.variant, [other.variant for other in alike])]),
        str(arch),
        dtype,
        "x".join(map(str, tile)),
        str(warps),
        str(stages),
        str(row.launches),
        str(binary.registers),
        str(binary.stack),
        f"{binary.shared / 1024:.1f}",
        str(len(loop)) if loop else f"({len(binary.code)})",
        str(sum(instruction.is_tensor_core for instruction in loop)),
        _loads(loop or binary.code),
        str(sum(instruction.mnemonic in LOCAL for instruction in binary.code)),
    ]


def _differences(variant: Variant, alike: Sequence[Variant]) -> list[str]:
    """Return ``NAME=value`` of the arguments in which variants differ."""
    return [
        f"{name}={value}"
        for name, value in variant.arguments.items()
        if any(other.arguments[name] != value for other in alike)
    ]


def _loads(code: Code) -> str:
    counts = Counter(f"{i.mnemonic}.{i.load_bits}" for i in code if i.load_bits is not None)
    return ", ".join(f"{times} {name}" for name, times in sorted(counts.items())) or "-"


if __name__ == "__main__":
    sys.exit(cli.guard(main))
