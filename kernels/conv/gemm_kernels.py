"""Implicit-GEMM convolution on haloed channels-last frames: the Triton kernels.

The taps of one filter row over all channels are S*C consecutive values of a channels-last
buffer, so GEMM_K = R runs of S*C values, each a pointer shift away: no index is computed per
element and nothing is bounds-checked, because the halo is in memory. Products accumulate in
fp32; no atomics. Strides come in units of the widest load, so that the compiler can prove
that loads are wide.
"""

# Kernels call kernels, and `triton.jit` is typed as if these calls never returned.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from fastunit.kernels.common.activations import activate
from fastunit.kernels.common.dependent import wait_for_previous
from fastunit.kernels.common.last_program import is_last
from fastunit.kernels.common.runtime import COUNTS
from fastunit.kernels.norm_act.forward_kernels import source
from fastunit.kernels.norm_act.merge_kernels import finish_statistics


@triton.jit
def _operand(x, UPCAST: tl.constexpr):
    """Give the interpreter, whose bf16 products are wrong, fp32 operands."""
    return x.to(tl.float32) if UPCAST else x


@triton.jit(do_not_specialize=COUNTS)
def conv_gemm_kernel(
    x_ptr,  # [N, rows, columns, pitch], haloed
    w_ptr,  # [G, UP * UP, R, run, ld_w]
    b_ptr,  # [G, K], or None
    border_ptr,  # [4, N, max(P, Q), K] fp32 to add at each side of the output, or None
    y_ptr,  # [N, P, Q, K]; for UP = 1 a frame [N, windows, pitch], rows of window_columns pixels
    partial_ptr,  # [N, UP * UP * tiles_m, 3, K] fp32: mean, M2 and count per tile, or None
    mean_ptr,  # [N, K] fp32, which the last program of an image writes if it `merges`
    rstd_ptr,
    counter_ptr,  # zeros; see `is_last`
    tiles_m,
    tiles_n,
    windows,  # of a sample, window_columns of them in a row; for UP = 1 one for each pixel of the
    window_columns,  # frame: a pixel of the halo has that of the pixel which it copies
    P,
    Q,
    K,
    pitch,
    lead,  # of the frame: rows and columns before the image
    halo,  # how many of these, and of those after the image, copy the image; others are zeros
    reflects,  # 1: by reflection, 0: its edge
    R,
    run_v,  # S * C; this and the strides of x are in units of VEC values
    shift_v,  # of the first window from x_ptr
    stride_xn_v,
    stride_window_row_v,
    stride_window_v,
    stride_tap_row_v,
    ld_w,
    samples_per_group,
    crop,  # output rows and columns before the image, which are not stored
    slope,
    eps,
    merges,  # 1: the last program of an image merges its statistics
    NORM: tl.constexpr,
    MERGE_T: tl.constexpr,
    MERGE_C: tl.constexpr,
    ACT: tl.constexpr,
    UP: tl.constexpr,
    PHASES: tl.constexpr,  # of a tile: more than one if their columns fit
    VEC: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    # Neighbouring programs share their windows: column tiles vary fastest.
    pid = tl.program_id(0)
    column_tiles = tiles_n * (UP * UP // PHASES)
    column_tile = pid % column_tiles
    row_tile = pid // column_tiles
    sample = row_tile // tiles_m
    tile = row_tile % tiles_m
    first_phase = column_tile // tiles_n * PHASES
    group = sample // samples_per_group

    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = (column_tile % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    phase = first_phase
    if PHASES > 1:
        phase += offs_n // ld_w
        offs_n %= ld_w
    offs_k = tl.arange(0, BLOCK_K)
    row = offs_m // window_columns
    column = offs_m % window_columns
    inside = offs_m < windows
    if UP == 1:
        row, in_rows = source(row - lead, P, halo, reflects)
        column, in_columns = source(column - lead, Q, halo, reflects)
        inside = in_rows & in_columns
    # What is no window reads the sample's first one instead, so that loads need no mask.
    window_v = tl.where(inside, row * stride_window_row_v + column * stride_window_v, 0)

    run = run_v * VEC
    x_sample = x_ptr + (sample.to(tl.int64) * stride_xn_v + shift_v) * VEC
    x_ptrs = x_sample + (window_v * VEC)[:, None] + offs_k[None, :]
    w_group = w_ptr + group.to(tl.int64) * (UP * UP * R * run * ld_w)
    w_ptrs = w_group + offs_k[:, None] * ld_w + (phase * (R * run * ld_w) + offs_n)[None, :]
    next_row = (stride_tap_row_v - run_v) * VEC + BLOCK_K
    steps = tl.cdiv(run, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    k = 0
    for _ in range(R * steps):
        if EVEN_K:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            x = tl.load(x_ptrs, mask=(offs_k < run - k)[None, :], other=0.0)
            w = tl.load(w_ptrs, mask=(offs_k < run - k)[:, None], other=0.0)
        acc = tl.dot(_operand(x, UPCAST), _operand(w, UPCAST), acc, input_precision=PRECISION)
        last = k + BLOCK_K >= run
        if EVEN_K:
            x_ptrs += tl.where(last, next_row, BLOCK_K)
            w_ptrs += BLOCK_K * ld_w
        else:
            x_ptrs += tl.where(last, stride_tap_row_v * VEC - k, BLOCK_K)
            w_ptrs += tl.where(last, run - k, BLOCK_K) * ld_w
        k = tl.where(last, 0, k + BLOCK_K)

    if b_ptr is not None:
        bias = tl.load(b_ptr + group * K + offs_n, mask=offs_n < K, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    if UP > 1:
        row *= UP
        column *= UP
        row_shift = phase // UP - crop
        column_shift = phase % UP - crop
        if PHASES == 1:  # else all phases of all windows are inside
            inside = inside & (row + row_shift >= 0) & (row + row_shift < P)
            inside = inside & (column + column_shift >= 0) & (column + column_shift < Q)
    mask = inside[:, None] & (offs_n < K)[None, :]
    if border_ptr is not None:
        # A branch for each side: most tiles touch none, and sides loaded at once spill.
        samples = tl.num_programs(0) // (column_tiles * tiles_m)
        length = tl.maximum(P, Q)
        first = tile * BLOCK_M
        last = tl.minimum(first + BLOCK_M, windows) - 1
        wraps = first // window_columns < last // window_columns
        for side in range(4):
            # By rows at the top and bottom, by columns at the left and right.
            across = tl.where(side < 2, row, column)
            along = tl.where(side < 2, column, row)
            across_shift = tl.where(side < 2, row_shift, column_shift)
            along_shift = tl.where(side < 2, column_shift, row_shift)
            edge = tl.where(side % 2 == 0, 0, tl.where(side < 2, P, Q) - 1)
            low = tl.where(side < 2, first // window_columns, first % window_columns) * UP - crop
            high = tl.where(side < 2, last // window_columns, last % window_columns) * UP - crop
            if PHASES == 1:
                low += across_shift + crop
                high += across_shift + crop
                at = (across + across_shift == edge)[:, None]
            else:
                high += UP - 1
                at = across[:, None] == (edge - across_shift)[None, :]
            if (wraps & (side >= 2)) | ((low <= edge) & (high >= edge)):
                line = border_ptr + (sample + side * samples).to(tl.int64) * length * K
                ptrs = line + (along * K)[:, None] + (along_shift * K + offs_n)[None, :]
                acc += tl.load(ptrs, mask=mask & at, other=0.0)

    # Storing before the statistics takes 128 registers, after them 238.
    y = activate(acc, slope, ACT).to(y_ptr.dtype.element_ty)
    if UP == 1:
        y = tl.where(mask, y, 0.0)
        inside = offs_m < windows  # of what is stored: with statistics the image alone
        mask = inside[:, None] & (offs_n < pitch)[None, :]
        y_ptrs = y_ptr + sample.to(tl.int64) * windows * pitch
        y_ptrs += (offs_m * pitch)[:, None] + offs_n[None, :]
    else:
        y_ptrs = y_ptr + sample.to(tl.int64) * P * Q * K + ((row * Q + column) * K)[:, None]
        y_ptrs += ((row_shift * Q + column_shift) * K + offs_n)[None, :]
    tl.store(y_ptrs, y, mask=mask)
    if partial_ptr is not None:
        acc = y.to(tl.float32)  # as it will be read: its rounding is no spread of a flat image
        count = tl.sum(inside.to(tl.float32), 0)
        mean = tl.sum(tl.where(inside[:, None], acc, 0.0), 0) / tl.maximum(count, 1.0)
        spread = tl.where(inside[:, None], acc - mean[None, :], 0.0)
        m2 = tl.sum(spread * spread, 0)
        index = (sample.to(tl.int64) * UP * UP + phase) * tiles_m + tile
        partial_ptrs = partial_ptr + index * 3 * K + offs_n
        tl.store(partial_ptrs, mean, mask=offs_n < K)
        tl.store(partial_ptrs + K, m2, mask=offs_n < K)
        tl.store(partial_ptrs + 2 * K, tl.zeros_like(m2) + count, mask=offs_n < K)
        if merges != 0:
            every = tiles_m * UP * UP
            programs = tiles_m * (UP * UP // PHASES)
            finish_statistics(
                partial_ptr,
                mean_ptr,
                rstd_ptr,
                counter_ptr,
                sample,
                programs,
                column_tile % tiles_n,
                tiles_n,
                every,
                K,
                eps,
                NORM,
                MERGE_T,
                MERGE_C,
            )


@triton.jit(do_not_specialize=COUNTS)
def wgrad_kernel(
    x_ptr,  # [N, stride * rows, stride * columns, pitch], haloed
    dy_ptr,  # [N, rows, columns, pitch_dy], zeros around the gradient
    partial_ptr,  # [SPLIT_K, G, R, run, pitch_dy] fp32
    dw_ptr,  # [G, K, C, R, S]: if it `sums`, the last program of a tile writes the splits' sum
    counter_ptr,  # zeros; see `is_last`
    pixels,  # of a group, up to its last one that is not halo
    pixels_per_group,
    columns,
    run_v,  # S * C; this and the strides of x are in units of VEC values
    R,
    S,
    K_v,  # pitch_dy, in units of VEC_DY values
    stride_row_v,  # between the windows of neighbouring rows and columns of dy
    stride_column_v,
    stride_tap_row_v,
    split,  # pixels per split, a multiple of BLOCK_M
    tiles_n,
    C_dw,  # channels of dw, without padding
    K_dw,
    stride_g,
    stride_k,
    stride_c,
    stride_r,
    stride_s,
    sums,
    add,  # 1: to what dw holds
    FLAT: tl.constexpr,  # a window's offset is proportional to the pixel's number
    EVEN: tl.constexpr,  # tiles divide the runs and the channels
    VEC: tl.constexpr,
    VEC_DY: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SUM_L: tl.constexpr,  # rows of a tile that the last program sums at a time
):
    wait_for_previous()
    pid = tl.program_id(0)
    column_tile = pid % tiles_n
    run_tile = pid // tiles_n
    group = tl.program_id(2)
    first = tl.program_id(1) * split
    size = tl.minimum(split, pixels - first)

    # The rows of the result are all R runs: a tile has several where they are short.
    run = run_v * VEC
    rows = R * run
    offs_m = tl.arange(0, BLOCK_M)
    offs_l = run_tile * BLOCK_L + tl.arange(0, BLOCK_L)
    offs_n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    in_l = offs_l < rows
    in_n = offs_n < K_v * VEC_DY

    start = group.to(tl.int64) * pixels_per_group + first
    start_row = start // columns
    dy_ptrs = dy_ptr + start * K_v * VEC_DY + (offs_m * K_v * VEC_DY)[:, None] + offs_n[None, :]
    offs_x = offs_l // run * (stride_tap_row_v * VEC) + offs_l % run
    x_run = x_ptr + start_row * stride_row_v * VEC + offs_x[None, :]
    row = (start % columns).to(tl.int32) + offs_m
    column = row % columns
    row = row // columns
    acc = tl.zeros((BLOCK_L, BLOCK_N), tl.float32)
    if FLAT:
        x_run += (start % columns) * stride_column_v * VEC
    m = 0
    for _ in range(tl.cdiv(size, BLOCK_M)):
        inside = offs_m < size - m
        if FLAT:
            window_v = (offs_m + m) * stride_column_v
        else:
            window_v = row * stride_row_v + column * stride_column_v
        x_ptrs = x_run + tl.where(inside, window_v, 0)[:, None] * VEC
        if EVEN:
            x = tl.load(x_ptrs)
            dy = tl.load(dy_ptrs, mask=inside[:, None], other=0.0)
        else:
            x = tl.load(x_ptrs, mask=in_l[None, :], other=0.0)
            dy = tl.load(dy_ptrs, mask=inside[:, None] & in_n[None, :], other=0.0)
        acc = tl.dot(
            tl.trans(_operand(x, UPCAST)), _operand(dy, UPCAST), acc, input_precision=PRECISION
        )
        if not FLAT:
            column += BLOCK_M % columns
            carry = column >= columns
            column = tl.where(carry, column - columns, column)
            row += BLOCK_M // columns + carry.to(tl.int32)
        dy_ptrs += BLOCK_M * K_v * VEC_DY
        m += BLOCK_M

    splits = tl.num_programs(1)
    pitch_dy = K_v * VEC_DY
    result = rows.to(tl.int64) * pitch_dy
    between = tl.num_programs(2) * result
    partial_ptr += group * result
    tile = (offs_l * pitch_dy)[:, None] + offs_n[None, :]
    partial_ptrs = partial_ptr + tl.program_id(1) * between + tile
    tl.store(partial_ptrs, acc, mask=in_l[:, None] & in_n[None, :])
    if sums != 0:  # noqa: SIM102 - Triton has no short circuit
        if is_last(counter_ptr + group * tl.num_programs(0) + pid, splits):
            pitch = run // S
            for part in range(BLOCK_L // SUM_L):  # a whole tile and its sum need 256 registers
                offs_p = run_tile * BLOCK_L + part * SUM_L + tl.arange(0, SUM_L)
                in_p = offs_p < rows
                whole = in_p[:, None] & in_n[None, :]
                part_ptrs = partial_ptr + (offs_p * pitch_dy)[:, None] + offs_n[None, :]
                total = tl.zeros((SUM_L, BLOCK_N), tl.float32)
                for _ in range(splits):
                    total += tl.load(part_ptrs, mask=whole, other=0.0, cache_modifier=".cg")
                    part_ptrs += between
                s_p = offs_p % run // pitch
                c_p = offs_p % pitch
                inside = (in_p & (c_p < C_dw))[:, None] & (offs_n < K_dw)[None, :]
                offs_dw = offs_p // run * stride_r + s_p * stride_s + c_p * stride_c
                row_ptrs = dw_ptr + group.to(tl.int64) * stride_g + offs_dw[:, None]
                dw_ptrs = row_ptrs + offs_n[None, :] * stride_k
                if add != 0:
                    total += tl.load(dw_ptrs, mask=inside, other=0.0).to(tl.float32)
                tl.store(dw_ptrs, total.to(dw_ptr.dtype.element_ty), mask=inside)
