"""What a tile costs: a model of a GPU's multiprocessors and its L2 cache. Needs no GPU.

A multiprocessor runs as many programs at a time as its registers and shared memory hold; the one
with the most programs ends last. Every program loads the operands of its steps through the L2
cache, so that large tiles move fewer bytes. The splits of a filter's gradient are summed by the
last program of each tile, alone. The rates are assumptions; only their ratios decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton

from fastunit.kernels.common.optional_triton import AVAILABLE
from fastunit.kernels.common.runtime import cdiv

REGISTERS_OF_MULTIPROCESSOR = 65536
PAUSE = 0.1  # µs at the end of a step in which a program alone leaves the tensor cores idle
EDGE = 1.5  # µs of a program before its first product and after its last
VALUES_OF_SUM = 16  # of splits that a thread loads at a time: more take registers from the product
LATENCY = 0.6  # µs of such a load from the L2 cache
EXPOSED = 0.1  # share of the shorter of arithmetic and loads that the longer does not hide


@dataclass(frozen=True)
class Gpu:
    """A GPU's size, and rates per µs in bf16."""

    multiprocessors: int
    shared: int  # bytes of shared memory that one program may use; 1 KiB more are there
    flops: float  # of one multiprocessor with busy tensor cores
    l2: float  # bytes from the L2 cache to all multiprocessors
    memory: float  # bytes to or from memory


GPUS = {  # by compute capability times ten: A100, H100, B200
    80: Gpu(108, 163 << 10, 2.3e6, 4.5e6, 1.6e6),
    90: Gpu(132, 227 << 10, 6.1e6, 7.0e6, 2.9e6),
    100: Gpu(148, 227 << 10, 11.5e6, 10e6, 7e6),
}


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

    def bytes_of_step(self, element_size: int) -> int:
        return (self.block_m + self.block_n) * self.block_k * element_size

    def shared(self, arch: int, element_size: int) -> int:
        """Return the bytes of shared memory that the pipeline of a program takes."""
        buffers = self.num_stages - (arch == 80)
        return self.bytes_of_step(element_size) * buffers

    def sum_rows(self) -> int:
        """Return the rows of a filter's gradient whose splits are summed at a time."""
        return min(self.block_m, VALUES_OF_SUM * 32 * self.num_warps // self.block_n)

    def time_of_sum(self, splits: int) -> float:
        """Return the µs in which a tile's last program sums its splits."""
        loaded = splits * self.block_m * self.block_n / (VALUES_OF_SUM * 32 * self.num_warps)
        return loaded * LATENCY if splits > 1 else 0.0


class Product(NamedTuple):
    """A matrix product as its tiles see it: `results` matrices of rows x columns.

    Each value is a sum over `runs` times `run` values; the sums of a filter's gradient may be
    split. With the GPU it is all that the choice of a tile depends on.
    """

    kernel: str  # "conv_gemm" or "wgrad"
    arch: int  # of GPUS
    multiprocessors: int
    element_size: int
    precision: str  # of float32: "ieee" or "tf32"
    results: int
    rows: int
    columns: int
    runs: int
    run: int
    border: bool = False  # whether corrections are added along it

    def programs(self, tile: Tile) -> int:
        """Return the programs of one split."""
        by_columns = cdiv(self.columns, tile.block_n)
        return self.results * cdiv(self.rows, tile.block_m) * by_columns

    def steps(self, tile: Tile, splits: int = 1) -> int:
        """Return the steps of a program, BLOCK_K values each."""
        return cdiv(self.runs * cdiv(self.run, tile.block_k), splits)


class Choice(NamedTuple):
    """A tile, and into how many parts the sums are split."""

    tile: Tile
    splits: int = 1


# The tiles: registers per thread of the largest variant without a border correction, for GPUS'
# architectures in order, as bench.gpu.aot compiles them; 256 where one spills in its loop.
REGISTERS: dict[tuple[str, int, int], tuple[int, int, int]] = {
    ("conv_gemm", 256, 128): (256, 240, 256),
    ("conv_gemm", 128, 128): (254, 128, 176),
    ("conv_gemm", 128, 64): (254, 185, 208),
    ("conv_gemm", 64, 64): (130, 96, 96),
    ("conv_gemm", 128, 32): (199, 120, 162),
    ("conv_gemm", 128, 16): (96, 64, 56),
    ("wgrad", 128, 256): (255, 216, 240),
    ("wgrad", 128, 128): (214, 128, 128),
    ("wgrad", 64, 64): (168, 143, 128),
    ("wgrad", 128, 32): (222, 200, 134),
    ("wgrad", 128, 16): (200, 156, 128),
}
if AVAILABLE and triton.__version__.startswith("3.6."):  # which needs more for some
    REGISTERS |= {
        ("conv_gemm", 128, 128): (255, 128, 220),
        ("conv_gemm", 128, 64): (254, 254, 208),
        ("wgrad", 128, 128): (168, 173, 167),
        ("wgrad", 64, 64): (174, 138, 136),
    }


def resident(product: Product, tile: Tile) -> int:
    """Return how many programs a multiprocessor runs at a time; 0 for a tile that does not fit."""
    gpu = GPUS[product.arch]
    shared = tile.shared(product.arch, product.element_size)
    if shared > gpu.shared:
        return 0
    found = REGISTERS[product.kernel, tile.block_m, tile.block_n]
    registers = cdiv(found[list(GPUS).index(product.arch)], 8) * 8
    by_registers = REGISTERS_OF_MULTIPROCESSOR // (32 * tile.num_warps * registers)
    return min(by_registers, (gpu.shared + 1024) // (shared + 1024))


def cost(product: Product, choice: Choice) -> float:
    """Return the modelled time of a product in µs; infinity for a tile that does not fit."""
    gpu, (tile, splits) = GPUS[product.arch], choice
    fit = resident(product, tile)
    if not fit:
        return float("inf")
    steps, programs = product.steps(tile, splits), product.programs(tile) * splits
    step = 2 * tile.block_m * tile.block_n * tile.block_k / _rate(gpu, product, tile)

    def together(count: int) -> float:
        return steps * max(count * step, step + PAUSE) + EDGE if count else 0.0

    most = cdiv(programs, product.multiprocessors)
    busy = most // fit * together(fit) + together(most % fit)
    moved = programs * steps * tile.bytes_of_step(product.element_size) / gpu.l2
    total = max(busy, moved) + EXPOSED * min(busy, moved)
    return total + tile.time_of_sum(splits) if product.kernel == "wgrad" else total


def waves(product: Product, choice: Choice) -> float:
    """Return how often the programs fill the GPU's multiprocessors."""
    slots = resident(product, choice.tile) * product.multiprocessors
    return product.programs(choice.tile) * choice.splits / slots


def _rate(gpu: Gpu, product: Product, tile: Tile) -> float:
    """Return the FLOPs per µs of one multiprocessor that is busy with a tile."""
    # Four warps multiply 64 rows by the columns: operands come from shared memory, 128 bytes a
    # clock, of which the rows' are read anew for each tile's columns.
    columns = min(1.0, 2 * tile.block_n / (64 + tile.block_n))
    of_type = 1.0
    if product.element_size == 4:
        of_type = 1 / 2 if product.precision == "tf32" else 1 / 16
    return gpu.flops * columns * of_type
