"""z = mu + sigma * noise with its KL divergence (Kingma and Welling 2014; UNIT, equation 1).

Forward is one launch: it draws the noise (`philox`), writes z, and writes each tile's share of
the divergence; a sum in fixed order joins these. Backward is one launch. sigma = 1 needs no noise
there; for a learned sigma it is drawn again, so that of the noise only 16 bytes are kept.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fastunit.kernels.common import checks, derivatives, eager, runtime
from fastunit.kernels.sampling import philox

Sigma = Literal["unit", "softplus", "exp_half"]
Divergence = Literal["mean_square", "normal"]
SIGMAS, KLS = get_args(Sigma), get_args(Divergence)
BLOCK = 2048  # values per program: two 16-byte loads of 2-byte values in each of 128 threads


def reparameterize(
    mu: Tensor,
    raw_sigma: Tensor | None = None,
    *,
    sigma: Sigma = "unit",
    noise: Tensor | None = None,
    state: Tensor | None = None,
    kl: Divergence = "mean_square",
    impl: runtime.Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Sample z = mu + sigma * noise and return it with a divergence from N(0, I).

    Args:
        mu: code of any shape and memory format; float16, bfloat16 or float32, and on the ATen
            path any floating dtype. What is not dense in memory is copied.
        raw_sigma: what sigma is made from; of mu's shape, dtype and device. None for "unit".
        sigma: "unit" is 1, as in the 2018 release; "softplus" is log(1 + exp(raw_sigma));
            "exp_half" is exp(raw_sigma / 2), where raw_sigma is the logarithm of the variance.
        noise: unit normals of mu's shape, any floating dtype; they get no gradient. None draws.
        state: int64 [2] on mu's device, from `noise_state`: what to draw from. Advanced in place
            by the ceil(mu.numel() / 4) counters that the draw consumes. The same state gives the
            same noise everywhere, up to rounding, in the order of z's memory. None draws from
            PyTorch's generator of the device: on the ATen path the normals, on the Triton path a
            state for this call.
        kl: "mean_square" is mean(mu^2), for sigma = 1 alone: the release's term, a constant
            multiple of the divergence, to which its weights apply. "normal" is
            KL(N(mu, sigma^2) || N(0, I)) = sum(mu^2 + sigma^2 - log(sigma^2) - 1) / 2, the sum
            over the code and the mean over the batch, which is mu's first dimension.
        impl: "auto", "triton" or "aten"; see `fastunit.kernels.common.runtime`.

    Returns:
        z of mu's shape, dtype and memory format, and the scalar kl, of float32 or mu's dtype,
            whichever is wider. An empty batch has a kl of 0.

    Computes in float32 or wider. Differentiable once, in mu and raw_sigma; keeps these two, and
    for a learned sigma the noise where it was given or drawn as normals. No atomics: the same
    noise gives the same bits. Works in torch.compile(fullgraph=True) and in CUDA graphs, where
    each replay draws fresh noise, with a state or without. A recomputation in backward
    (activation checkpointing) must not be given a state: it would draw again, other noise.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; an option is unknown; raw_sigma is
            missing or unused; noise and state are both given; "mean_square" of a learned sigma;
            or impl cannot run here.
        NotImplementedError: on forward-mode AD, and on the gradients of torch.func.
        RuntimeError: on a second derivative.
    """
    _check(mu, raw_sigma, sigma, kl)
    _check_source(mu, noise, state)
    derivatives.only_reverse("reparameterize", mu, raw_sigma, noise)
    chosen = runtime.choose_impl(impl, mu)
    source = noise
    if state is not None:
        source = philox.take(state, mu.numel())
    elif noise is None and chosen == "triton":
        source = philox.random_state(mu.device)
    elif noise is None and torch.compiler.is_compiling():
        # Of two randn_like(mu), torch.compile (2.13) makes one.
        source = torch.randn(mu.shape, dtype=mu.dtype, device=mu.device)
    elif noise is None:
        source = _normals(mu)
    tensors = mu, raw_sigma, source
    apply = _Eager.apply if eager.is_plain(*tensors) else _reparameterize
    return apply(*tensors, sigma, kl, chosen)


def _normals(mu: Tensor) -> Tensor:
    """Draw as `torch.randn_like`, in the order of mu's memory.

    On CPUs PyTorch (2.13) takes ten times as long for channels_last as for contiguous tensors.
    """
    if mu.dim() == 4 and mu.is_contiguous(memory_format=torch.channels_last):
        shape = [mu.shape[axis] for axis in (0, 2, 3, 1)]
        return torch.randn(shape, dtype=mu.dtype, device=mu.device).permute(0, 3, 1, 2)
    return torch.randn_like(mu)


