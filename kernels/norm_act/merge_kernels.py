"""Merges of tiles' partial results: statistics in forward, sums of gradients in backward.

Where an image has few tiles, the program that finishes last merges them, in the order of the
tiles and not of the programs, so that the same inputs give the same bits; a launch is saved. Where
it has many, one program would take longer than a launch does: then the merge is a kernel of its
own (`FEW_TILES` in launch.py).
"""

# Kernels call kernels, and `triton.jit` is typed as if these calls never returned.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from fastunit.kernels.common.dependent import wait_for_previous
from fastunit.kernels.common.last_program import is_last
from fastunit.kernels.common.runtime import COUNTS
from fastunit.kernels.norm_act.row_kernels import finish_rows
from fastunit.kernels.norm_act.sum_kernels import sum_tiles


@triton.jit
def finish_statistics(
    partial_ptr,  # [N, tiles, 3, C] fp32: mean, M2 and count
    mean_ptr,  # [N, C] fp32
    rstd_ptr,  # [N, C] fp32
    counter_ptr,  # zeros: [N, tiles_c], or for "ln" [N]
    sample,
    programs,  # of a sample and a tile of channels
    tile_c,
    tiles_c,
    tiles,
    C,
    eps,
    NORM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,  # the channels of a tile; for "ln" all
):
    """Merge an image's tiles, if this is the last program that made one of them."""
    slot, first = sample * tiles_c + tile_c, tile_c * BLOCK_C
    if NORM == "ln":
        slot, first, programs = sample, 0, programs * tiles_c
    if is_last(counter_ptr + slot, programs):
        offs_c = first + tl.arange(0, BLOCK_C)
        merge_statistics(
            partial_ptr, mean_ptr, rstd_ptr, sample, offs_c, tiles, C, eps, NORM, BLOCK_T, BLOCK_C
        )


