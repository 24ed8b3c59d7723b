"""Convolutions of stride 1 into few channels, such as a decoder's last: by columns of the filters.

Implicit GEMM reads each pixel of the input once for every tap, for few products. Here the filters'
columns are channels of the product, S * K of them, so that a pixel is read once for every row of
taps; sums of S values, each a pixel further, are the result. For 7x7 filters from 64 channels into
3 in bfloat16 that is 7 * 128 + 2 * 84 bytes a pixel of L2 traffic in place of 49 * 128.

The filters' gradient exchanges the operands: windows of the output's gradient, which is small, are
correlated with the input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastunit.kernels.common.runtime import cdiv, launch
from fastunit.kernels.common.weight_cache import kept
from fastunit.kernels.conv import gemm, tiles
from fastunit.kernels.conv.columns_kernels import shift_add_kernel

MOST_CHANNELS = 4  # of the result: they share a pitch
MOST_COLUMNS = 64  # of the product, which is one tile wide
BLOCK = 1024


def pays(stride: int, taps: tuple[int, int], channels: int, channels_out: int) -> bool:
    """Return whether a convolution reads clearly less by columns."""
    narrow = channels_out <= MOST_CHANNELS and taps[1] * channels_out <= MOST_COLUMNS
    return stride == 1 and narrow and taps[1] > 2 and channels >= 16


def fprop(xh: Tensor, w: Tensor, out: tuple[int, int], epilogue: gemm.Epilogue) -> Tensor:
    """Return the convolution [N, P, Q, K] of a haloed frame, with bias and activation.

    Args:
        xh: [N, P + R - 1, Q + S - 1, pitch].
        w: filters [G, K, C, R, S].
        out: (P, Q).
        epilogue: bias and activation; it must have no border. Statistics are not computed.
    """
    k, columns = w.shape[1], w.shape[4]
    windows = gemm.Windows(out[0], out[1] + columns - 1, 1, 0)
    filters = kept(column_filters, w, xh.dtype, xh.shape[3])
    shares, _ = gemm.gather(xh, filters, windows, columns * k, dtype=torch.float32)
    y = xh.new_empty(len(xh), *out, k)
    blocks = cdiv(out[0] * out[1] * k, BLOCK)
    launch(
        shift_add_kernel, (len(xh) * blocks,),
        shares, epilogue.bias, y, *out, k, columns, max(1, len(xh) // len(w)), blocks,
        epilogue.slope, ACT=epilogue.act, BLOCK=BLOCK,
    )  # fmt: skip
    return y


def column_filters(w: Tensor, dtype: torch.dtype, pitch: int) -> Tensor:
    """Lay filters [G, K, C, R, S] out for `fprop`: [G, 1, R, pitch, ld_w], channel s * K + k."""
    groups, k, c, rows, columns = w.shape
    ld_w = tiles.filter_columns(columns * k)
    laid = w.new_zeros(groups, 1, rows, pitch, ld_w, dtype=dtype)
    used = laid[:, 0, :, :c, : columns * k].unflatten(3, (columns, k))
    used.copy_(w.permute(0, 3, 2, 4, 1))
    return laid


def wgrad(
    xh: Tensor, dy: Tensor, groups: int, taps: tuple[int, int], channels: tuple[int, int]
) -> Tensor:
    """Return the gradient of filters, [G, K, C, R, S] in fp32.

    Args:
        xh: as in `fprop`.
        dy: [N, rows and columns of xh, pitch], the gradient at the origin and zeros after it. As
            many zero pixels as a window spans lie before it in memory.
        groups: G.
        taps: (R, S).
        channels: (K of dy, C of x), without their padding.
    """
    # Windows that end at a pixel, so that they come with the taps in reverse.
    before = ((taps[0] - 1) * dy.shape[2] + taps[1] - 1) * dy.shape[3]
    windows = dy.as_strided(dy.shape, dy.stride(), dy.storage_offset() - before)
    extent, turned = (xh.shape[1], xh.shape[2]), (channels[1], channels[0])
    dw = gemm.wgrad(windows, xh, groups, taps, turned, extent, 1)
    return dw.transpose(1, 2).flip(3, 4)
