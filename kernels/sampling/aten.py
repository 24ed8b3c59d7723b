"""Reparameterised sampling in plain PyTorch: any device and floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.common.eager import transformed
from fastunit.kernels.sampling import philox


def fprop(
    mu: Tensor, raw: Tensor | None, source: Tensor, sigma: str, scale: float
) -> tuple[Tensor, Tensor]:
    noise = noise_of(source, mu)
    wide = mu.to(accumulator(mu))
    terms = wide.square()
    if raw is None:  # sigma = 1
        z = wide + noise
    else:
        raw = raw.to(wide.dtype)
        value = _sigma_aten(raw, sigma)
        z = wide + value * noise
        terms = terms + value.square() - 2 * _log_sigma_aten(raw, value, sigma) - 1
    return z.to(mu.dtype), terms.sum() * scale


def dgrad(
    dz: Tensor,
    dkl: Tensor,
    mu: Tensor,
    raw: Tensor | None,
    source: Tensor | None,
    sigma: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    dkl = 2 * scale * dkl
    wide = mu.to(accumulator(mu))
    dmu = (dz + dkl * wide).to(mu.dtype)
    if raw is None:  # sigma = 1
        return dmu, mu.new_empty(0)
    assert source is not None  # kept for a learned sigma
    raw = raw.to(wide.dtype)
    value = _sigma_aten(raw, sigma)
    slope = _log_sigma_slope_aten(raw, value, sigma)
    draw = slope * (value * noise_of(source, mu) * dz + dkl * (value.square() - 1))
    return dmu, draw.to(mu.dtype)


def accumulator(mu: Tensor) -> torch.dtype:
    """Return the dtype of arithmetic and of the divergence: float32, or mu's if wider."""
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


def noise_of(source: Tensor, mu: Tensor) -> Tensor:
    if source.dtype != torch.int64:
        return source
    drawn = philox.normals_aten(source, mu.numel())
    if transformed():  # strides may then count other samples in
        return drawn[: mu.numel()].view(mu.shape)
    return drawn.as_strided(mu.shape, mu.stride())
