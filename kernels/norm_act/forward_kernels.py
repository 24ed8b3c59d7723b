"""Forward kernels of a block's options on channels-last images, and what the backward ones share.

Statistics of tiles of pixels (unless a convolution's epilogue made them), and one pass that
normalises, activates, adds the residual and writes the halo that the next convolution
reads. A tile is BLOCK_M pixels of one sample by BLOCK_C channels. Everything is accumulated in
fp32, in a fixed order, without atomics; offsets within a sample are int32.
"""

# Kernels call kernels, and `triton.jit` is typed as if these calls never returned.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from fastunit.kernels.common.activations import activate
from fastunit.kernels.common.dependent import wait_for_previous
from fastunit.kernels.common.runtime import COUNTS
from fastunit.kernels.norm_act.merge_kernels import finish_statistics


@triton.jit
def locate(tiles, tiles_c, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return this program's sample (int64), tile, pixels and channels."""
    pid = tl.program_id(0)
    offs_c = (pid % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    tile = (pid // tiles_c) % tiles
    sample = (pid // tiles_c // tiles).to(tl.int64)
    return sample, tile, tile * BLOCK_M + tl.arange(0, BLOCK_M), offs_c


@triton.jit
def source(i, size, halo, reflects):
    """Return which of `size` lines the padded line i, from -halo, copies, and whether any.

    It is the nearest line, or if `reflects` the one as far behind that as i is before it. A halo
    of zeros is none here, 0. At run time, so that padding modes share a variant.
    """
    inside = (i >= -halo) & (i < size + halo)
    nearest = tl.minimum(tl.maximum(i, 0), size - 1)
    return nearest + (nearest - i) * reflects, inside


@triton.jit
def load_row(ptr, sample, samples_per_row, C, offs_c):
    """Load channels of the row [C] of a parameter [G, C] that belongs to a sample."""
    row = sample // samples_per_row
    return tl.load(ptr + row * C + offs_c, mask=offs_c < C, other=0.0).to(tl.float32)[None, :]


@triton.jit
def normalise(x, mean_ptr, rstd_ptr, sample, C, offs_c):
    """Return xhat; x itself without statistics."""
    if mean_ptr is not None:
        mean = load_row(mean_ptr, sample, 1, C, offs_c)
        x = (x - mean) * load_row(rstd_ptr, sample, 1, C, offs_c)
    return x


@triton.jit
def affine(xhat, gamma_ptr, beta_ptr, samples_per_gamma, samples_per_beta, sample, C, offs_c):
    if gamma_ptr is not None:
        xhat = xhat * load_row(gamma_ptr, sample, samples_per_gamma, C, offs_c)
    if beta_ptr is not None:
        xhat += load_row(beta_ptr, sample, samples_per_beta, C, offs_c)
    return xhat


@triton.jit
def load_slope(slope, slope_ptr, slope_step, C, offs_c):
    """Return lrelu's slope, or prelu's per channel."""
    if slope_ptr is not None:
        slope = tl.load(slope_ptr + offs_c * slope_step, mask=offs_c < C, other=0.0)
        slope = slope.to(tl.float32)[None, :]
    return slope


@triton.jit(do_not_specialize=COUNTS)
def statistics_kernel(
    x_ptr,  # [N, H, W, C], any strides
    partial_ptr,  # [N, tiles, 3, C] fp32: mean, M2 and count
    mean_ptr,  # [N, C] fp32, which the last program of an image writes if it `merges`
    rstd_ptr,
    counter_ptr,  # zeros; see `is_last`
    pixels,
    W,
    C,
    stride_xn,
    stride_xh,
    stride_xw,
    stride_xc,
    tiles,
    tiles_c,
    eps,
    merges,
    NORM: tl.constexpr,
    MERGE_T: tl.constexpr,
    MERGE_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    wait_for_previous()
    sample, tile, offs_m, offs_c = locate(tiles, tiles_c, BLOCK_M, BLOCK_C)
    in_c = offs_c < C
    mask = (offs_m < pixels)[:, None] & in_c[None, :]
    x_sample = x_ptr + sample * stride_xn
    offs_x = (offs_m // W) * stride_xh + (offs_m % W) * stride_xw
    x = tl.load(x_sample + offs_x[:, None] + (offs_c * stride_xc)[None, :], mask=mask, other=0.0)
    # From the tile's first pixel, so that a mean far above the spread costs no digits.
    first = tile * BLOCK_M
    offs_first = (first // W) * stride_xh + (first % W) * stride_xw + offs_c * stride_xc
    origin = tl.load(x_sample + offs_first, mask=in_c, other=0.0).to(tl.float32)
    count = tl.minimum(pixels - first, BLOCK_M).to(tl.float32)
    x = tl.where(mask, x.to(tl.float32) - origin[None, :], 0.0)
    shift = tl.sum(x, 0) / count
    x = tl.where(mask, x - shift[None, :], 0.0)
    partial_ptrs = partial_ptr + (sample * tiles + tile) * 3 * C + offs_c
    tl.store(partial_ptrs, origin + shift, mask=in_c)
    tl.store(partial_ptrs + C, tl.sum(x * x, 0), mask=in_c)
    tl.store(partial_ptrs + 2 * C, tl.zeros_like(shift) + count, mask=in_c)
    if merges != 0:
        finish_statistics(
            partial_ptr,
            mean_ptr,
            rstd_ptr,
            counter_ptr,
            sample,
            tiles,
            tl.program_id(0) % tiles_c,
            tiles_c,
            tiles,
            C,
            eps,
            NORM,
            MERGE_T,
            MERGE_C,
        )


@triton.jit(do_not_specialize=COUNTS)
def fprop_kernel(
    x_ptr,  # [N, H, W, C], any strides
    residual_ptr,  # [N, H, W, C], any strides, or None
    mean_ptr,  # [N, C] fp32, or None
    rstd_ptr,  # [N, C] fp32, or None
    gamma_ptr,  # [G, C], or None
    beta_ptr,  # [G, C], or None
    slope_ptr,  # [1] or [C], or None
    y_ptr,  # [N, pixels, pitch], rows of `width` pixels
    H,
    W,
    C,
    stride_xn,
    stride_xh,
    stride_xw,
    stride_xc,
    stride_rn,
    stride_rh,
    stride_rw,
    stride_rc,
    samples_per_gamma,
    samples_per_beta,
    slope_step,
    slope,
    halo,  # as in `source`
    reflects,
    lead,
    pixels,
    width,
    pitch_v,  # in units of VEC channels
    tiles,
    tiles_c,
    ACT: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    wait_for_previous()
    sample, _, offs_m, offs_c = locate(tiles, tiles_c, BLOCK_M, BLOCK_C)
    h, in_h = source(offs_m // width - lead, H, halo, reflects)
    w, in_w = source(offs_m % width - lead, W, halo, reflects)
    mask = (in_h & in_w)[:, None] & (offs_c < C)[None, :]
    offs_x = (h * stride_xh + w * stride_xw)[:, None] + (offs_c * stride_xc)[None, :]
    y = tl.load(x_ptr + sample * stride_xn + offs_x, mask=mask, other=0.0).to(tl.float32)
    y = normalise(y, mean_ptr, rstd_ptr, sample, C, offs_c)
    y = affine(y, gamma_ptr, beta_ptr, samples_per_gamma, samples_per_beta, sample, C, offs_c)
    y = activate(y, load_slope(slope, slope_ptr, slope_step, C, offs_c), ACT)
    if residual_ptr is not None:
        offs_r = (h * stride_rh + w * stride_rw)[:, None] + (offs_c * stride_rc)[None, :]
        residual = tl.load(residual_ptr + sample * stride_rn + offs_r, mask=mask, other=0.0)
        y += residual.to(tl.float32)
    y = tl.where(mask, y, 0.0)
    pitch = pitch_v * VEC
    y_ptrs = y_ptr + sample * pixels * pitch + (offs_m * pitch)[:, None] + offs_c[None, :]
    stored = (offs_m < pixels)[:, None] & (offs_c < pitch)[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=stored)
