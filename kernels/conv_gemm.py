"""Convolution of a haloed image, with a bias and an activation: one matrix product.

The plain form of the kernels in `conv_gemm_triton`. A 3x3 window of a channels-last image is
three runs of consecutive values, so the product reads its windows in place.
"""

from __future__ import annotations

from torch import Tensor

from fastunit.kernels.conv_block import conv_block


def conv_gemm(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int = 1,
    act: str = "none",
    slope: float = 0.2,
    impl: str = "auto",
) -> Tensor:
    """Apply ``act(conv(x, w) + b)`` where every window lies inside x.

    Args:
        x: [N, C, H, W], floating dtype. Not copied where it is channels_last, C a multiple of 8
            (or 4), and H and W multiples of the stride.
        w: [K, C, R, S] or [G, K, C, R, S]; b: [K] or [G, K]; stride; impl: as in `conv_norm_act`.
        act: "none", "relu", "lrelu", "selu" or "tanh"; slope: lrelu's.

    Returns:
        [N, K, P, Q] with P = (H - R) // stride + 1, likewise Q. Otherwise as `conv_norm_act`.

    Differentiable, once, in x, w and b. Saved: x and, with an activation, the result.

    Raises:
        ValueError, NotImplementedError, RuntimeError: as `conv_norm_act`.
    """
    return conv_block(
        "conv", x, w, b, slope=slope, stride=stride, act=act, impl=impl, name="conv_gemm"
    )
