"""The block that convolutional networks are made of: pad, convolve, normalise, activate, add.

Forward is three or four launches: the haloed input, the product with the norm's per-tile
statistics, their merge, and one pass for everything after them. A bias and an activation alone
are the product's epilogue. Backward: two passes over pixels for the tail, the product's two
gradients, and one pass that folds the halo. Saved: the haloed input, the raw product, mean and
rstd; without a norm the haloed input and the result, which then may not be changed in place
before backward; of a bare convolution the haloed input alone.
"""

from __future__ import annotations

from torch import Tensor

from fastunit.kernels.conv_block import conv_block


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
    halo: int = 0,
    halo_mode: str = "zero",
    impl: str = "auto",
) -> Tensor:
    """Apply ``act(gamma * norm(conv(pad(x), w) + b) + beta) + residual``.

    Args:
        x: [N, C, H, W], floating dtype, any memory format; channels_last is not copied.
        w: [K, C, R, S], or [G, K, C, R, S] where G divides N: sample n then uses the filters
            n // (N / G), so that one launch serves two domains. b: [K] or [G, K]. Both of x's
            dtype, or float32, which half-precision networks keep for their optimiser.
        stride: of the convolution, both axes.
        padding: pixels added on each side; pad_mode "zero", "reflect" or "replicate".
        norm, gamma, beta, eps, act, slope: as in `norm_act`.
        residual: [N, K, P, Q], added after the activation.
        halo: pixels then added around the result, by halo_mode, for a convolution that follows
            with padding=0.
        impl: "auto", "triton" or "aten"; see `runtime`.

    Returns:
        [N, K, P, Q] with P = (H + 2 * padding - R) // stride + 1, likewise Q, both enlarged by
        2 * halo; x's dtype (autocast's where that is on). channels_last from Triton, else in
        x's memory format. Products and statistics are accumulated in fp32 or wider.

    Differentiable, once and in reverse mode, in every tensor argument; gradients have the dtypes
    of their tensors.
    Same bits for same inputs. Compiles into a full graph; captured by CUDA graphs.

    Raises:
        ValueError: shapes do not fit, a padding mode, norm or activation is unknown, or
            impl="triton" cannot take x.
        NotImplementedError: on forward-mode AD, and on the gradients of torch.func.
        RuntimeError: on a second derivative.
    """
    return conv_block(
        "conv", x, w, b, gamma, beta, residual, slope, stride=stride, padding=padding,
        pad_mode=pad_mode, norm=norm, eps=eps, act=act, halo=halo, halo_mode=halo_mode, impl=impl,
    )  # fmt: skip
