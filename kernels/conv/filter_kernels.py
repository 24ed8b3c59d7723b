"""The Triton kernels around filters: all layouts of a network; the gradient of upsampling's."""

from __future__ import annotations

import triton
import triton.language as tl

from fastunit.kernels.common.runtime import COUNTS


@triton.jit
def pack_kernel(
    w_ptr,  # a filter of the network; the others are at offsets from it
    packed_ptr,  # all layouts, one after the other
    jobs_ptr,  # [J, 18] int64: a layout of a filter, see packed.JOB
    owner_ptr,  # [programs] int32: the job of each program
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,  # of targets and of ld: stores are then known to be wide
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    pid = tl.program_id(0)
    job_ptr = jobs_ptr + tl.load(owner_ptr + pid) * COLUMNS
    tile = pid - tl.load(job_ptr).to(tl.int32)
    source = tl.load(job_ptr + 1)
    target = tl.load(job_ptr + 2) * UNIT
    inner = tl.load(job_ptr + 3).to(tl.int32)
    outer = tl.load(job_ptr + 4).to(tl.int32)
    stride_i = tl.load(job_ptr + 5)
    stride_o = tl.load(job_ptr + 6)
    stride_r = tl.load(job_ptr + 7)
    stride_s = tl.load(job_ptr + 8)
    R = tl.load(job_ptr + 9).to(tl.int32)  # of the filter itself, as S
    S = tl.load(job_ptr + 10).to(tl.int32)
    up = tl.load(job_ptr + 11).to(tl.int32)  # 0: a gather
    rows = tl.load(job_ptr + 12).to(tl.int32)
    columns = tl.load(job_ptr + 13).to(tl.int32)
    pitch = tl.load(job_ptr + 14).to(tl.int32)
    ld = tl.load(job_ptr + 15).to(tl.int32) * UNIT
    combined = tl.load(job_ptr + 16).to(tl.int32)
    by_columns = tl.load(job_ptr + 17).to(tl.int32)

    tiles_o = tl.cdiv(ld, BLOCK_O)
    tiles_i = tl.cdiv(pitch, BLOCK_I)
    offs_o = (tile % tiles_o) * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = (tile // tiles_o % tiles_i) * BLOCK_I + tl.arange(0, BLOCK_I)
    place = tile // (tiles_o * tiles_i)  # (phase * rows + row) * columns + column
    column = place % columns
    row = place // columns % rows
    phase = place // (columns * rows)
    if up > 0:
        row = up * (rows - 1 - row) + phase // up
        column = up * (columns - 1 - column) + phase % up
    # By columns, each column of the filter has `outer` channels of its own.
    taps = tl.where(by_columns > 0, S, 1)
    tap = tl.minimum(offs_o // outer, taps - 1)
    offs_w = (offs_o - tap * outer) * stride_o
    offs_w += tl.where(by_columns * up > 0, S - 1 - tap, tap) * stride_s
    inside = (offs_i < inner)[:, None] & (offs_o < outer * taps)[None, :]
    w_ptrs = w_ptr + source + offs_i[:, None] * stride_i + offs_w[None, :]
    if combined > 0:  # flipped, and each tap is the sum of two rows and two columns
        row = R - 1 - row
        column = S - 1 - column
        w_ptrs += row * stride_r + column * stride_s
        left = inside & (column >= 0)
        right = inside & (column + 1 < S)
        value = tl.load(w_ptrs, mask=left & (row >= 0), other=0.0).to(tl.float32)
        lower = w_ptrs + stride_r
        value += tl.load(lower, mask=left & (row + 1 < R), other=0.0).to(tl.float32)
        w_ptrs += stride_s
        lower += stride_s
        column_sum = tl.load(w_ptrs, mask=right & (row >= 0), other=0.0).to(tl.float32)
        column_sum += tl.load(lower, mask=right & (row + 1 < R), other=0.0).to(tl.float32)
        value += column_sum
    else:
        w_ptrs += row * stride_r + column * stride_s
        there = inside & (row < R) & (column < S)
        value = tl.load(w_ptrs, mask=there, other=0.0).to(tl.float32)
    at = (place.to(tl.int64) * pitch + offs_i[:, None]) * ld + offs_o[None, :]
    stored = (offs_i < pitch)[:, None] & (offs_o < ld)[None, :]
    tl.store(packed_ptr + target + at, value.to(packed_ptr.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=COUNTS)
def split_reduce_kernel(
    partial_ptr,  # [splits, G, rows, columns, pitch, pitch_dy] fp32: what wgrad_kernel writes
    dw_ptr,  # the filters' gradient, of any strides
    splits,
    split_stride,  # between splits of partial
    C,  # channels along pitch
    K,  # channels along pitch_dy
    R,  # taps of the filters, as S; upsampling's combined filters have one more of both
    S,
    pitch,
    pitch_dy,
    stride_g,
    stride_k,
    stride_c,
    stride_r,
    stride_s,
    tiles_k,
    ADD: tl.constexpr,  # to what dw holds
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    offs_k = (tl.program_id(0) % tiles_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    offs_c = (tl.program_id(0) // tiles_k) * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.program_id(1) // S
    s = tl.program_id(1) % S
    group = tl.program_id(2)
    mask = (offs_c < C)[:, None] & (offs_k < K)[None, :]
    inner = offs_c[:, None] * pitch_dy + offs_k[None, :]
    tap = pitch * pitch_dy
    # Each tap of a filter went, flipped, into two rows and two columns.
    row = tap * (S + 1)
    first = ((group * (R + 1) + R - 1 - r) * (S + 1) + S - 1 - s).to(tl.int64) * tap
    partial_ptrs = partial_ptr + first + inner
    total = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    for _ in range(splits):
        left = tl.load(partial_ptrs, mask=mask, other=0.0)
        left += tl.load(partial_ptrs + row, mask=mask, other=0.0)
        right = tl.load(partial_ptrs + tap, mask=mask, other=0.0)
        right += tl.load(partial_ptrs + row + tap, mask=mask, other=0.0)
        total += left + right
        partial_ptrs += split_stride
    at = group.to(tl.int64) * stride_g + r * stride_r + s * stride_s
    dw_ptrs = dw_ptr + at + offs_k[None, :] * stride_k + offs_c[:, None] * stride_c
    if ADD:
        total += tl.load(dw_ptrs, mask=mask, other=0.0).to(tl.float32)
    tl.store(dw_ptrs, total.to(dw_ptr.dtype.element_ty), mask=mask)
