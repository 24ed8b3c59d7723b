"""z = mu + noise with its KL divergence (Kingma and Welling 2014; UNIT, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def reparameterize(mu: Tensor, *, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sample z ~ N(mu, I) and return it with the release's KL term.

    Args:
        mu: code of any shape, floating dtype.
        noise: unit normals of mu's shape, dtype and device; None draws them from PyTorch's
            default generator of that device.

    Returns:
        z = mu + noise, of mu's shape; and the scalar mean(mu^2). KL(N(mu, I) || N(0, I)) is
        half the *sum* of mu^2; the release's constant factor is kept so that its weights apply.

    Differentiable in mu.

    Raises:
        ValueError: noise has another shape than mu.
    """
    if noise is None:
        noise = torch.randn_like(mu)
    elif noise.shape != mu.shape:
        raise ValueError(
            f"noise of shape {tuple(noise.shape)} must have mu's shape {tuple(mu.shape)}"
        )
    return mu + noise, mu.square().mean()
