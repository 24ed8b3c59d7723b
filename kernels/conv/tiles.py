"""Tile sizes and splits of the matrix kernels: the least of one cost function.

Nothing is timed: the same product takes the same tile in every process, captured or not, and so
gives the same bits on all GPUs of a model. What `python -m bench.gpu.tiles_report` has timed goes
to MEASURED.
"""

from __future__ import annotations

import functools
import math

from torch import Tensor

from fastunit.kernels.common import runtime
from fastunit.kernels.common.runtime import cdiv
from fastunit.kernels.conv.tile_costs import (
    GPUS,
    REGISTERS,
    Choice,
    Product,
    Tile,
    cost,
)

MEASURED: dict[Product, Choice] = {}  # overrides the cost function; nothing is measured yet
MOST_SPLITS = 64
LARGEST_WITH_BORDER = 128, 128  # larger ones spill where a border's corrections are added


def generation(arch: int) -> int:
    """Return the architecture of GPUS that stands for a compute capability."""
    return max((known for known in GPUS if known <= arch), default=80)


def filter_columns(channels: int) -> int:
    """Return the padded output channels of a filter buffer: no column tile needs a mask."""
    return next((wide for wide in (16, 32, 64) if channels <= wide), -(-channels // 128) * 128)


def for_windows(
    x: Tensor,
    precision: str,
    images: int,
    windows: int,
    channels: int,
    taps: int,
    run: int,
    *,
    phases: int = 1,
    whole: bool = False,
    border: bool = False,
) -> Tile:
    """Return the tile of products of `images` x `windows` windows with filters of each phase.

    It may have the columns of several phases.

    Args:
        x: the frame, whose dtype and device count.
        precision: of float32, "ieee" or "tf32".
        images: of the batch.
        windows: of an image.
        channels: of the result.
        taps: rows of a filter.
        run: values of a row of a window.
        phases: of each image.
        whole: every phase of every window is in the result.
        border: corrections are added along it.
    """
    columns, together = filter_columns(channels), 1
    if whole and phases in (4, 16) and columns <= 128:  # tiles and columns divide one another
        together = min(phases, LARGEST_WITH_BORDER[1] // columns) if border else phases
    results, columns = images * phases // together, together * columns if together > 1 else channels
    sizes = results, windows, columns, taps, run
    return best(_product("conv_gemm", x, precision, *sizes, border=border)).tile


def for_lines(x: Tensor, run: int) -> Tile:
    """Return the one tile of all products of lines of pixels, which are small."""
    deep = min(128 // x.element_size(), max(16, runtime.next_power_of_2(run)))
    return Tile(64, 64, deep, 4, 3 if generation(runtime.arch(x.device)) == 80 else 4)


def for_filters(
    x: Tensor, precision: str, groups: int, rows: int, channels: int, pixels: int, largest: int
) -> tuple[Tile, int]:
    """Return the tile of (rows, channels) of filters' gradient, and the pixels of a split.

    Args:
        x: a frame, whose dtype and device count.
        precision: of float32, "ieee" or "tf32".
        groups: of filters.
        rows: values of a filter.
        channels: of the other frame, with padding.
        pixels: over which the gradient sums.
        largest: pixels of a split, within which int32 offsets reach.

    The pixels of a split are a multiple of the tile's BLOCK_K.
    """
    product = _product("wgrad", x, precision, groups, rows, channels, 1, pixels)
    tile, splits = best(product)
    blocks = min(product.steps(tile, splits), largest // tile.block_k)
    return tile, blocks * tile.block_k


def _product(kernel: str, x: Tensor, precision: str, *sizes: int, border: bool = False) -> Product:
    arch = generation(runtime.arch(x.device))
    multiprocessors = runtime.multiprocessors(x.device) or GPUS[arch].multiprocessors
    precision = precision if x.element_size() == 4 else "ieee"
    given = kernel, arch, multiprocessors, x.element_size(), precision
    results, rows, columns, runs, run = sizes
    return Product(*given, results, rows, columns, runs, run, border)


@functools.cache
def best(product: Product) -> Choice:
    """Return the cheapest of the candidates, of equal ones the first."""
    if product in MEASURED:
        return MEASURED[product]
    if runtime.INTERPRET:  # programs run one after another, whatever their size
        return min(candidates(product), key=lambda c: c.splits * product.programs(c.tile))
    return min(candidates(product), key=lambda choice: cost(product, choice))


def candidates(product: Product) -> list[Choice]:
    """Return the tiles that compile without spills and fit the product, with useful splits."""
    wide = 128 // product.element_size  # BLOCK_K: 128 bytes of values
    if product.kernel == "wgrad":
        tiles = _tiles(product, wide)
        return [Choice(t, splits) for t in tiles for splits in _splits(product.steps(t))]
    deep = min(wide, max(16, runtime.next_power_of_2(product.run)))
    columns = filter_columns(product.columns)
    found = [Choice(t) for t in _tiles(product, deep) if columns % t.block_n == 0]
    # 16 columns make narrow loads, or much of the other operand's traffic.
    return found if columns == 16 else [c for c in found if c.tile.block_n > 16]


def _tiles(product: Product, block_k: int) -> list[Tile]:
    index = list(GPUS).index(product.arch)
    found = []
    for (kernel, rows, columns), registers in REGISTERS.items():
        if kernel != product.kernel or registers[index] > 255:
            continue
        if product.element_size == 4 and (
            max(rows, columns) > 128 or (product.arch, rows, columns) == (100, 128, 32)
        ):
            continue  # float32 spills
        if product.border and rows * columns > math.prod(LARGEST_WITH_BORDER):
            continue
        large = rows * columns >= 128 * 128
        short = product.arch == 80 or kernel == "wgrad" or rows == columns == 128
        found.append(Tile(rows, columns, block_k, 8 if large else 4, 3 if short else 4))
    return found


def _splits(steps: int) -> list[int]:
    """Return counts of splits, of those of equal length the least."""
    found: dict[int, int] = {}
    for count in range(1, min(MOST_SPLITS, steps) + 1):
        found.setdefault(cdiv(steps, count), count)
    return list(found.values())
