"""The block every network here is made of: pad, convolve, normalise, activate, add."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels import checks
from fastunit.kernels.norm_act import norm_act


def conv_norm_act(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    pad_mode: str = "zero",
    norm: str = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,
) -> Tensor:
    """Apply ``act(gamma * norm(conv(pad(x), w) + b) + beta) + residual``.

    Args:
        x: [N, C, H, W], floating dtype, any memory format.
        w: [K, C, R, S] and b: [K], of x's dtype.
        stride: of the convolution, both axes.
        padding: pixels added on each side; pad_mode "zero", "reflect" or "replicate".
        norm, gamma, beta, eps, act, slope, residual: as in `norm_act`; residual is [N, K, P, Q].

    Returns:
        [N, K, P, Q] with P = (H + 2 * padding - R) // stride + 1, likewise Q.

    Differentiable in every tensor argument.

    Raises:
        ValueError: shapes do not fit, or a padding mode, norm or activation is unknown.
    """
    checks.image("x", x)
    checks.filters(x, w, b)
    checks.padding(x, padding, pad_mode)
    checks.window(x, w, padding)
    y = _conv(x, w, b, stride, padding, pad_mode)
    return norm_act(
        y, norm=norm, gamma=gamma, beta=beta, eps=eps, act=act, slope=slope, residual=residual
    )


def _conv(
    x: Tensor, w: Tensor, b: Tensor | None, stride: int, padding: int, pad_mode: str
) -> Tensor:
    if padding and pad_mode != "zero":
        x = F.pad(x, (padding,) * 4, mode=checks.PAD_MODES[pad_mode])
        padding = 0
    return F.conv2d(x, w, b, stride, padding)
