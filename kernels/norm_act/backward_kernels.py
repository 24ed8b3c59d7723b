"""Backward kernels of a block's options on channels-last images.

Sums over tiles of pixels, merged into the coefficients of ``dx = a * dpre - b - c * xhat``
(derived in `norm_act_aten`), and one pass that writes dx. The halo's gradient is folded where it
is read: the sums need no fold, since a padded pixel j of source i counts as dy[j] * f(x[i]); dx
gathers the copies of each pixel. A second gradient, of the image without its halo, is added where
given: that of a residual connection. Accumulation and order are as in `forward_kernels`.
"""

# Kernels call kernels, and `triton.jit` is typed as if these calls never returned.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from fastunit.kernels.common.activations import SELU_ALPHA, SELU_SCALE
from fastunit.kernels.common.dependent import wait_for_previous
from fastunit.kernels.common.last_program import is_last
from fastunit.kernels.common.runtime import COUNTS
from fastunit.kernels.norm_act.forward_kernels import (
    affine,
    load_row,
    load_slope,
    locate,
    normalise,
    source,
)
from fastunit.kernels.norm_act.merge_kernels import merge_sums
from fastunit.kernels.norm_act.row_kernels import finish_rows


@triton.jit
def activate_backward(dy, pre, slope, ACT: tl.constexpr, FROM_OUTPUT: tl.constexpr):
    """Return dy * act'(pre); with FROM_OUTPUT, pre holds act's result."""
    if ACT == "relu":
        return tl.where(pre <= 0, 0.0, dy)
    elif ACT == "lrelu" or ACT == "prelu":
        return tl.where(pre > 0, dy, dy * slope)
    elif ACT == "selu":
        if FROM_OUTPUT:
            below = pre + SELU_SCALE * SELU_ALPHA
        else:
            below = SELU_SCALE * SELU_ALPHA * tl.exp(tl.where(pre > 0, 0.0, pre))
        return dy * tl.where(pre > 0, SELU_SCALE, below)
    elif ACT == "tanh":
        if FROM_OUTPUT:
            return dy * (1.0 - pre * pre)
        e = tl.exp(-2.0 * tl.abs(pre))  # 1 - tanh^2 would cancel
        return dy * (4.0 * e / ((1.0 + e) * (1.0 + e)))
    else:
        return dy


