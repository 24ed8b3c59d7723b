"""Transposed convolution, normalisation and activation, by phases.

Each output pixel of a transposed convolution of stride s meets one of s * s subsets of the
filter's taps, its phase; a product per phase over the small image computes all of them without
multiplying by the zeros that a stride inserts. It is the kernel of a convolution's input
gradient, and its gradient is a strided convolution.
"""

from __future__ import annotations

from torch import Tensor

from fastunit.kernels.conv_block import conv_block


def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int = 2,
    padding: int = 0,
    output_padding: int = 0,
    norm: str = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Apply ``act(gamma * norm(conv_transpose(x, w) + b) + beta) + residual``.

    Args:
        x: [N, C, H, W], floating dtype, any memory format.
        w: [C, K, R, S], as in `torch.nn.functional.conv_transpose2d`, or [G, C, K, R, S]; b:
            [K] or [G, K]. The Triton implementation takes square filters; "auto"
            runs others on ATen.
        stride, padding, output_padding: as PyTorch's, both axes; output_padding < stride.
        norm, gamma, beta, eps, act, slope, residual, impl: as in `conv_norm_act`.

    Returns:
        [N, K, P, Q] with P = (H - 1) * stride - 2 * padding + R + output_padding, likewise Q.
        Otherwise as `conv_norm_act`.

    Differentiable, once, in every tensor argument.

    Raises:
        ValueError, NotImplementedError, RuntimeError: as `conv_norm_act`.
    """
    return conv_block(
        "transpose", x, w, b, gamma, beta, residual, slope, stride=stride, padding=padding,
        output_padding=output_padding, norm=norm, eps=eps, act=act, impl=impl,
    )  # fmt: skip
