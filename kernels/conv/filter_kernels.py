"""The Triton kernels around filters: all layouts of a network; the gradient of upsampling's."""

from __future__ import annotations

import triton
import triton.language as tl

from fastunit.kernels.common.dependent import wait_for_previous
from fastunit.kernels.common.runtime import COUNTS


@triton.jit
def pack_kernel(
    w_ptr,  # a filter [D0, D1, R, S] of the network; the others are at offsets from it
    packed_ptr,  # all layouts, one after the other; zeros where none has a value
    jobs_ptr,  # [J, OF_FILTER + 2 * OF_LAYOUT] int64: see packed.FILTER and packed.LAYOUT
    owner_ptr,  # [programs] int32: the job of each program
    OF_FILTER: tl.constexpr,
    OF_LAYOUT: tl.constexpr,
    UNIT: tl.constexpr,  # of targets and of ld: stores are then known to be wide
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    # A program reads the channels of one tap once, for both layouts. In the first D1 lies along
    # pitch and D0 along ld, in the second it is the other way round.
    pid = tl.program_id(0)
    job_ptr = jobs_ptr + tl.load(owner_ptr + pid) * (OF_FILTER + 2 * OF_LAYOUT)
    tile = pid - tl.load(job_ptr).to(tl.int32)
    source = tl.load(job_ptr + 1)
    d0 = tl.load(job_ptr + 2).to(tl.int32)
    d1 = tl.load(job_ptr + 3).to(tl.int32)
    stride_0 = tl.load(job_ptr + 4)
    stride_1 = tl.load(job_ptr + 5)
    stride_r = tl.load(job_ptr + 6)
    stride_s = tl.load(job_ptr + 7)
    R = tl.load(job_ptr + 8).to(tl.int32)
    S = tl.load(job_ptr + 9).to(tl.int32)
    combined = tl.load(job_ptr + 10).to(tl.int32)

    columns = S + combined
    tap = tile % ((R + combined) * columns)
    row = tap // columns
    column = tap % columns
    tile = tile // ((R + combined) * columns)
    tiles_1 = tl.cdiv(d1, BLOCK)
    offs_0 = (tile // tiles_1) * BLOCK + tl.arange(0, BLOCK)
    offs_1 = (tile % tiles_1) * BLOCK + tl.arange(0, BLOCK)
    inside = (offs_0 < d0)[:, None] & (offs_1 < d1)[None, :]
    w_ptrs = w_ptr + source + offs_0[:, None] * stride_0 + offs_1[None, :] * stride_1
    if combined > 0:  # flipped, and each tap is the sum of two rows and two columns
        r = R - 1 - row
        s = S - 1 - column
        w_ptrs += r * stride_r + s * stride_s
        left = inside & (s >= 0)
        right = inside & (s + 1 < S)
        value = tl.load(w_ptrs, mask=left & (r >= 0), other=0.0).to(tl.float32)
        lower = w_ptrs + stride_r
        value += tl.load(lower, mask=left & (r + 1 < R), other=0.0).to(tl.float32)
        w_ptrs += stride_s
        lower += stride_s
        column_sum = tl.load(w_ptrs, mask=right & (r >= 0), other=0.0).to(tl.float32)
        column_sum += tl.load(lower, mask=right & (r + 1 < R), other=0.0).to(tl.float32)
        value += column_sum
    else:
        w_ptrs += row * stride_r + column * stride_s
        value = tl.load(w_ptrs, mask=inside, other=0.0).to(tl.float32)
    value = value.to(packed_ptr.dtype.element_ty)
    first = job_ptr + OF_FILTER
    _lay_out(packed_ptr, first, tl.trans(value), row, column, offs_1, offs_0, d1, d0, UNIT)
    second = first + OF_LAYOUT
    _lay_out(packed_ptr, second, value, row, column, offs_0, offs_1, d0, d1, UNIT)


@triton.jit
def _lay_out(
    packed_ptr,
    layout_ptr,  # [OF_LAYOUT]
    value,  # [I, O]: channels along pitch, channels along ld, of one tap
    row,  # of the tap
    column,
    offs_i,
    offs_o,
    inner,  # channels
    outer,
    UNIT: tl.constexpr,
):
    target = tl.load(layout_ptr)
    up = tl.load(layout_ptr + 1).to(tl.int32)  # 0: a gather
    rows = tl.load(layout_ptr + 2).to(tl.int32)
    columns = tl.load(layout_ptr + 3).to(tl.int32)
    pitch = tl.load(layout_ptr + 4)
    ld = tl.load(layout_ptr + 5).to(tl.int32) * UNIT
    by_columns = tl.load(layout_ptr + 6)
    place_row = row
    place_column = column
    phase = 0
    if up > 0:
        place_row = rows - 1 - row // up
        place_column = columns - 1 - column // up
        phase = row % up * up + column % up
    place_row += phase * rows
    of_channel = (offs_i < inner)[:, None]
    if by_columns > 0:  # each column of the filter has `outer` channels of its own along ld
        at = target * UNIT + place_row * pitch * ld + place_column * outer
        ptrs = packed_ptr + at + offs_i[:, None] * ld + offs_o[None, :]
        tl.store(ptrs, value, mask=of_channel & (offs_o < outer)[None, :])
    else:
        at = target * UNIT + (place_row * columns + place_column) * pitch * ld
        ptrs = packed_ptr + at + offs_i[:, None] * ld + offs_o[None, :]
        filled = tl.cdiv(outer, UNIT) * UNIT  # so that stores are wide
        tl.store(ptrs, value, mask=of_channel & (offs_o < filled)[None, :])


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
    add,  # 1: to what dw holds
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
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
    if add != 0:
        total += tl.load(dw_ptrs, mask=mask, other=0.0).to(tl.float32)
    tl.store(dw_ptrs, total.to(dw_ptr.dtype.element_ty), mask=mask)
