"""The Triton kernel that adds up what the columns of a convolution's filters contribute."""

from __future__ import annotations

import triton
import triton.language as tl

from fastunit.kernels.common.activations import activate
from fastunit.kernels.common.dependent import wait_for_previous
from fastunit.kernels.common.runtime import COUNTS


@triton.jit(do_not_specialize=COUNTS)
def shift_add_kernel(
    shares_ptr,  # [N, P, Q + S - 1, S, K] fp32
    b_ptr,  # [G, K], or None
    y_ptr,  # [N, P, Q, K]
    P,
    Q,
    K,
    S,
    samples_per_group,
    blocks,  # of a sample
    slope,
    ACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    pid = tl.program_id(0)
    sample = (pid // blocks).to(tl.int64)
    offs = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = offs < P * Q * K
    k = offs % K
    pixel = offs // K
    first = (pixel + pixel // Q * (S - 1)) * S * K + k
    ptrs = shares_ptr + sample * P * (Q + S - 1) * S * K + first
    acc = tl.zeros((BLOCK,), tl.float32)
    for _ in range(S):
        acc += tl.load(ptrs, mask=inside, other=0.0)
        ptrs += S * K + K
    if b_ptr is not None:
        bias = tl.load(b_ptr + sample // samples_per_group * K + k, mask=inside, other=0.0)
        acc += bias.to(tl.float32)
    y = activate(acc, slope, ACT).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + sample * P * Q * K + offs, y, mask=inside)
