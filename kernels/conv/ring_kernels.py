"""The border correction of reflect-padded upsampling: the Triton kernels around its products.

The border has four sides: top, bottom, left, right. A *line* belongs to a side of a sample; the
correction convolves lines of differences (see phases.py) with the taps of the filters that lie
along that side. Lines are in order of side, then sample, so that a side of a group of samples is a
group of the matrix kernels. Sums are in fp32, in a fixed order, without atomics; offsets within a
line or a sample are int32.
"""

# Kernels call kernels, and `triton.jit` is typed as if these calls never returned.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from fastunit.kernels.common.dependent import wait_for_previous
from fastunit.kernels.common.runtime import COUNTS
from fastunit.kernels.norm_act.forward_kernels import source

HALO: tl.constexpr = tl.constexpr(2)  # pixels by which the large image is reflected


@triton.jit
def _side(side, H, W, stride_h, stride_w):
    """Return length and step of the two lines at a side, and the offsets of the outer and inner."""
    is_row = side < 2
    across = tl.where(is_row, H, W)
    step = tl.where(is_row, stride_h, stride_w)
    outer = tl.where(side % 2 == 0, 0, (across - 1) * step)
    inner = tl.where(side % 2 == 0, step, (across - 2) * step)
    return tl.where(is_row, W, H), tl.where(is_row, stride_w, stride_h), outer, inner


@triton.jit
def _large_source(i, length, is_row):
    """Return which of `length` pixels the upsampled and extended line has at i, from -HALO on.

    Rows are reflected; columns are replicated, since the rows' share has the corners.
    """
    i, _ = source(i, 2 * length, HALO, is_row)
    return i // 2


