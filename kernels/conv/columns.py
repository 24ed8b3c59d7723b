"""Products of stride 1 into few channels: by columns of the filters.

A decoder's last convolution is one, and the gradient of an encoder's input.

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
from fastunit.kernels.conv import gemm
from fastunit.kernels.conv.columns_kernels import shift_add_kernel

BLOCK = 1024


def product(
    x: Tensor,
    filters: Tensor,
    windows: gemm.Windows,
    columns: int,
    channels: int,
    epilogue: gemm.Epilogue = gemm.PLAIN,
) -> Tensor:
    """Return the products [N, P, Q, K] of P x Q windows of a frame, with bias and activation.

    Args:
        x: [N, rows, columns, pitch].
        filters: laid out by columns (layouts.py).
        windows: of stride 1; each reads S columns of a row.
        columns: S.
        channels: K.
        epilogue: bias and activation; it must have no border. Statistics are not computed.
    """
    k, out = channels, windows[:2]
    longer = windows._replace(columns=windows.columns + columns - 1)
    shares, _ = gemm.gather(x, filters, longer, columns * k, dtype=torch.float32)
    y = x.new_empty(len(x), *out, k)
    blocks = cdiv(out[0] * out[1] * k, BLOCK)
    launch(
        shift_add_kernel, (len(x) * blocks,),
        shares, epilogue.bias, y, *out, k, columns, max(1, len(x) // len(filters)), blocks,
        epilogue.slope, ACT=epilogue.act, BLOCK=BLOCK,
    )  # fmt: skip
    return y


def wgrad(xh: Tensor, dy: Tensor, dw: Tensor, *, add: bool) -> None:
    """Write the gradient of filters.

    Args:
        xh: [N, P + R - 1, Q + S - 1, pitch].
        dy: [N, rows and columns of xh, pitch], the gradient at the origin and zeros after it. As
            many zero pixels as a window spans lie before it in memory.
        dw: where to: [G, K, C, R, S] of any strides and dtype.
        add: to what dw holds.
    """
    # Windows that end at a pixel, so that they come with the taps in reverse.
    before = ((dw.shape[3] - 1) * dy.shape[2] + dw.shape[4] - 1) * dy.shape[3]
    windows = dy.as_strided(dy.shape, dy.stride(), dy.storage_offset() - before)
    extent = xh.shape[1], xh.shape[2]
    gemm.wgrad(windows, xh, dw.transpose(1, 2), extent, 1, flipped=True, add=add)
