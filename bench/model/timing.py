"""The modelled time of one kernel on a GPU, from its counts and the GPU's constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from bench.model.gpu import Gpu
from bench.model.kernels import Cost

# Tiles that a matrix library chooses from, rows x columns, with the programs that fit.
TILES = ((128, 256, 1), (256, 128, 1), (128, 128, 2), (64, 128, 2), (128, 64, 3), (64, 64, 5),
    (128, 32, 4), (64, 32, 6), (128, 16, 6))  # fmt: skip
_DEPTH = 64
_MOST_SPLITS = 64


class Gemm(NamedTuple):
    """A product of rows x depth by depth x columns."""

    rows: int
    columns: int
    depth: int


def microseconds(cost: Cost, gpu: Gpu) -> float:
    """Return a kernel's time with the gap after it.

    The time is the longest of four: the shortest kernel, the bytes of device memory, those of L2,
    and the products. Kernels without products never wait for L2.
    """
    moved = (cost.bytes_in + cost.bytes_out) / gpu.memory_tb_per_s / 1e6
    times = [gpu.shortest_us, moved]
    if cost.area:
        times.append(cost.l2_bytes / gpu.l2_tb_per_s / 1e6)
        times.append(waves(cost, gpu))
    return max(times) + gpu.gap_us


def waves(cost: Cost, gpu: Gpu) -> float:
    """Return the microseconds that the busiest multiprocessor needs for its programs.

    It takes them `resident` at a time; fewer at the end, with fewer accumulators in flight,
    reach less of its rate.
    """
    each = cost.flops / max(cost.programs, 1) / (gpu.tensor_tflops / gpu.multiprocessors) / 1e6
    full, rest = divmod(-(-cost.programs // gpu.multiprocessors), cost.resident)
    time = full * cost.resident * each / gpu.share_of_rate(cost.resident * cost.area)
    if rest:
        time += rest * each / gpu.share_of_rate(rest * cost.area)
    return time


def library_gemm(gemm: Gemm, gpu: Gpu, bytes_in: int, bytes_out: int) -> float:
    """Return the time of a product in bf16 with the best of `TILES` and of splits of the depth.

    Stands for what cuDNN, cuBLAS or max-autotune choose.
    """
    gpu = replace(gpu, tensor_tflops=gpu.library_tflops)
    return min(
        microseconds(replace(cost, l2_bytes=int(cost.l2_bytes * gpu.library_l2_share)), gpu)
        for cost in _tilings(gemm, bytes_in, bytes_out, _MOST_SPLITS * gpu.multiprocessors)
    )


def _tilings(gemm: Gemm, bytes_in: int, bytes_out: int, most: int) -> Iterator[Cost]:
    for block_m, block_n, fitting in TILES:
        tiles = -(-gemm.rows // block_m) * -(-gemm.columns // block_n)
        splits = 1
        while True:
            depth = -(-gemm.depth // splits // _DEPTH) * _DEPTH
            programs = tiles * splits
            flops = 2 * programs * block_m * block_n * depth
            loaded = programs * (block_m + block_n) * depth * 2
            partial = 0 if splits == 1 else 8 * splits * gemm.rows * gemm.columns
            l2_bytes = loaded + bytes_out + partial
            yield Cost(bytes_in, bytes_out + partial, l2_bytes, flops, programs, fitting,
                area=block_m * block_n)  # fmt: skip
            splits *= 2
            if programs >= most or depth <= 4 * _DEPTH:
                break
