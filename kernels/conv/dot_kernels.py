"""Convolution with one 1x1 filter, a dot product over channels: the Triton kernels.

Sums are in fp32, in a fixed order, without atomics; forward, offsets within a sample are int32.
"""

# Kernels call kernels, and `triton.jit` is typed as if these calls never returned.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from fastunit.kernels.common.activations import activate
from fastunit.kernels.common.dependent import wait_for_previous
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
    wait_for_previous()
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


@triton.jit
def _write(ptrs, values, add, mask):
    """Store the values, or add them to what is there."""
    values += tl.load(ptrs, mask=mask & (add != 0), other=0.0).to(tl.float32)
    tl.store(ptrs, values.to(ptrs.dtype.element_ty), mask=mask)


# A program has a few channels of all of a group's pixels, so that nothing is left to merge.
@triton.jit(do_not_specialize=COUNTS)
def dot_backward_kernel(
    dy_ptr,  # [G, pixels]
    y_ptr,  # [G, pixels], the result; or None without an activation
    x_ptr,  # [G, pixels, C]
    w_ptr,  # [G, C]
    dx_ptr,  # [G, pixels, C], or None
    dw_ptr,  # [G, C], or None
    db_ptr,  # [G], or None
    pixels,  # of all samples of a group
    C,
    tiles_c,
    stride_g,
    stride_c,
    stride_b,
    add_dw,  # 1: to what dw holds
    add_db,
    slope,
    ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    wait_for_previous()
    pid = tl.program_id(0)
    group = (pid // tiles_c).to(tl.int64)
    offs_c = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = offs_c < C
    w = tl.load(w_ptr + group * C + offs_c, mask=in_c, other=0.0).to(tl.float32)
    dw = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    db = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, pixels, BLOCK_M):
        in_m = tl.arange(0, BLOCK_M) < pixels - start
        offs_m = group * pixels + start + tl.arange(0, BLOCK_M)
        dy = tl.load(dy_ptr + offs_m, mask=in_m, other=0.0).to(tl.float32)
        if y_ptr is not None:
            y = tl.load(y_ptr + offs_m, mask=in_m, other=0.0).to(tl.float32)
            dy = tl.where(in_m, activate_backward(dy, y, slope, ACT, True), 0.0)
        offs = (offs_m * C)[:, None] + offs_c[None, :]
        mask = in_m[:, None] & in_c[None, :]
        if dx_ptr is not None:
            dx = dy[:, None] * w[None, :]
            tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if dw_ptr is not None:
            dw += dy[:, None] * tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        db += dy
    if dw_ptr is not None:
        _write(dw_ptr + group * stride_g + offs_c * stride_c, tl.sum(dw, 0), add_dw, in_c)
    if db_ptr is not None:
        _write(db_ptr + group * stride_b, tl.sum(db, 0), add_db, pid % tiles_c == 0)
