"""Nearest 2x upsampling, convolution, normalisation and activation, without the large image.

The product runs on the small image, in four phases of fewer taps (36 products where 5x5 filters
take 100); phases.py has the algebra, and the corrections that reflect padding needs along the
border. Filters are summed in fp32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.conv_block import conv_block
from fastunit.kernels.phases import REFLECT_LIMIT


def upsample_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    padding: int = 2,
    pad_mode: str = "zero",
    norm: str = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
    slope: float | Tensor = 0.2,
    impl: str = "auto",
) -> Tensor:
    """Double x's height and width by repetition, then apply `conv_norm_act` with stride 1.

    Args:
        x: [N, C, H, W], floating dtype, any memory format, any H and W.
        w: [K, C, R, S] or [G, K, C, R, S], b: [K] or [G, K]. The Triton implementation takes
            square filters; "auto" runs others on ATen.
        padding: pixels added on each side *after* upsampling; pad_mode as in `conv_norm_act`.
            Reflect padding of more than 2 builds the large image.
        norm, gamma, beta, eps, act, slope, impl: as in `conv_norm_act`.

    Returns:
        [N, K, P, Q] with P = 2 * H + 2 * padding - R + 1, likewise Q. Otherwise as
        `conv_norm_act`.

    Differentiable, once, in every tensor argument.

    Raises:
        ValueError, NotImplementedError, RuntimeError: as `conv_norm_act`.
    """
    kind = "upsample"
    if pad_mode == "reflect" and padding > REFLECT_LIMIT:
        kind, x = "conv", F.interpolate(x, scale_factor=2, mode="nearest")
    return conv_block(
        kind, x, w, b, gamma, beta, None, slope, padding=padding, pad_mode=pad_mode, norm=norm,
        eps=eps, act=act, impl=impl, name="upsample_conv",
    )  # fmt: skip
