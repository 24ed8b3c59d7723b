"""A GPU's measured ceilings: the rate of a large matmul and the bandwidth of a large copy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

_SIZE = 8192  # rows of the square matrices
_COPIED = 2**28  # float32: 1 GiB


class Ceilings(NamedTuple):
    """`tflop_per_s` of bf16 matmuls with fp32 accumulation; `gb_per_s` read plus written."""

    tflop_per_s: float
    gb_per_s: float

    def seconds(self, flops: float, moved_bytes: float) -> float:
        """Return the least seconds of a kernel with these FLOPs and bytes."""
        return max(flops / self.tflop_per_s / 1e12, moved_bytes / self.gb_per_s / 1e9)


_given: list[Ceilings] = []


def use(ceilings: Ceilings) -> None:
    """Make `measured` return these, measured by another process on the same GPU."""
    _given[:] = [ceilings]


def measured() -> Ceilings:
    """Return the GPU's ceilings, measured once per process unless `use` has set them."""
    return _given[0] if _given else _measure()


@functools.cache
def _measure() -> Ceilings:
    found = Ceilings(_matmul_tflop_per_s(), _copy_gb_per_s())
    torch.cuda.empty_cache()  # for the next measurements, also in other processes
    return found


def _matmul_tflop_per_s() -> float:
    a, b = torch.randn(2, _SIZE, _SIZE, device="cuda", dtype=torch.bfloat16)
    return 2 * _SIZE**3 / _milliseconds(lambda: a @ b) / 1e9


def _copy_gb_per_s() -> float:
    source = torch.randn(_COPIED, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / _milliseconds(lambda: target.copy_(source)) / 1e6


def _milliseconds(work: Callable[[], object]) -> float:
    import triton

    return triton.testing.do_bench(work, warmup=200, rep=500, return_mode="median")
