"""z = mu + sigma * noise with its KL divergence (Kingma and Welling 2014; UNIT, equation 1).

Forward is one launch: it draws the noise (`philox`), writes z, and writes each tile's share of
the divergence, which the program that ends last adds up in fixed order. Backward is one launch.
sigma = 1 needs no noise there; for a learned sigma it is drawn again, so that of the noise only 16
bytes are kept.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fastunit.kernels.common import checks, derivatives, eager, runtime
from fastunit.kernels.common.frame import memory_format
from fastunit.kernels.sampling import aten, launch, philox

Sigma = Literal["unit", "softplus", "exp_half"]
Divergence = Literal["mean_square", "normal"]
_IMPLEMENTATIONS = {"aten": aten, "triton": launch}
SIGMAS, KLS = get_args(Sigma), get_args(Divergence)


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
        impl: "auto", "triton", "aten" or "plain"; see `fastunit.kernels.common.runtime`.

    Returns:
        z of mu's shape, dtype and memory format, and the scalar kl, of float32 or mu's dtype,
            whichever is wider. An empty batch has a kl of 0.

    Computes in float32 or wider. Differentiable in mu and raw_sigma; keeps these two, and
    for a learned sigma the noise where it was given or drawn as normals. The same noise gives
    the same bits. Works in torch.compile(fullgraph=True) and in CUDA graphs, where
    each replay draws fresh noise, with a state or without. A recomputation in backward
    (activation checkpointing) must not be given a state: it would draw again, other noise.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; an option is unknown; raw_sigma is
            missing or unused; noise and state are both given; "mean_square" of a learned sigma;
            or impl cannot run here.
        NotImplementedError: impl is "triton" or "aten", under forward-mode AD or a gradient of
            torch.func.
        RuntimeError: a second derivative of "triton" or "aten", or of compiled code.
    """
    _check(mu, raw_sigma, sigma, kl)
    _check_source(mu, noise, state)
    chosen, auto = runtime.choose(impl, mu)
    given = mu, raw_sigma, noise
    if chosen != "plain" and derivatives.only_plain(impl, "reparameterize", *given):
        chosen = "plain"
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
    if chosen == "plain":
        assert source is not None
        source = aten.noise_of(source, torch.empty_like(mu))  # mu itself need not be dense
        return aten.fprop(mu, raw_sigma, source, sigma, _scale(mu, kl))
    if eager.only_autograd(*tensors):
        return _Eager.apply(*tensors, sigma, kl, chosen, auto)
    return _reparameterize(*tensors, sigma, kl, chosen)


def _normals(mu: Tensor) -> Tensor:
    """Draw as `torch.randn_like`, in the order of mu's memory.

    On CPUs PyTorch (2.13) takes ten times as long for channels_last as for contiguous tensors.
    """
    if mu.dim() == 4 and memory_format(mu) == torch.channels_last:
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


def _fprop(
    mu: Tensor, raw: Tensor | None, source: Tensor, sigma: str, kl: str, impl: str
) -> tuple[Tensor, Tensor]:
    fprop = _IMPLEMENTATIONS[impl].fprop
    like = torch.empty_like(mu)
    mu, source = _aligned(like, mu), _aligned(like, source)
    raw = None if raw is None else _aligned(like, raw)
    return fprop(mu, raw, source, sigma, _scale(mu, kl))


_reparameterize = torch.library.custom_op("fastunit::reparameterize", _fprop, mutates_args=())


@_reparameterize.register_fake
def _(mu, raw, source, sigma, kl, impl):
    return torch.empty_like(mu), mu.new_empty((), dtype=aten.accumulator(mu))


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
    dgrad = _IMPLEMENTATIONS[impl].dgrad
    like = torch.empty_like(mu)
    dz, mu = _aligned(like, dz), _aligned(like, mu)
    raw, source = [None if value is None else _aligned(like, value) for value in (raw, source)]
    return dgrad(dz, dkl, mu, raw, source, sigma, _scale(mu, kl))


_reparameterize_backward = torch.library.custom_op(
    "fastunit::reparameterize_backward", _bprop, mutates_args=()
)


@_reparameterize_backward.register_fake
def _(dz, dkl, mu, raw, source, sigma, kl, impl):
    return torch.empty_like(mu), mu.new_empty(0) if raw is None else torch.empty_like(mu)


def _setup_context(ctx, inputs, output) -> None:
    mu, raw, source, *ctx.options = inputs
    ctx.auto = False
    ctx.save_for_backward(mu, raw, None if raw is None else source)


def _backward(ctx, *gradients):
    raw = ctx.saved_tensors[1]
    tensors, options = (*gradients, *ctx.saved_tensors), ctx.options
    if ctx.auto and derivatives.differentiated_again():
        backward, options = _bprop, [*options[:2], "aten"]  # whose operations are PyTorch's
    else:
        backward = _bprop if eager.hides_backward(*tensors) else _reparameterize_backward
    dmu, draw = backward(*tensors, *options)
    return dmu, None if raw is None else draw, None, None, None, None


def _refuse(ctx, *gradients):
    derivatives.refuse_second("reparameterize")


class _Eager(torch.autograd.Function):
    """The forward operator in eager mode."""

    @staticmethod
    def forward(ctx, *args):
        *args, auto = args
        found = _fprop(*args)
        _setup_context(ctx, args, found)
        ctx.auto = auto
        return found

    @staticmethod
    def backward(ctx, *gradients):
        return *_backward(ctx, *gradients), None


_reparameterize.register_autograd(_backward, setup_context=_setup_context)
_reparameterize_backward.register_autograd(_refuse)
