"""Inputs and results of `reparameterize`, by whatever computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def leaves(
    sigma: str, *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Tensor]:
    """Return mu, and raw_sigma where sigma is learned, of normal values."""
    values = torch.randn(1 if sigma == "unit" else 2, *shape, device=device)
    return [value.to(dtype).requires_grad_() for value in values]


def results(
    sample: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor], dz: Tensor
) -> list[Tensor]:
    """Return z, kl and the gradients of sum(z * dz) + 3 * kl, all float64."""
    z, kl = sample(*inputs)
    gradients = torch.autograd.grad((z, kl), inputs, (dz.to(z.dtype), torch.full_like(kl, 3)))
    return [value.detach().double() for value in (z, kl, *gradients)]
