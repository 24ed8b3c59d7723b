"""The public convolutions: blocks of padding, convolution, normalisation and activation.

Forward is three or four launches: the haloed input, the GEMM with the norm's per-tile statistics,
their merge, and one pass for everything after them. A bias and an activation alone are the GEMM's
epilogue. Backward: two passes over pixels for norm and activation, the GEMM's two gradients, and
one pass that folds the halo. Saved: the haloed input, the GEMM's result, mean and rstd; without a
norm the haloed input and the block's result, which then may not be changed in place before
backward; of a bare convolution the haloed input alone.

On a CPU in eager mode blocks of small images are padding, convolution and norm one after the other
(`plain.split_block`): a call costs less, and one image more is saved.

All of them also take one image [C, H, W], strides and paddings as pairs of equal numbers, and
PyTorch's names of paddings and activations (`common.spellings`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.common.checks import Activation, Norm, PadMode
from fastunit.kernels.common.runtime import Impl
from fastunit.kernels.common.spellings import takes_pytorch_arguments
from fastunit.kernels.conv.block import conv_block
from fastunit.kernels.conv.layouts import Filters
from fastunit.kernels.conv.phases import upsampling


@takes_pytorch_arguments
def conv_norm_act(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    pad_mode: PadMode = "zero",
    norm: Norm = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: Activation = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,
    halo: int = 0,
    halo_mode: PadMode = "zero",
    impl: Impl = "auto",
    filters: Filters | None = None,
) -> Tensor:
    """Apply ``act(gamma * norm(conv(pad(x), w) + b) + beta) + residual``.

    Args:
        x: [N, C, H, W], floating dtype, any memory format; channels_last is not copied.
        w: filters [K, C, R, S], or [G, K, C, R, S] where G divides N: sample n then uses those of
            group n // (N / G), so that one launch serves two domains. Of x's dtype, or float32,
            which half-precision networks keep for their optimizer.
        b: bias [K] or [G, K], of x's dtype or float32. None adds none.
        stride: of the convolution, both axes.
        padding: pixels added on each side.
        pad_mode: what they hold: "zero", "reflect" or "replicate".
        norm: "none", "in" (instance norm) or "ln" (the 2018 release's layer norm), as in
            `norm_act`.
        gamma: scale after the norm, [K] or [G, K], of x's dtype or float32. None leaves it out.
        beta: shift after the norm, likewise.
        eps: added to the variance ("in") or the standard deviation ("ln").
        act: "none", "relu", "lrelu", "prelu", "selu" or "tanh"; or, by PyTorch after the operation
            and without a halo, "gelu", "silu", "sigmoid" or "hardswish".
        slope: negative slope; a float for lrelu, a tensor [1] or [K] for prelu.
        residual: [N, K, P, Q], of x's dtype, added after the activation.
        halo: pixels then added on each side of the result, for a convolution that follows with
            padding=0.
        halo_mode: what they hold; as pad_mode.
        impl: "auto", "triton", "aten" or "plain"; see `fastunit.kernels.common.runtime`.
        filters: w in the layouts that the kernels read, from `packed.PackedFilters`, and as long as
            it stays the same; None makes them for this call.

    Returns:
        [N, K, P, Q] with P = (H + 2 * padding - R) // stride + 1, likewise Q, both enlarged by
            2 * halo; x's dtype (autocast's where that is on). channels_last from Triton, else in
            x's memory format. Sums and statistics are accumulated in fp32 or wider.

    Differentiable in every tensor argument, any number of times and in both modes, also under
    torch.func ("triton" and "aten" by name: once, in reverse mode); gradients have the dtypes of
    their tensors.
    Same bits for same inputs. Compiles with ``fullgraph=True``; may be captured in a CUDA graph.

    Raises:
        ValueError: shapes do not fit, a padding mode, norm or activation is unknown, or
            impl="triton" cannot take x.
        NotImplementedError: impl is "triton" or "aten", under forward-mode AD or a gradient of
            torch.func.
        RuntimeError: a second derivative of "triton" or "aten", or of compiled code.
    """
    return conv_block(
        "conv", x, w, b, gamma, beta, residual, slope, stride=stride, padding=padding,
        pad_mode=pad_mode, norm=norm, eps=eps, act=act, halo=halo, halo_mode=halo_mode, impl=impl,
        filters=filters,
    )  # fmt: skip


@takes_pytorch_arguments
def conv_gemm(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int = 1,
    act: Activation = "none",
    slope: float = 0.2,
    impl: Impl = "auto",
) -> Tensor:
    """Apply ``act(conv(x, w) + b)`` where every window lies inside x: one matrix product.

    A 3x3 window of a channels-last image is three runs of consecutive values, so the product
    reads its windows in place.

    Args:
        x: [N, C, H, W], floating dtype. Not copied where it is channels_last, C a multiple of 8
            (or 4), and H and W multiples of the stride.
        w: filters [K, C, R, S] or [G, K, C, R, S], as in `conv_norm_act`.
        b: bias [K] or [G, K], likewise.
        stride: of the convolution, both axes.
        act: as in `conv_norm_act`, but for "prelu".
        slope: negative slope of lrelu.
        impl: "auto", "triton", "aten" or "plain"; see `fastunit.kernels.common.runtime`.

    Returns:
        [N, K, P, Q] with P = (H - R) // stride + 1, likewise Q. Otherwise as `conv_norm_act`.

    Differentiable in x, w and b, as `conv_norm_act`. Saved: x and, with an activation, the result.

    Raises:
        ValueError: as `conv_norm_act`.
        NotImplementedError: impl is "triton" or "aten", under forward-mode AD or a gradient of
            torch.func.
        RuntimeError: a second derivative of "triton" or "aten", or of compiled code.
    """
    return conv_block(
        "conv", x, w, b, slope=slope, stride=stride, act=act, impl=impl, name="conv_gemm"
    )


@takes_pytorch_arguments
def upsample_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    padding: int = 2,
    pad_mode: PadMode = "zero",
    norm: Norm = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: Activation = "none",
    slope: float | Tensor = 0.2,
    impl: Impl = "auto",
    filters: Filters | None = None,
) -> Tensor:
    """Double x's height and width by repetition, then apply `conv_norm_act` with stride 1.

    The product runs on the small image, in four phases of fewer taps (36 products where 5x5
    filters take 100); phases.py has the algebra, and the corrections that reflect padding needs
    along the border. Filters are summed in fp32.

    Args:
        x: [N, C, H, W], floating dtype, any memory format, any H and W.
        w: filters [K, C, R, S] or [G, K, C, R, S]. The Triton implementation takes square filters;
            "auto" runs others on ATen.
        b: bias [K] or [G, K].
        padding: pixels added on each side *after* upsampling.
        pad_mode: what they hold: "zero", "reflect" or "replicate". Reflect padding of more than
            2 builds the large image.
        norm: "none", "in" or "ln", as in `conv_norm_act`.
        gamma: scale after the norm, [K] or [G, K]. None leaves it out.
        beta: shift after the norm, likewise.
        eps: added to the variance ("in") or the standard deviation ("ln").
        act: as in `conv_norm_act`.
        slope: negative slope; a float for lrelu, a tensor [1] or [K] for prelu.
        impl: "auto", "triton", "aten" or "plain"; see `fastunit.kernels.common.runtime`.
        filters: as in `conv_norm_act`.

    Returns:
        [N, K, P, Q] with P = 2 * H + 2 * padding - R + 1, likewise Q. Otherwise as
            `conv_norm_act`.

    Differentiable in every tensor argument, as `conv_norm_act`.

    Raises:
        ValueError: as `conv_norm_act`.
        NotImplementedError: impl is "triton" or "aten", under forward-mode AD or a gradient of
            torch.func.
        RuntimeError: a second derivative of "triton" or "aten", or of compiled code.
    """
    if (kind := upsampling(padding, pad_mode)) == "conv":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    return conv_block(
        kind, x, w, b, gamma, beta, None, slope, padding=padding, pad_mode=pad_mode, norm=norm,
        eps=eps, act=act, impl=impl, filters=filters, name="upsample_conv",
    )  # fmt: skip


@takes_pytorch_arguments
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int = 2,
    padding: int = 0,
    output_padding: int = 0,
    norm: Norm = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: Activation = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,
    impl: Impl = "auto",
    filters: Filters | None = None,
) -> Tensor:
    """Apply ``act(gamma * norm(conv_transpose(x, w) + b) + beta) + residual``, by phases.

    Each output pixel of a transposed convolution of stride s meets one of s * s subsets of the
    filter's taps, its phase; a product per phase over the small image computes all of them
    without multiplying by the zeros that a stride inserts. It is the kernel of a convolution's
    input gradient, and its gradient is a strided convolution.

    Args:
        x: [N, C, H, W], floating dtype, any memory format.
        w: filters [C, K, R, S], as in `torch.nn.functional.conv_transpose2d`, or [G, C, K, R, S].
            The Triton implementation takes square filters; "auto" runs others on ATen.
        b: bias [K] or [G, K].
        stride: as PyTorch's, both axes.
        padding: as PyTorch's, both axes: pixels cut off on each side of the result.
        output_padding: rows and columns added at its end; less than stride.
        norm: "none", "in" or "ln", as in `conv_norm_act`.
        gamma: scale after the norm, [K] or [G, K]. None leaves it out.
        beta: shift after the norm, likewise.
        eps: added to the variance ("in") or the standard deviation ("ln").
        act: as in `conv_norm_act`.
        slope: negative slope; a float for lrelu, a tensor [1] or [K] for prelu.
        residual: [N, K, P, Q], of x's dtype, added after the activation.
        impl: "auto", "triton", "aten" or "plain"; see `fastunit.kernels.common.runtime`.
        filters: as in `conv_norm_act`.

    Returns:
        [N, K, P, Q] with P = (H - 1) * stride - 2 * padding + R + output_padding, likewise Q.
            Otherwise as `conv_norm_act`.

    Differentiable in every tensor argument, as `conv_norm_act`.

    Raises:
        ValueError: as `conv_norm_act`; or output_padding is not below stride.
        NotImplementedError: impl is "triton" or "aten", under forward-mode AD or a gradient of
            torch.func.
        RuntimeError: a second derivative of "triton" or "aten", or of compiled code.
    """
    return conv_block(
        "transpose", x, w, b, gamma, beta, residual, slope, stride=stride, padding=padding,
        output_padding=output_padding, norm=norm, eps=eps, act=act, impl=impl, filters=filters,
    )  # fmt: skip