@triton.jit
def merge_statistics(
    partial_ptr,
    mean_ptr,
    rstd_ptr,
    sample,
    offs_c,
    tiles,
    C,
    eps,
    NORM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge (mean, M2, count) of tiles as Chan et al. (1983) do, in order; count may be 0."""
    offs_t = tl.arange(0, BLOCK_T)
    in_c = offs_c < C
    first_ptrs = partial_ptr + sample.to(tl.int64) * tiles * 3 * C + offs_c
    partial_ptrs = first_ptrs[None, :] + (offs_t * 3 * C)[:, None]
    mean = tl.load(first_ptrs, mask=in_c & (tiles > 0), other=0.0, cache_modifier=".cg")
    count = tl.zeros((BLOCK_C,), tl.float32)
    m2 = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, tiles, BLOCK_T):
        mask = (offs_t < tiles - start)[:, None] & in_c[None, :]
        count_t = tl.load(partial_ptrs + 2 * C, mask=mask, other=0.0, cache_modifier=".cg")
        delta = tl.load(partial_ptrs, mask=mask, other=0.0, cache_modifier=".cg") - mean[None, :]
        m2_t = tl.load(partial_ptrs + C, mask=mask, other=0.0, cache_modifier=".cg")
        delta = tl.where(count_t > 0, delta, 0.0)  # an empty tile's mean may be anything
        m2_t = tl.where(count_t > 0, m2_t, 0.0)
        total = count + tl.sum(count_t, 0)
        shift = tl.sum(count_t * delta, 0) / tl.maximum(total, 1.0)
        delta -= shift[None, :]
        m2 += tl.sum(m2_t + count_t * delta * delta, 0) + count * shift * shift
        mean += shift
        count = total
        partial_ptrs += BLOCK_T * 3 * C
    if NORM == "ln":
        total = tl.sum(count, 0)
        centre = tl.sum(count * mean, 0) / tl.maximum(total, 1.0)
        m2 = tl.sum(m2 + count * (mean - centre) * (mean - centre), 0)
        mean = tl.zeros((BLOCK_C,), tl.float32) + centre
        rstd = tl.zeros((BLOCK_C,), tl.float32) + 1.0 / (tl.sqrt(m2 / (total - 1.0)) + eps)
    else:
        rstd = 1.0 / tl.sqrt(m2 / tl.maximum(count, 1.0) + eps)
    offs = sample.to(tl.int64) * C + offs_c
    tl.store(mean_ptr + offs, mean, mask=in_c)
    tl.store(rstd_ptr + offs, rstd, mask=in_c)


@triton.jit(do_not_specialize=COUNTS)
def merge_kernel(
    partial_ptr,  # [N, tiles, 3, C] fp32
    mean_ptr,  # [N, C] fp32
    rstd_ptr,  # [N, C] fp32
    tiles,
    C,
    tiles_c,
    eps,
    NORM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    wait_for_previous()
    sample = tl.program_id(0) // tiles_c
    offs_c = (tl.program_id(0) % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    merge_statistics(
        partial_ptr, mean_ptr, rstd_ptr, sample, offs_c, tiles, C, eps, NORM, BLOCK_T, BLOCK_C
    )


@triton.jit
def merge_sums(
    sums_ptr,  # [N, tiles, SUMS, C] fp32
    rstd_ptr,  # [N, C] fp32, read if `normed`; or None
    gamma_ptr,  # [G, C], or None
    total_ptr,  # [N, SUMS, C] fp32
    coefficient_ptr,  # [N, 3, C] fp32: b, c and the sum of dx
    normed,  # if there is a norm
    sample,
    offs_c,
    tiles,
    C,
    pixels,  # of the image
    samples_per_gamma,
    eps,
    tiny,
    LN: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the sums over a sample's tiles, and the coefficients of dx (derived in aten.py)."""
    sample = sample.to(tl.int64)
    in_c = offs_c < C
    sums_ptrs = sums_ptr + sample * tiles * SUMS * C + offs_c
    total_ptrs = total_ptr + sample * SUMS * C + offs_c
    coefficient_ptrs = coefficient_ptr + sample * 3 * C + offs_c
    dpre = sum_tiles(sums_ptrs, in_c, tiles, SUMS * C, BLOCK_T, BLOCK_C)
    dpre_xhat = sum_tiles(sums_ptrs + C, in_c, tiles, SUMS * C, BLOCK_T, BLOCK_C)
    tl.store(total_ptrs, dpre, mask=in_c)
    tl.store(total_ptrs + C, dpre_xhat, mask=in_c)
    for extra in tl.static_range(2, SUMS):
        total = sum_tiles(sums_ptrs + extra * C, in_c, tiles, SUMS * C, BLOCK_T, BLOCK_C)
        tl.store(total_ptrs + extra * C, total, mask=in_c)

    gamma = tl.full((BLOCK_C,), 1.0, tl.float32)
    rstd = tl.full((BLOCK_C,), 1.0, tl.float32)
    if gamma_ptr is not None:
        row = gamma_ptr + (sample // samples_per_gamma) * C
        gamma = tl.load(row + offs_c, mask=in_c, other=0.0).to(tl.float32)
    if rstd_ptr is not None:
        rstd = tl.load(rstd_ptr + sample * C + offs_c, mask=in_c & (normed != 0), other=1.0)
    if LN:
        count = pixels * 1.0 * C
        std = 1.0 / rstd - eps
        b = rstd * (tl.sum(gamma * dpre, 0) / count)
        c = tl.sum(gamma * dpre_xhat, 0) / ((count - 1.0) * std)
        c = tl.where(std > tiny, c, 0.0)
        xhat = sum_tiles(sums_ptrs + 2 * C, in_c, tiles, SUMS * C, BLOCK_T, BLOCK_C)
        tl.store(coefficient_ptrs, b, mask=in_c)
        tl.store(coefficient_ptrs + C, c, mask=in_c)
        dshift = rstd * gamma * dpre - b * pixels - c * xhat
        tl.store(coefficient_ptrs + 2 * C, dshift, mask=in_c)
    else:  # nobody reads b and c without a norm; with one, dx sums to zero
        tl.store(coefficient_ptrs, rstd * gamma * dpre / pixels, mask=in_c)
        tl.store(coefficient_ptrs + C, rstd * gamma * dpre_xhat / pixels, mask=in_c)
        dshift = tl.where(normed != 0, 0.0, gamma * dpre)
        tl.store(coefficient_ptrs + 2 * C, dshift, mask=in_c)


@triton.jit(do_not_specialize=COUNTS)
def backward_merge_kernel(
    sums_ptr,  # [N, tiles, SUMS, C] fp32
    rstd_ptr,  # [N, C] fp32, read if `normed`
    gamma_ptr,  # [G, C], or None
    total_ptr,  # [N, SUMS, C] fp32
    coefficient_ptr,  # [N, 3, C] fp32
    normed,
    dbeta_ptr,  # these to counter_ptr: see `finish_rows`
    dgamma_ptr,
    dshift_ptr,
    stride_beta,
    stride_gamma,
    stride_shift,
    counter_ptr,
    samples_per_row,
    wanted,
    add,
    tiles,
    C,
    pixels,
    samples_per_gamma,
    eps,
    tiny,
    tiles_c,
    LN: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    wait_for_previous()
    sample = tl.program_id(0) // tiles_c
    offs_c = (tl.program_id(0) % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    merge_sums(
        sums_ptr,
        rstd_ptr,
        gamma_ptr,
        total_ptr,
        coefficient_ptr,
        normed,
        sample,
        offs_c,
        tiles,
        C,
        pixels,
        samples_per_gamma,
        eps,
        tiny,
        LN,
        SUMS,
        BLOCK_T,
        BLOCK_C,
    )
    if wanted != 0:
        finish_rows(
            total_ptr,
            coefficient_ptr,
            dbeta_ptr,
            dgamma_ptr,
            dshift_ptr,
            stride_beta,
            stride_gamma,
            stride_shift,
            counter_ptr,
            tl.program_id(0) % tiles_c,
            tiles_c,
            sample,
            offs_c,
            C,
            samples_per_row,
            wanted,
            add,
            SUMS,
            BLOCK_T,
            BLOCK_C,
        )
