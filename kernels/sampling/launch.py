"""Reparameterised sampling in Triton: a kernel forward, a kernel backward, and their launchers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastunit.kernels.common import runtime
from fastunit.kernels.common.dependent import wait_for_previous
from fastunit.kernels.common.last_program import is_last
from fastunit.kernels.sampling import philox

BLOCK = 2048  # values per program: two 16-byte loads of 2-byte values in each of 128 threads


@triton.jit
def _log1p(x):
    """For x in [0, 1], to fp32 rounding even where 1 + x is 1: 2 atanh(x / (2 + x))."""
    s = x / (2.0 + x)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q / 13)))))
    return 2.0 * s * series


@triton.jit
def _sigma(raw, SIGMA: tl.constexpr):
    """Return sigma, log(sigma), and the derivative of log(sigma) by raw."""
    if SIGMA == "exp_half":
        return tl.exp(0.5 * raw), 0.5 * raw, tl.full(raw.shape, 0.5, tl.float32)
    else:
        # Bounded before it underflows: the quotient and the logarithm stay finite. Below -16,
        # log(softplus(raw)) is raw to rounding.
        e = tl.exp(tl.maximum(-tl.abs(raw), -80.0))
        sigma = tl.where(raw < 0, 0.0, raw) + _log1p(e)  # not maximum(): a NaN stays a NaN
        slope = tl.where(raw < 0, e, 1.0) / (1.0 + e) / sigma
        return sigma, tl.where(raw < -80.0, raw, tl.log(sigma)), slope


@triton.jit
def _noise(source_ptr, start, offs, mask, BLOCK: tl.constexpr):
    """Load the noise of the tile at `start`, or draw it where the source is a pair."""
    if source_ptr.dtype.element_ty == tl.int64:
        return philox.normals(source_ptr, start, BLOCK)
    else:
        return tl.load(source_ptr + start + offs, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _reparameterize_fprop_kernel(
    mu_ptr,  # [n]
    raw_ptr,  # [n], or None for sigma = 1
    source_ptr,  # [n] noise, or [2] int64: seed and counter to draw it from
    z_ptr,  # [n]
    partial_ptr,  # [programs] fp32
    kl_ptr,  # scalar, fp32: the last program writes the sum of the parts
    counter_ptr,  # a zero; see `is_last`
    n,
    scale,
    SIGMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offs = tl.arange(0, BLOCK)
    mask = offs < n - start
    mu = tl.load(mu_ptr + start + offs, mask=mask, other=0.0).to(tl.float32)
    noise = _noise(source_ptr, start, offs, mask, BLOCK)
    terms = mu * mu
    if SIGMA == "unit":
        z = mu + noise
    else:
        raw = tl.load(raw_ptr + start + offs, mask=mask, other=0.0).to(tl.float32)
        sigma, log_sigma, _ = _sigma(raw, SIGMA)
        z = mu + sigma * noise
        terms += sigma * sigma - 2.0 * log_sigma - 1.0
    tl.store(z_ptr + start + offs, z.to(z_ptr.dtype.element_ty), mask=mask)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.where(mask, terms, 0.0), 0) * scale)
    programs = tl.num_programs(0)
    if is_last(counter_ptr, programs):
        total = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, programs, BLOCK):
            parts = partial_ptr + first + offs
            mask = offs < programs - first
            total += tl.load(parts, mask=mask, other=0.0, cache_modifier=".cg")
        tl.store(kl_ptr, tl.sum(total, 0))


@triton.jit
def _reparameterize_dgrad_kernel(
    dz_ptr,  # [n]
    dkl_ptr,  # scalar
    mu_ptr,  # [n]
    raw_ptr,  # [n], or None for sigma = 1
    source_ptr,  # as in fprop, or None for sigma = 1, which needs no noise
    dmu_ptr,  # [n]
    draw_ptr,  # [n]
    n,
    scale,
    SIGMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offs = tl.arange(0, BLOCK)
    mask = offs < n - start
    dkl = 2.0 * scale * tl.load(dkl_ptr).to(tl.float32)
    dz = tl.load(dz_ptr + start + offs, mask=mask, other=0.0).to(tl.float32)
    mu = tl.load(mu_ptr + start + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(dmu_ptr + start + offs, (dz + dkl * mu).to(dmu_ptr.dtype.element_ty), mask=mask)
    if SIGMA != "unit":
        raw = tl.load(raw_ptr + start + offs, mask=mask, other=0.0).to(tl.float32)
        noise = _noise(source_ptr, start, offs, mask, BLOCK)
        sigma, _, slope = _sigma(raw, SIGMA)
        draw = slope * (sigma * noise * dz + dkl * (sigma * sigma - 1.0))
        tl.store(draw_ptr + start + offs, draw.to(draw_ptr.dtype.element_ty), mask=mask)


def fprop(
    mu: Tensor, raw: Tensor | None, source: Tensor, sigma: str, scale: float
) -> tuple[Tensor, Tensor]:
    z, n = torch.empty_like(mu), mu.numel()
    programs = runtime.cdiv(n, BLOCK)
    partial = mu.new_empty(programs, dtype=torch.float32)
    kl = partial.new_empty(()) if n else partial.new_zeros(())
    runtime.launch(
        _reparameterize_fprop_kernel,
        (programs,),
        *(mu, raw, source, z, partial, kl, runtime.counters(1, mu.device), n, scale),
        SIGMA=sigma,
        BLOCK=BLOCK,
    )
    return z, kl


def dgrad(
    dz: Tensor,
    dkl: Tensor,
    mu: Tensor,
    raw: Tensor | None,
    source: Tensor | None,
    sigma: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    dmu, n = torch.empty_like(mu), mu.numel()
    draw = mu.new_empty(0) if raw is None else torch.empty_like(mu)
    runtime.launch(
        _reparameterize_dgrad_kernel,
        (runtime.cdiv(n, BLOCK),),
        *(dz, dkl, mu, raw, source, dmu, draw, n, scale),
        SIGMA=sigma,
        BLOCK=BLOCK,
    )
    return dmu, draw