def _check(mu: Tensor, raw_sigma: Tensor | None, sigma: str, kl: str) -> None:
    checks.choice("sigma", sigma, SIGMAS)
    checks.choice("kl", kl, KLS)
    if not mu.is_floating_point():
        raise ValueError(f"mu must be of a floating dtype, not {mu.dtype}")
    if (raw_sigma is None) != (sigma == "unit"):
        found = "without one" if raw_sigma is None else "with one"
        raise ValueError(f"sigma={sigma!r} {found}: raw_sigma goes with softplus and exp_half")
    if sigma != "unit" and kl == "mean_square":
        raise ValueError(f"kl='mean_square' leaves out sigma={sigma!r}; use kl='normal'")
    if raw_sigma is None:
        return
    _check_shape("raw_sigma", raw_sigma, mu)
    if raw_sigma.dtype != mu.dtype:
        raise ValueError(f"raw_sigma of {raw_sigma.dtype} must have mu's dtype, {mu.dtype}")


def _check_source(mu: Tensor, noise: Tensor | None, state: Tensor | None) -> None:
    if noise is not None and state is not None:
        raise ValueError("noise and state exclude each other: a state is there to draw from")
    if noise is not None:
        _check_shape("noise", noise, mu)
        if not noise.is_floating_point() or noise.requires_grad:
            raise ValueError(
                "noise must be of a floating dtype and require no gradient, not "
                f"{noise.dtype} with requires_grad={noise.requires_grad}"
            )
    if state is not None and (
        state.shape != (2,) or state.dtype != torch.int64 or state.device != mu.device
    ):
        raise ValueError(
            f"state must be int64 [2] on {mu.device}, as from noise_state(seed, device), not "
            f"{state.dtype} {list(state.shape)} on {state.device}"
        )


def _check_shape(name: str, value: Tensor, mu: Tensor) -> None:
    if value.shape != mu.shape:
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} must have mu's shape {tuple(mu.shape)}"
        )
    if value.device != mu.device:
        raise ValueError(f"{name} on {value.device} must be on mu's device, {mu.device}")


def _scale(mu: Tensor, kl: str) -> float:
    """Return the factor of the sum of squares in the divergence."""
    if kl == "mean_square":
        return 1 / max(mu.numel(), 1)
    return 0.5 / max(mu.shape[0] if mu.dim() else 1, 1)


def _aligned(like: Tensor, value: Tensor) -> Tensor:
    """Return the value laid out in memory as the dense `like`; a (seed, counter) pair as it is."""
    if value.dtype == torch.int64 or value.stride() == like.stride():
        return value
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


# ---- ATen


def _reparameterize_fprop_aten(
    mu: Tensor, raw: Tensor | None, source: Tensor, sigma: str, scale: float
) -> tuple[Tensor, Tensor]:
    noise = _noise_aten(source, mu)
    wide = mu.to(_wide(mu))
    terms = wide.square()
    if raw is None:  # sigma = 1
        z = wide + noise
    else:
        raw = raw.to(wide.dtype)
        value = _sigma_aten(raw, sigma)
        z = wide + value * noise
        terms = terms + value.square() - 2 * _log_sigma_aten(raw, value, sigma) - 1
    return z.to(mu.dtype), terms.sum() * scale


