"""Sums of parameters' gradients over the samples of a row, by the program of its last sample."""

# Kernels call kernels, and `triton.jit` is typed as if these calls never returned.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from fastunit.kernels.common.last_program import is_last
from fastunit.kernels.norm_act.sum_kernels import sum_tiles


@triton.jit
def _add_row(
    from_ptrs,
    stride,
    to_ptrs,
    count,
    add,
    mask,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the sum over `count` samples, `stride` values apart, in order; or add it."""
    total = sum_tiles(from_ptrs, mask, count, stride, BLOCK_T, BLOCK_C)
    total += tl.load(to_ptrs, mask=mask & (add != 0), other=0.0).to(tl.float32)
    tl.store(to_ptrs, total.to(to_ptrs.dtype.element_ty), mask=mask)


@triton.jit
def finish_rows(
    total_ptr,  # [N, SUMS, C] fp32
    coefficient_ptr,  # [N, 3, C] fp32
    dbeta_ptr,  # [G, C]; these three are written where `wanted` has their bits, 1, 2 and 4
    dgamma_ptr,
    dshift_ptr,
    stride_beta,  # between rows
    stride_gamma,
    stride_shift,
    counter_ptr,  # zeros [G, tiles of channels]; see `is_last`
    slot,  # this program's tile of channels, of `slots`
    slots,
    sample,
    offs_c,
    C,
    samples_per_row,
    wanted,
    add,
    SUMS: tl.constexpr,
    BLOCK_T: tl.constexpr,  # samples read at a time
    BLOCK_C: tl.constexpr,
):
    """Sum the parameters' gradients over a row's samples, if this is the last of them."""
    row = sample // samples_per_row
    if is_last(counter_ptr + row * slots + slot, samples_per_row):
        first, count, in_c = row.to(tl.int64) * samples_per_row, samples_per_row, offs_c < C
        totals, step = total_ptr + first * SUMS * C + offs_c, SUMS * C
        if wanted % 2 == 1:
            to = dbeta_ptr + row * stride_beta + offs_c
            _add_row(totals, step, to, count, add, in_c, BLOCK_T, BLOCK_C)
        if wanted // 2 % 2 == 1:
            to = dgamma_ptr + row * stride_gamma + offs_c
            _add_row(totals + C, step, to, count, add, in_c, BLOCK_T, BLOCK_C)
        if wanted // 4 == 1:
            to = dshift_ptr + row * stride_shift + offs_c
            dshift = coefficient_ptr + (first * 3 + 2) * C + offs_c
            _add_row(dshift, 3 * C, to, count, add, in_c, BLOCK_T, BLOCK_C)