@triton.jit(do_not_specialize=COUNTS)
def backward_reduce_kernel(
    dy_ptr,  # [N, H + 2 * halo, W + 2 * halo, C], channel stride 1
    x_ptr,  # [N, H, W, C], any strides
    mean_ptr,  # [N, C] fp32, or None
    rstd_ptr,  # [N, C] fp32, or None
    gamma_ptr,  # [G, C], or None
    beta_ptr,  # [G, C], or None
    slope_ptr,  # [1] or [C], or None
    more_ptr,  # [N, H, W, C], channel stride 1: a gradient of the image itself, if `adds`
    sums_ptr,  # [N, tiles, SUMS, C] fp32: of dpre, dpre * xhat, "ln": xhat, prelu: its slope
    total_ptr,  # [N, SUMS, C] fp32, which the last program of an image writes if it `merges`
    coefficient_ptr,  # [N, 3, C] fp32
    counter_ptr,  # zeros; see `is_last`
    dbeta_ptr,  # these to `add`: see `finish_rows`
    dgamma_ptr,
    dshift_ptr,
    stride_beta,
    stride_gamma,
    stride_shift,
    row_counter_ptr,
    samples_per_row,
    wanted,
    add,
    H,
    W,
    C,
    stride_dyn,
    stride_dyh,
    stride_dyw,
    stride_mn,
    stride_mh,
    stride_mw,
    adds,
    stride_xn,
    stride_xh,
    stride_xw,
    stride_xc,
    samples_per_gamma,
    samples_per_beta,
    slope_step,
    slope,
    halo,  # as in `source`
    reflects,
    tiles,
    tiles_c,
    eps,
    tiny,
    merges,
    MERGE_T: tl.constexpr,
    MERGE_C: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    wait_for_previous()
    sample, tile, offs_m, offs_c = locate(tiles, tiles_c, BLOCK_M, BLOCK_C)
    row = offs_m // (W + 2 * halo)
    column = offs_m % (W + 2 * halo)
    h, _ = source(row - halo, H, halo, reflects)
    w, _ = source(column - halo, W, halo, reflects)
    in_c = offs_c < C
    mask = (row < H + 2 * halo)[:, None] & in_c[None, :]
    offs_x = (h * stride_xh + w * stride_xw)[:, None] + (offs_c * stride_xc)[None, :]
    xhat = tl.load(x_ptr + sample * stride_xn + offs_x, mask=mask, other=0.0).to(tl.float32)
    offs_dy = (row * stride_dyh + column * stride_dyw)[:, None] + offs_c[None, :]
    dy = tl.load(dy_ptr + sample * stride_dyn + offs_dy, mask=mask, other=0.0).to(tl.float32)
    image = (row - halo == h) & (column - halo == w)  # each pixel once, not its copies
    offs_more = (h * stride_mh + w * stride_mw)[:, None] + offs_c[None, :]
    more_ptrs = more_ptr + sample * stride_mn + offs_more
    more = tl.load(more_ptrs, mask=mask & (image & (adds != 0))[:, None], other=0.0)
    dy += more.to(tl.float32)

    xhat = normalise(xhat, mean_ptr, rstd_ptr, sample, C, offs_c)
    pre = affine(xhat, gamma_ptr, beta_ptr, samples_per_gamma, samples_per_beta, sample, C, offs_c)
    slopes = load_slope(slope, slope_ptr, slope_step, C, offs_c)
    dpre = activate_backward(dy, pre, slopes, ACT, FROM_OUTPUT)
    sums_ptrs = sums_ptr + (sample * tiles + tile) * SUMS * C + offs_c
    tl.store(sums_ptrs, tl.sum(dpre, 0), mask=in_c)
    tl.store(sums_ptrs + C, tl.sum(dpre * xhat, 0), mask=in_c)
    if NORM == "ln":
        of_image = tl.where(image[:, None] & mask, xhat, 0.0)
        tl.store(sums_ptrs + 2 * C, tl.sum(of_image, 0), mask=in_c)
    if ACT == "prelu":
        below = tl.where(pre > 0, 0.0, dy * pre)
        tl.store(sums_ptrs + (SUMS - 1) * C, tl.sum(below, 0), mask=in_c)
    if merges != 0:
        tile_c = tl.program_id(0) % tiles_c
        slots, first, programs = tiles_c, tile_c * BLOCK_C, tiles
        if NORM == "ln":  # over the channels too, so that one program has all of a sample's
            tile_c, slots, first, programs = 0, 1, 0, tiles * tiles_c
        if is_last(counter_ptr + sample * slots + tile_c, programs):
            merge_sums(
                sums_ptr,
                rstd_ptr,
                gamma_ptr,
                total_ptr,
                coefficient_ptr,
                NORM != "none",
                sample,
                first + tl.arange(0, MERGE_C),
                tiles,
                C,
                H * W,
                samples_per_gamma,
                eps,
                tiny,
                NORM == "ln",
                SUMS,
                MERGE_T,
                MERGE_C,
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
                    row_counter_ptr,
                    tile_c,
                    slots,
                    sample,
                    first + tl.arange(0, MERGE_C),
                    C,
                    samples_per_row,
                    wanted,
                    add,
                    SUMS,
                    MERGE_T,
                    MERGE_C,
                )


@triton.jit
def _copies(k, copies, size, halo, reflects):
    """Return (base, sign, low, high): lines low..high have a k-th copy at base + sign * line.

    The 0-th copy is the line itself; half of the others are before the image, half behind it.
    """
    itself = k == 0
    behind = k > copies // 2
    edge = tl.where(behind, size - 1, 0)
    replicated = tl.where(behind, edge + k, k - 1)
    base = tl.where(itself, halo, tl.where(reflects != 0, halo + 2 * edge, replicated))
    sign = tl.where(itself, 1, -reflects)
    low = tl.where(itself, 0, edge + reflects * tl.where(behind, -halo, 1))
    high = tl.where(itself, size - 1, edge + reflects * tl.where(behind, -1, halo))
    return base, sign, low, high


@triton.jit
def _load_folded(
    dy_ptrs,  # [1, BLOCK_C], of the sample's first padded pixel
    h,
    w,
    mask,
    H,
    W,
    stride_dyh,
    stride_dyw,
    halo,
    reflects,
    copies,  # per axis, the pixel itself among them
    first_h,
    last_h,
    first_w,
    last_w,
):
    """Return the sum of dy over the copies of each pixel (h, w), of those in the ranges."""
    acc = tl.zeros(mask.shape, tl.float32)
    for k in range(copies * copies):
        base_h, sign_h, low_h, high_h = _copies(k // copies, copies, H, halo, reflects)
        base_w, sign_w, low_w, high_w = _copies(k % copies, copies, W, halo, reflects)
        # Most tiles have no mirrored rows; they skip them as a whole.
        some = (first_h <= high_h) & (last_h >= low_h) & (first_w <= high_w) & (last_w >= low_w)
        if some:
            found = (h >= low_h) & (h <= high_h) & (w >= low_w) & (w <= high_w)
            offs = (base_h + sign_h * h) * stride_dyh + (base_w + sign_w * w) * stride_dyw
            dy = tl.load(dy_ptrs + offs[:, None], mask=mask & found[:, None], other=0.0)
            acc += dy.to(tl.float32)
    return acc


@triton.jit(do_not_specialize=COUNTS)
def backward_apply_kernel(
    dy_ptr,  # [N, H + 2 * halo, W + 2 * halo, C], channel stride 1
    x_ptr,  # [N, H, W, C], any strides
    mean_ptr,  # [N, C] fp32, or None
    rstd_ptr,  # [N, C] fp32, or None
    gamma_ptr,  # [G, C], or None
    beta_ptr,  # [G, C], or None
    slope_ptr,  # [1] or [C], or None
    more_ptr,  # [N, H, W, C], channel stride 1: a gradient of the image itself, if `adds`
    coefficient_ptr,  # [N, 3, C] fp32, or None without statistics
    dx_ptr,  # [N, pixels, pitch], rows of `width` pixels; `slack` pixels before are zeroed
    dresidual_ptr,  # [N, H, W, C], of dy with its halo folded, if `keeps`; or None
    H,
    W,
    C,
    stride_dyn,
    stride_dyh,
    stride_dyw,
    stride_mn,
    stride_mh,
    stride_mw,
    adds,
    stride_xn,
    stride_xh,
    stride_xw,
    stride_xc,
    samples_per_gamma,
    samples_per_beta,
    slope_step,
    slope,
    halo,  # as in `source`
    reflects,
    copies,
    lead,
    pixels,
    width,
    pitch_v,  # in units of VEC channels
    slack,
    samples,
    tiles,
    tiles_c,
    keeps,
    ACT: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    wait_for_previous()
    sample, tile, offs_m, offs_c = locate(tiles, tiles_c, BLOCK_M, BLOCK_C)
    # Programs beyond the images zero what precedes the first one.
    beyond = sample >= samples
    offs_m += tl.where(beyond, (sample - samples).to(tl.int32) * tiles * BLOCK_M - slack, 0)
    stop = tl.where(beyond, 0, pixels)
    sample = tl.where(beyond, 0, sample)
    h = offs_m // width - lead
    w = offs_m % width - lead
    inside = (offs_m >= 0) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    in_c = offs_c < C
    mask = inside[:, None] & in_c[None, :]
    offs_x = (h * stride_xh + w * stride_xw)[:, None] + (offs_c * stride_xc)[None, :]
    xhat = tl.load(x_ptr + sample * stride_xn + offs_x, mask=mask, other=0.0).to(tl.float32)
    first = tile * BLOCK_M
    last = first + BLOCK_M - 1
    one_row = first // width == last // width
    dy = _load_folded(
        (dy_ptr + sample * stride_dyn + offs_c)[None, :],
        h,
        w,
        mask,
        H,
        W,
        stride_dyh,
        stride_dyw,
        halo,
        reflects,
        copies,
        first // width - lead,
        last // width - lead,
        tl.where(one_row, first % width - lead, 0),
        tl.where(one_row, last % width - lead, W - 1),
    )
    offs_more = (h * stride_mh + w * stride_mw)[:, None] + offs_c[None, :]
    more_ptrs = more_ptr + sample * stride_mn + offs_more
    dy += tl.load(more_ptrs, mask=mask & (adds != 0), other=0.0).to(tl.float32)
    if dresidual_ptr is not None:
        offs_r = ((h * W + w) * C)[:, None] + offs_c[None, :]
        dresidual_ptrs = dresidual_ptr + sample * H * W * C + offs_r
        dresidual = dy.to(dresidual_ptr.dtype.element_ty)
        tl.store(dresidual_ptrs, dresidual, mask=mask & (keeps != 0))

    xhat = normalise(xhat, mean_ptr, rstd_ptr, sample, C, offs_c)
    pre = affine(xhat, gamma_ptr, beta_ptr, samples_per_gamma, samples_per_beta, sample, C, offs_c)
    slopes = load_slope(slope, slope_ptr, slope_step, C, offs_c)
    dx = activate_backward(dy, pre, slopes, ACT, FROM_OUTPUT)
    if gamma_ptr is not None:
        dx *= load_row(gamma_ptr, sample, samples_per_gamma, C, offs_c)
    if mean_ptr is not None:
        dx *= load_row(rstd_ptr, sample, 1, C, offs_c)
        dx -= load_row(coefficient_ptr, sample * 3, 1, C, offs_c)
        dx -= load_row(coefficient_ptr, sample * 3 + 1, 1, C, offs_c) * xhat
    dx = tl.where(mask, dx, 0.0)
    pitch = pitch_v * VEC
    dx_ptrs = dx_ptr + sample * pixels * pitch + (offs_m * pitch)[:, None] + offs_c[None, :]
    stored = (offs_m < stop)[:, None] & (offs_c < pitch)[None, :]
    tl.store(dx_ptrs, dx.to(dx_ptr.dtype.element_ty), mask=stored)
