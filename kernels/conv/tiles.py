"""Tile sizes of the matrix kernels: a table per architecture, and autotuning over it.

The table needs no device. On a GPU the candidates are timed once per layer shape and the winner
is kept on disk in Triton's cache folder; FASTUNIT_AUTOTUNE=0 goes by the table alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.cache import get_cache_manager

from fastunit.kernels.common import runtime

STREAMING_MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}  # A100, H100, B200
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes one program may use


@dataclass(frozen=True)
class Tile:
    """Output tile BLOCK_M x BLOCK_N, reduced BLOCK_K at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def launch_options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}

    def bytes_of_stages(self, element_size: int) -> int:
        return (self.block_m + self.block_n) * self.block_k * element_size * self.num_stages


def generation(arch: int) -> int:
    """Return the architecture of the tables that serves a compute capability."""
    return max((known for known in STREAMING_MULTIPROCESSORS if known <= arch), default=80)


def multiprocessors(x: Tensor) -> int:
    """Return how many programs run at a time; the interpreter runs one after another."""
    if runtime.INTERPRET:
        return 1
    return STREAMING_MULTIPROCESSORS[generation(runtime.arch(x.device))]


def choose(
    key: tuple[object, ...], candidates: Sequence[Tile], run: Callable[[Tile], object], x: Tensor
) -> Tile:
    """Return the fastest of the candidates, of which the first is the table's choice.

    Args:
        key: what the speed depends on: kernel, shapes, dtype.
        run: launches the kernel with a tile; called on candidates only where they are timed.
        x: an operand; says which device.

    While a CUDA graph is captured nothing is timed: a winner that is known, in memory or on disk,
    is taken there too, since the steps before the capture ran, and so loaded, it.
    """
    if len(candidates) == 1 or not _is_tuned(x):
        return candidates[0]
    with torch.cuda.device_of(x):
        store = _Store.of(torch.cuda.get_device_name(x.device))
        # A capture neither times nor loads kernels: it takes what the steps before it ran.
        capturing = torch.cuda.is_current_stream_capturing()
        return store.best(key, candidates, None if capturing else run)


def _is_tuned(x: Tensor) -> bool:
    on = os.environ.get("FASTUNIT_AUTOTUNE", "1") != "0"
    return x.is_cuda and not runtime.recording() and on


