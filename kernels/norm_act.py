"""y = act(gamma * norm(x) + beta) + residual: normalisation, activation and skip connection.

Norms: "in" is instance norm (Ulyanov et al. 2016; biased variance, eps under the root); "ln" is
the UNIT release's layer norm, over (C, H, W) of each sample with the *unbiased* standard
deviation and eps added to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels import checks


def norm_act(
    x: Tensor,
    *,
    norm: str = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,
) -> Tensor:
    """Normalise, scale, activate and add a residual: ``act(gamma * norm(x) + beta) + residual``.

    Args:
        x: [N, C, H, W], floating dtype, any memory format; the result keeps both.
        norm: "none", "in" (over H, W) or "ln" (over C, H, W); see the module's docstring.
        gamma, beta: [C], scale and shift after the norm; None leaves them out.
        act: "none", "relu", "lrelu", "prelu", "selu" or "tanh".
        slope: negative slope; a float for lrelu, a tensor [1] or [C] for prelu.
        residual: of x's shape, added after the activation.

    Differentiable in x, gamma, beta, slope (as a tensor) and residual.

    Raises:
        ValueError: a shape, a norm or an activation is not one of the above.
    """
    checks.image("x", x)
    checks.choice("norm", norm, checks.NORMS)
    checks.choice("act", act, checks.ACTS)
    checks.slope(x, act, slope)
    for name, value in (("gamma", gamma), ("beta", beta)):
        if value is not None and value.shape != x.shape[1:2]:
            raise ValueError(f"{name} must be of shape {(x.shape[1],)}, not {tuple(value.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"residual of shape {tuple(residual.shape)} must have x's shape {tuple(x.shape)}"
        )
    y = _activate(_affine(_normalise(x, norm, eps), gamma, beta), act, slope)
    return y if residual is None else y + residual


def _normalise(x: Tensor, norm: str, eps: float) -> Tensor:
    if norm == "none" or x.numel() == 0:
        return x
    if norm == "in":
        var, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(var + eps)
    std, mean = torch.std_mean(x, dim=(1, 2, 3), correction=1, keepdim=True)
    return (x - mean) / (std + eps)


def _affine(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    if gamma is not None:
        x = x * gamma.view(1, -1, 1, 1)
    if beta is not None:
        x = x + beta.view(1, -1, 1, 1)
    return x


def _activate(x: Tensor, act: str, slope: float | Tensor) -> Tensor:
    if act == "relu":
        return F.relu(x)
    if act == "lrelu":
        return F.leaky_relu(x, slope)
    if act == "prelu":
        return F.prelu(x, slope)
    if act == "selu":
        return F.selu(x)
    if act == "tanh":
        return torch.tanh(x)
    return x
