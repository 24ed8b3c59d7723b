"""Nearest 2x upsampling followed by a convolution that keeps the size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels import checks
from fastunit.kernels.conv_norm_act import conv_norm_act


def upsample_conv(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, padding: int = 2, pad_mode: str = "zero"
) -> Tensor:
    """Double x's height and width by repetition, then convolve with stride 1.

    Args:
        x: [N, C, H, W], floating dtype, any memory format.
        w: [K, C, R, S] and b: [K], of x's dtype.
        padding: pixels added on each side *after* upsampling; pad_mode as in `conv_norm_act`.

    Returns:
        [N, K, P, Q] with P = 2 * H + 2 * padding - R + 1, likewise Q.

    Differentiable in every tensor argument.

    Raises:
        ValueError: shapes do not fit, or the padding mode is unknown.
    """
    checks.image("x", x)
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    return conv_norm_act(x, w, b, padding=padding, pad_mode=pad_mode)
