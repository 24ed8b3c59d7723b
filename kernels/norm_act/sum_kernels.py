"""Sums over tiles or samples by one program, many at a time, in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sum_tiles(ptrs, in_c, tiles, stride, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the sum over tiles, `stride` values apart, in order.

    Past the L1 cache: other programs of the same launch may have stored them; see `is_last`.
    """
    offs_t = tl.arange(0, BLOCK_T)
    tile_ptrs = ptrs[None, :] + (offs_t * stride)[:, None]
    acc = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, tiles, BLOCK_T):
        mask = (offs_t < tiles - start)[:, None] & in_c[None, :]
        acc += tl.sum(tl.load(tile_ptrs, mask=mask, other=0.0, cache_modifier=".cg"), 0)
        tile_ptrs += BLOCK_T * stride
    return acc