def _reparameterize_dgrad_aten(
    dz: Tensor,
    dkl: Tensor,
    mu: Tensor,
    raw: Tensor | None,
    source: Tensor | None,
    sigma: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    dkl = 2 * scale * dkl
    wide = mu.to(_wide(mu))
    dmu = (dz + dkl * wide).to(mu.dtype)
    if raw is None:  # sigma = 1
        return dmu, mu.new_empty(0)
    assert source is not None  # kept for a learned sigma
    raw = raw.to(wide.dtype)
    value = _sigma_aten(raw, sigma)
    slope = _log_sigma_slope_aten(raw, value, sigma)
    draw = slope * (value * _noise_aten(source, mu) * dz + dkl * (value.square() - 1))
    return dmu, draw.to(mu.dtype)


def _wide(mu: Tensor) -> torch.dtype:
    return torch.promote_types(mu.dtype, torch.float32)


def _sigma_aten(raw: Tensor, sigma: str) -> Tensor:
    return (0.5 * raw).exp() if sigma == "exp_half" else F.softplus(_bounded(raw))


def _log_sigma_aten(raw: Tensor, value: Tensor, sigma: str) -> Tensor:
    return 0.5 * raw if sigma == "exp_half" else value.log() + (raw - _bounded(raw))


def _log_sigma_slope_aten(raw: Tensor, value: Tensor, sigma: str) -> Tensor | float:
    return 0.5 if sigma == "exp_half" else _bounded(raw).sigmoid() / value


def _bounded(raw: Tensor) -> Tensor:
    """Keep softplus above 0, and with it logarithm and quotient finite; see `_sigma`."""
    return raw.clamp(min=-80)


def _noise_aten(source: Tensor, mu: Tensor) -> Tensor:
    if source.dtype != torch.int64:
        return source
    return philox.normals_aten(source, mu.numel()).as_strided(mu.shape, mu.stride())


# ---- Triton


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
    n,
    scale,
    SIGMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
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


def _reparameterize_fprop_triton(
    mu: Tensor, raw: Tensor | None, source: Tensor, sigma: str, scale: float
) -> tuple[Tensor, Tensor]:
    z, n = torch.empty_like(mu), mu.numel()
    programs = runtime.cdiv(n, BLOCK)
    partial = mu.new_empty(programs, dtype=torch.float32)
    runtime.launch(
        _reparameterize_fprop_kernel,
        (programs,),
        *(mu, raw, source, z, partial, n, scale),
        SIGMA=sigma,
        BLOCK=BLOCK,
    )
    return z, partial.sum()


def _reparameterize_dgrad_triton(
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


# ---- Registration


def _fprop(
    mu: Tensor, raw: Tensor | None, source: Tensor, sigma: str, kl: str, impl: str
) -> tuple[Tensor, Tensor]:
    fprop = _reparameterize_fprop_triton if impl == "triton" else _reparameterize_fprop_aten
    like = torch.empty_like(mu)
    mu, source = _aligned(like, mu), _aligned(like, source)
    raw = None if raw is None else _aligned(like, raw)
    return fprop(mu, raw, source, sigma, _scale(mu, kl))


_reparameterize = torch.library.custom_op("fastunit::reparameterize", _fprop, mutates_args=())


@_reparameterize.register_fake
def _(mu, raw, source, sigma, kl, impl):
    return torch.empty_like(mu), mu.new_empty((), dtype=_wide(mu))


def _bprop(
    dz: Tensor,
    dkl: Tensor,
    mu: Tensor,
    raw: Tensor | None,
    source: Tensor | None,
    sigma: str,
    kl: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    dgrad = _reparameterize_dgrad_triton if impl == "triton" else _reparameterize_dgrad_aten
    like = torch.empty_like(mu)
    dz, mu = _aligned(like, dz), _aligned(like, mu)
    raw, source = (None if value is None else _aligned(like, value) for value in (raw, source))
    return dgrad(dz, dkl, mu, raw, source, sigma, _scale(mu, kl))


_reparameterize_backward = torch.library.custom_op(
    "fastunit::reparameterize_backward", _bprop, mutates_args=()
)


@_reparameterize_backward.register_fake
def _(dz, dkl, mu, raw, source, sigma, kl, impl):
    return torch.empty_like(mu), mu.new_empty(0) if raw is None else torch.empty_like(mu)


def _setup_context(ctx, inputs, output) -> None:
    mu, raw, source, *ctx.options = inputs
    ctx.save_for_backward(mu, raw, None if raw is None else source)


def _backward(ctx, *gradients):
    raw = ctx.saved_tensors[1]
    tensors = *gradients, *ctx.saved_tensors
    backward = _bprop if eager.hides_backward(*tensors) else _reparameterize_backward
    dmu, draw = backward(*tensors, *ctx.options)
    return dmu, None if raw is None else draw, None, None, None, None


def _refuse(ctx, *gradients):
    derivatives.refuse_second("reparameterize")


class _Eager(torch.autograd.Function):
    """The forward operator in eager mode."""

    @staticmethod
    def forward(ctx, *args):
        found = _fprop(*args)
        _setup_context(ctx, args, found)
        return found

    backward = staticmethod(_backward)


_reparameterize.register_autograd(_backward, setup_context=_setup_context)
_reparameterize_backward.register_autograd(_refuse)
