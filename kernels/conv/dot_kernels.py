"""Convolution with one 1x1 filter, a dot product over channels: the Triton kernels.

Sums are in fp32, in a fixed order, without atomics; offsets within a sample are int32.
"""

# Kernels call kernels, and `triton.jit` is typed as if these calls never returned.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from fastunit.kernels.common.activations import activate
from fastunit.kernels.common.runtime import COUNTS
from fastunit.kernels.norm_act.backward_kernels import activate_backward


# Channels are specialised: where they are a multiple of 16, loads are wide.
@triton.jit(do_not_specialize=COUNTS)
def dot_kernel(
    x_ptr,  # [N, pixels, C]
    w_ptr,  # [G, C]
    b_ptr,  # [G], or None
    y_ptr,  # [N, pixels]
    pixels,
    C,
    samples_per_group,
    tiles,
    slope,
    ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    sample = (pid // tiles).to(tl.int64)
    group = sample // samples_per_group
    offs_m = pid % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_c = tl.arange(0, BLOCK_C)
    x_ptrs = x_ptr + sample * pixels * C + (offs_m * C)[:, None] + offs_c[None, :]
    in_m = offs_m < pixels
    acc = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, C, BLOCK_C):
        in_c = offs_c < C - start
        w = tl.load(w_ptr + group * C + start + offs_c, mask=in_c, other=0.0).to(tl.float32)
        x = tl.load(x_ptrs + start, mask=in_m[:, None] & in_c[None, :], other=0.0)
        acc += x.to(tl.float32) * w[None, :]
    y = tl.sum(acc, 1)
    if b_ptr is not None:
        y += tl.load(b_ptr + group).to(tl.float32)
    y = activate(y, slope, ACT).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + sample * pixels + offs_m, y, mask=in_m)


@triton.jit(do_not_specialize=COUNTS)
def dot_backward_kernel(
    dy_ptr,  # [N, pixels]
    y_ptr,  # [N, pixels], the result; or None without an activation
    x_ptr,  # [N, pixels, C]
    w_ptr,  # [G, C]
    dx_ptr,  # [N, pixels, C], or None
    dw_ptr,  # [N * tiles, C] fp32, sums over tiles, or None
    db_ptr,  # [N * tiles] fp32
    pixels,
    C,
    samples_per_group,
    tiles,
    slope,
    ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    sample = (pid // tiles).to(tl.int64)
    group = sample // samples_per_group
    offs_m = pid % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_c = tl.arange(0, BLOCK_C)
    in_m = offs_m < pixels
    dy = tl.load(dy_ptr + sample * pixels + offs_m, mask=in_m, other=0.0).to(tl.float32)
    if y_ptr is not None:
        y = tl.load(y_ptr + sample * pixels + offs_m, mask=in_m, other=0.0).to(tl.float32)
        dy = activate_backward(dy, y, slope, ACT, True)
        dy = tl.where(in_m, dy, 0.0)
    tl.store(db_ptr + pid, tl.sum(dy, 0))
    offs = sample * pixels * C + (offs_m * C)[:, None] + offs_c[None, :]
    for start in range(0, C, BLOCK_C):
        in_c = offs_c < C - start
        mask = in_m[:, None] & in_c[None, :]
        if dx_ptr is not None:
            w = tl.load(w_ptr + group * C + start + offs_c, mask=in_c, other=0.0).to(tl.float32)
            dx = dy[:, None] * w[None, :]
            tl.store(dx_ptr + offs + start, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if dw_ptr is not None:
            x = tl.load(x_ptr + offs + start, mask=mask, other=0.0).to(tl.float32)
            dw_ptrs = dw_ptr + pid.to(tl.int64) * C + start + offs_c
            tl.store(dw_ptrs, tl.sum(dy[:, None] * x, 0), mask=in_c)


@triton.jit(do_not_specialize=COUNTS)
def dot_merge_kernel(
    partial_b_ptr,  # [G * rows] fp32
    partial_ptr,  # [G * rows, C] fp32, or None
    dw_ptr,  # [G, C], or None
    db_ptr,  # [G], or None
    rows,
    C,
    tiles_c,
    stride_g,
    stride_c,
    stride_b,
    add_dw,  # 1: to what dw holds
    add_db,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    group = pid // tiles_c
    offs_c = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_t = tl.arange(0, BLOCK_T)
    before = group.to(tl.int64) * rows
    if dw_ptr is not None:
        acc = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
        for start in range(0, rows, BLOCK_T):
            mask = (offs_t < rows - start)[:, None] & (offs_c < C)[None, :]
            ptrs = partial_ptr + (before + start + offs_t)[:, None] * C + offs_c[None, :]
            acc += tl.load(ptrs, mask=mask, other=0.0)
        dw_ptrs = dw_ptr + group * stride_g + offs_c * stride_c
        dw = tl.load(dw_ptrs, mask=(offs_c < C) & (add_dw != 0), other=0.0).to(tl.float32)
        dw += tl.sum(acc, 0)
        tl.store(dw_ptrs, dw.to(dw_ptr.dtype.element_ty), mask=offs_c < C)
    if db_ptr is not None:
        total = tl.zeros((BLOCK_T,), tl.float32)
        for start in range(0, rows, BLOCK_T):
            mask = offs_t < rows - start
            total += tl.load(partial_b_ptr + before + start + offs_t, mask=mask, other=0.0)
        first = pid % tiles_c == 0
        db_ptrs = db_ptr + group * stride_b
        db = tl.load(db_ptrs, mask=first & (add_db != 0), other=0.0).to(tl.float32)
        db += tl.sum(total, 0)
        tl.store(db_ptrs, db.to(db_ptr.dtype.element_ty), mask=first)