# Channels are specialised: where they are multiples of 16, loads are wide.
@triton.jit(do_not_specialize=COUNTS)
def lines_kernel(
    x_ptr,  # [N, H, W, C], channel stride 1
    dy_ptr,  # [N, P, Q, K], channel stride 1; it and the edges if `tiles_dy`
    lines_ptr,  # [4, N, length, pitch]: differences of x, upsampled and extended, then zeros
    edges_ptr,  # [4, N, length, pitch_dy]: the outer lines of dy, then zeros; `slack` before
    samples,
    H,
    W,
    C,
    stride_xn,
    stride_xh,
    stride_xw,
    P,
    Q,
    K,
    stride_dyn,
    stride_dyh,
    stride_dyw,
    length,
    pitch_v,  # in units of VEC values
    pitch_dy_v,  # in units of VEC_DY values
    slack,  # at most BLOCK_M
    tiles_m,
    tiles_x,  # along the channels of x
    tiles_dy,  # along those of dy, 0 without it: at run time, which saves a variant
    VEC: tl.constexpr,
    VEC_DY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    wait_for_previous()
    pid = tl.program_id(0)
    tile_c = pid % (tiles_x + tiles_dy)
    tile_m = (pid // (tiles_x + tiles_dy)) % tiles_m
    line = pid // (tiles_x + tiles_dy) // tiles_m
    side = line // samples
    sample = (line % samples).to(tl.int64)
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    if tile_c < tiles_x:
        offs_c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
        size, step, outer, inner = _side(side, H, W, stride_xh, stride_xw)
        i = _large_source(offs_m - HALO, size, side < 2)
        mask = (offs_m < 2 * size + 2 * HALO)[:, None] & (offs_c < C)[None, :]
        x_ptrs = x_ptr + sample * stride_xn + (i * step)[:, None] + offs_c[None, :]
        difference = tl.load(x_ptrs + inner, mask=mask, other=0.0).to(tl.float32)
        difference -= tl.load(x_ptrs + outer, mask=mask, other=0.0).to(tl.float32)
        pitch = pitch_v * VEC
        line_ptr = lines_ptr + line.to(tl.int64) * length * pitch
        ptrs = line_ptr + (offs_m * pitch)[:, None] + offs_c[None, :]
        stored = (offs_m < length)[:, None] & (offs_c < pitch)[None, :]
        tl.store(ptrs, difference.to(lines_ptr.dtype.element_ty), mask=stored)
    else:
        offs_c = (tile_c - tiles_x) * BLOCK_C + tl.arange(0, BLOCK_C)
        size, step, outer, _ = _side(side, P, Q, stride_dyh, stride_dyw)
        mask = (offs_m < size)[:, None] & (offs_c < K)[None, :]
        dy_ptrs = dy_ptr + sample * stride_dyn + outer + (offs_m * step)[:, None] + offs_c[None, :]
        edge = tl.load(dy_ptrs, mask=mask, other=0.0)
        pitch = pitch_dy_v * VEC_DY
        line_ptr = edges_ptr + line.to(tl.int64) * length * pitch
        ptrs = line_ptr + (offs_m * pitch)[:, None] + offs_c[None, :]
        in_c = (offs_c < pitch)[None, :]
        tl.store(ptrs, edge, mask=(offs_m < length)[:, None] & in_c)
        if (line == 0) & (tile_m == 0):
            before = edges_ptr + ((offs_m - slack) * pitch)[:, None] + offs_c[None, :]
            tl.store(before, tl.zeros_like(edge), mask=(offs_m < slack)[:, None] & in_c)


@triton.jit(do_not_specialize=COUNTS)
def lines_backward_kernel(
    d_lines_ptr,  # [4, N, length, C] fp32, the gradient of the extended lines
    dx_ptr,  # [N, H, W, C], channel stride 1, to which the gradient of x is added
    samples,
    H,
    W,
    C,
    stride_n,
    stride_h,
    stride_w,
    length,
    tiles_m,
    tiles_c,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    wait_for_previous()
    pid = tl.program_id(0)
    offs_c = (pid % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_m = (pid // tiles_c) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    sample = pid // tiles_c // tiles_m
    # The pixels within two of the border, each once: those of whole rows, then those left over.
    rows = tl.minimum(H, 4)
    columns = tl.minimum(W, 4)
    rest = offs_m - rows * W
    h = tl.where(rest < 0, offs_m // W, rest // columns + 2)
    h = tl.where((rest < 0) & (h >= 2), h + H - rows, h)
    w = tl.where(rest < 0, offs_m % W, rest % columns)
    w = tl.where((rest >= 0) & (w >= 2), w + W - columns, w)
    inside = offs_m < rows * W + (H - rows) * columns
    mask = inside[:, None] & (offs_c < C)[None, :]

    dx_sample = dx_ptr + sample.to(tl.int64) * stride_n
    dx_ptrs = dx_sample + (h * stride_h + w * stride_w)[:, None] + offs_c[None, :]
    acc = tl.load(dx_ptrs, mask=mask, other=0.0).to(tl.float32)
    for side in range(4):
        size = tl.where(side < 2, W, H)
        at = tl.where(side < 2, h, w)
        along = tl.where(side < 2, w, h)
        depth = tl.where(side % 2 == 0, at, tl.where(side < 2, H, W) - 1 - at)
        near = mask & (depth < 2)[:, None]
        line = d_lines_ptr + (sample + side * samples).to(tl.int64) * length * C
        found = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        # Pixel i is at 2 * i and 2 * i + 1 of the large line, and where the extension copies it.
        for copy in range(2 * HALO + 2):
            at_end = tl.where(copy < 4, copy - 2, 2 * size + HALO + copy - 4)
            i = tl.where(copy < 2, 2 * along + HALO + copy, at_end)
            here = _large_source(i - HALO, size, side < 2) == along
            ptrs = line + (i * C)[:, None] + offs_c[None, :]
            found += tl.load(ptrs, mask=near & here[:, None], other=0.0)
        acc += tl.where((depth == 0)[:, None], -found, found)
    tl.store(dx_ptrs, acc.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _outer_tap(side, t, last, stride_r, stride_s):
    """Return the offset of tap t along a side in filters of last + 1 rows and columns."""
    far = tl.where(side % 2 == 0, 0, last)
    return tl.where(side < 2, far * stride_r + t * stride_s, t * stride_r + far * stride_s)


@triton.jit(do_not_specialize=COUNTS)
def taps_kernel(
    w_ptr,  # [G, K, C, T, T], any strides
    taps_ptr,  # [4, G, T, pitch, columns], zeros filling up
    dgrad_ptr,  # [4, G, T, pitch_dy, columns_dgrad], of flipped taps
    groups,
    K,
    C,
    T,
    stride_g,
    stride_k,
    stride_c,
    stride_r,
    stride_s,
    pitch,
    columns,
    pitch_dy,
    columns_dgrad,
    tiles_c,
    tiles_k,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    pid = tl.program_id(0)
    offs_k = (pid % tiles_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    offs_c = (pid // tiles_k) % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = pid // tiles_k // tiles_c
    t = tap % T
    side = tap // T // groups
    group = tap // T % groups
    w_tap = w_ptr + group.to(tl.int64) * stride_g + _outer_tap(side, t, T - 1, stride_r, stride_s)
    offs_w = (offs_c * stride_c)[:, None] + (offs_k * stride_k)[None, :]
    mask = (offs_c < C)[:, None] & (offs_k < K)[None, :]
    w = tl.load(w_tap + offs_w, mask=mask, other=0.0).to(taps_ptr.dtype.element_ty)
    to = taps_ptr + tap.to(tl.int64) * pitch * columns
    stored = (offs_c < pitch)[:, None] & (offs_k < columns)[None, :]
    tl.store(to + (offs_c * columns)[:, None] + offs_k[None, :], w, mask=stored)
    to = dgrad_ptr + (tap - t + T - 1 - t).to(tl.int64) * pitch_dy * columns_dgrad
    stored = (offs_c < columns_dgrad)[:, None] & (offs_k < pitch_dy)[None, :]
    tl.store(to + offs_c[:, None] + (offs_k * columns_dgrad)[None, :], w, mask=stored)


@triton.jit(do_not_specialize=COUNTS)
def taps_backward_kernel(
    partial_ptr,  # [splits, 4, G, T, pitch, pitch_dy] fp32
    dw_ptr,  # [G, K, C, T, T], any strides, to which their sum is added
    splits,
    groups,
    K,
    C,
    T,
    stride_g,
    stride_k,
    stride_c,
    stride_r,
    stride_s,
    pitch,
    pitch_dy,
    tiles_c,
    tiles_k,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    pid = tl.program_id(0)
    offs_k = (pid % tiles_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    offs_c = (pid // tiles_k) % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = pid // tiles_k // tiles_c
    r = tap // T % T
    s = tap % T
    group = tap // T // T
    if (r == 0) | (r == T - 1) | (s == 0) | (s == T - 1):
        mask = (offs_c < C)[:, None] & (offs_k < K)[None, :]
        offs_w = (offs_c * stride_c)[:, None] + (offs_k * stride_k)[None, :]
        dw_tap = dw_ptr + group.to(tl.int64) * stride_g + r * stride_r + s * stride_s
        acc = tl.load(dw_tap + offs_w, mask=mask, other=0.0).to(tl.float32)
        offs = (offs_c * pitch_dy)[:, None] + offs_k[None, :]
        for side in range(4):
            across = tl.where(side < 2, r, s)
            along = tl.where(side < 2, s, r)
            if across == tl.where(side % 2 == 0, 0, T - 1):
                first = ((side * groups + group) * T + along).to(tl.int64) * pitch * pitch_dy
                ptrs = partial_ptr + first + offs
                for _ in range(splits):
                    acc += tl.load(ptrs, mask=mask, other=0.0)
                    ptrs += (4 * groups * T).to(tl.int64) * pitch * pitch_dy
        tl.store(dw_tap + offs_w, acc.to(dw_ptr.dtype.element_ty), mask=mask)
