"""The tiles that autotuning chose on this GPU: ``python -m bench.gpu.tiles_report [-o FILE]``.

Reads the winners that kernels/conv/tiles.py keeps in Triton's cache folder, so run it after
training steps or benchmarks with autotuning. A row is a GEMM and its shape; "table" is the tile
that is used without autotuning, the first candidate. If the two often differ in the same way,
change the order of candidates in kernels/conv/tiles.py; the winners are printed as Python for that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bench.report import tables
from fastunit.common import cli
from fastunit.common.errors import UserError
from fastunit.kernels.common import frame
from fastunit.kernels.conv import tiles
from fastunit.kernels.conv.tiles import Tile

DTYPES = {str(dtype): dtype for dtype in (torch.bfloat16, torch.float16, torch.float32)}


class Choice(NamedTuple):
    """The tile that autotuning chose for a key of `tiles.choose`, and the table's."""

    key: tuple[str, ...]
    winner: Tile
    table: Tile


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tiles_report", description=__doc__)
    add = parser.add_argument
    add("--gpu", help="whose winners; default: this machine's GPU")
    add("-o", "--output", type=Path, metavar="FILE", help="Markdown; default: standard output")
    args = parser.parse_args(argv)
    if args.gpu is None and not torch.cuda.is_available():
        raise UserError("there is no GPU here; name the one whose winners are wanted with --gpu")
    gpu = args.gpu or torch.cuda.get_device_name()
    text = "\n".join(page(gpu, list(choices(gpu)))) + "\n"
    if args.output is None:
        print(text, end="")
    else:
        args.output.write_text(text, encoding="utf-8")
    return 0


def choices(gpu: str) -> Iterator[Choice]:
    """Yield the choices stored for a GPU of that name; raises UserError if there are none."""
    winners = tiles._Store(gpu)._winners
    if not winners:
        raise UserError(
            f"no tiles of {gpu!r} are kept: run measure.py or a training there first, without "
            "FASTUNIT_AUTOTUNE=0 and with the same TRITON_CACHE_DIR"
        )
    for name, values in winners.items():
        key = tuple(json.loads(name))
        yield Choice(key, Tile(*values), candidates(key)[0])


def candidates(key: Sequence[str]) -> list[Tile]:
    """Return the candidates of `tiles.choose` for a key, the table's choice first.

    Keys are those of fastunit/kernels/conv/gemm.py, as strings.
    """
    kernel, dtype, _, *shape = key
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.empty(0, dtype=DTYPES[dtype], device=device)
    if kernel == "wgrad":
        _, _, _, _, _, taps, channels_out, channels, _ = map(int, shape)
        return tiles.wgrad_candidates(x, taps * frame.pitch(channels), frame.pitch(channels_out))
    samples, _, rows, columns, _, _, _, _, _, run, channels, up = map(int, shape[:12])
    phases, wide = max(up, 1) ** 2, tiles.filter_columns(channels)
    return tiles.gemm_candidates(x, samples * phases, rows * columns, channels, wide, run)


def page(gpu: str, found: Sequence[Choice]) -> list[str]:
    """Return the lines of a Markdown page."""
    other = [choice for choice in found if choice.winner != choice.table]
    lines = [f"# Tiles chosen on {gpu}", ""]
    lines += [f"{len(other)} of {len(found)} GEMMs run fastest with another tile.", ""]
    counts = Counter((c.key[0], c.key[1], _text(c.table), _text(c.winner)) for c in other)
    header = ["kernel", "type", "table", "winner", "GEMMs"]
    rows = [[*map(_plain, names), str(count)] for names, count in counts.most_common()]
    lines += [*tables.markdown(header, rows), "", "```python", "WINNERS = {"]
    for choice in sorted(found):
        values = ", ".join(map(str, vars(choice.winner).values()))
        mark = "" if choice.winner == choice.table else f"  # table: {_text(choice.table)}"
        lines.append(f"    {choice.key!r}: Tile({values}),{mark}")
    return [*lines, "}", "```"]


def _plain(name: str) -> str:
    return name.removeprefix("torch.")


def _text(tile: Tile) -> str:
    """Return BLOCK_M x BLOCK_N x BLOCK_K, warps and stages."""
    blocks = f"{tile.block_m}x{tile.block_n}x{tile.block_k}"
    return f"{blocks}, {tile.num_warps} warps, {tile.num_stages} stages"


if __name__ == "__main__":
    sys.exit(cli.guard(main))