def filter_columns(channels: int) -> int:
    """Return the padded output channels of a filter buffer: no column tile needs a mask."""
    return next((wide for wide in (16, 32, 64) if channels <= wide), -(-channels // 128) * 128)


def gemm_candidates(
    x: Tensor, images: int, rows: int, channels: int, columns: int, run: int
) -> list[Tile]:
    """Return tiles for a product of `images` x `rows` windows; the table's choice first.

    Args:
        x: whose dtype and device count.
        images: of the batch.
        rows: windows of an image.
        channels: of the result.
        columns: its channels with padding.
        run: consecutive values of GEMM_K.
    """
    arch, deep = generation(runtime.arch(x.device)), _depth(x, run)

    def programs(tile: Tile) -> int:
        return images * -(-rows // tile.block_m) * -(-channels // tile.block_n)

    fitting = [t for t in _tiles(arch, deep, x.element_size()) if columns % t.block_n == 0]
    fitting = [t for t in fitting if t.bytes_of_stages(x.element_size()) <= SHARED_MEMORY[arch]]
    widest = max(t.block_n for t in fitting if t.block_n <= 128)
    table = [t for t in fitting if t.block_n == widest]
    # The largest tile that still gives every multiprocessor a program; else the smallest.
    table.sort(key=lambda t: -t.block_m * t.block_n)
    full = [t for t in table if programs(t) >= multiprocessors(x)]
    first = full[0] if full else table[-1]
    return [first, *(t for t in fitting if t != first)]


def _depth(x: Tensor, run: int) -> int:
    """Return BLOCK_K: 128 bytes of values, or the whole run where it is shorter."""
    return min(128 // x.element_size(), max(16, runtime.next_power_of_2(run)))


def _tiles(arch: int, block_k: int, element_size: int) -> list[Tile]:
    """Return the tiles that compile without spills (python bench/gpu/aot.py)."""
    stages = 3 if arch == 80 else 4
    found = [
        Tile(128, 128, block_k, 8, 3),
        Tile(64, 128, block_k, 4, stages),
        Tile(128, 64, block_k, 4, stages),
        Tile(64, 64, block_k, 4, stages),
        Tile(64, 32, block_k, 4, stages),
        Tile(128, 16, block_k, 4, stages),
        Tile(64, 16, block_k, 4, stages),
    ]
    if arch != 100 or element_size == 2:
        found.append(Tile(128, 32, block_k, 4, stages))
    if arch != 100 and element_size == 2:
        found.append(Tile(128, 256, block_k, 8, stages))
    return found


def wgrad_candidates(x: Tensor, run: int, channels: int) -> list[Tile]:
    """Return tiles of (run, channels, pixels) for the filters' gradient; the table's first."""
    arch = generation(runtime.arch(x.device))
    deep = 128 // x.element_size()
    rows = 128 if run > 64 else 64  # fewer rows than 64 would not use wgmma
    columns = min(128, max(16, runtime.next_power_of_2(channels)))
    # float32 spills at 128 x 64 with four warps (sm_100).
    warps = 8 if rows * columns * x.element_size() >= 128 * 128 * 2 else 4
    first = Tile(rows, columns, deep, warps, 3)
    others = [Tile(64, min(columns, 64), deep, 4, 3), Tile(64, columns, deep, 4, 4)]
    if arch != 80:
        others.append(Tile(rows, columns, deep, warps, 4))
    return [first, *(t for t in dict.fromkeys(others) if t != first)]


def split_pixels(x: Tensor, pixels: int, programs: int, block: int, largest: int) -> int:
    """Return the pixels of one split: two programs a multiprocessor, at least eight blocks long.

    It is a multiple of `block`, and at most `largest`, within which int32 offsets reach.
    """
    blocks = -(-pixels // block)
    splits = max(1, min(-(-2 * multiprocessors(x) // programs), blocks // 8))
    return min(-(-blocks // splits), largest // block) * block


class _Store:
    """The winners of one GPU model, in memory and in a JSON file of Triton's cache."""

    FILE = "fastunit-tiles.json"

    def __init__(self, gpu: str) -> None:
        digest = hashlib.sha256(f"{gpu} triton {triton.__version__}".encode()).hexdigest()
        self._cache = get_cache_manager(digest)
        self._winners: dict[str, list[int]] = {}
        if path := self._cache.get_file(self.FILE):
            with open(path, encoding="utf-8") as file:
                self._winners = json.load(file)

    @staticmethod
    @functools.cache
    def of(gpu: str) -> _Store:
        return _Store(gpu)

    def best(
        self,
        key: tuple[object, ...],
        candidates: Sequence[Tile],
        run: Callable[[Tile], object] | None,
    ) -> Tile:
        """Return the winner, timing the candidates where none is known.

        Without `run` nothing is timed, and the first candidate is taken where none is known.
        """
        name = json.dumps([str(part) for part in key])
        known = self._winners.get(name)
        if known is None or Tile(*known) not in candidates:
            if run is None:
                return candidates[0]
            times = {tile: _time(run, tile) for tile in candidates}
            self._winners[name] = list(asdict(min(times, key=times.__getitem__)).values())
            self._cache.put(json.dumps(self._winners), self.FILE, binary=False)
        return Tile(*self._winners[name])


def _time(run: Callable[[Tile], object], tile: Tile) -> float:
    """Return the median time in ms; infinity for a tile that does not fit the GPU."""
    try:
        timed: Any = triton.testing.do_bench(  # has no types; one statistic is a float
            lambda: run(tile), warmup=5, rep=20, return_mode="median"
        )
        return timed
    except triton.runtime.errors.OutOfResources:
        return float("inf")
