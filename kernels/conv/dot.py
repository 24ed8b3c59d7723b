"""Convolution with one 1x1 filter on Triton kernels, as the last layer of a discriminator is.

It is a dot product over channels: one launch forward, one backward. No frame, no product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastunit.kernels.common.frame import channels_last, check_offsets, dense
from fastunit.kernels.common.runtime import cdiv, launch, next_power_of_2
from fastunit.kernels.conv.direct import filters_gradient, grouped_gradients
from fastunit.kernels.conv.dot_kernels import dot_backward_kernel, dot_kernel
from fastunit.kernels.conv.layouts import Direct
from fastunit.kernels.conv.plan import Gradients, NeededGradients, Plan

PIXELS = 16  # of a program
# Backward, a program has all pixels of as many channels as a sector of memory holds in bfloat16,
# and so many pixels at a time.
CHANNELS, PIXELS_BACKWARD = 16, 512


def fits(plan: Plan, w: Tensor) -> bool:
    """Return whether the convolution with w [G, K, C, R, S] is such a one."""
    one = w.shape[1] == w.shape[3] == w.shape[4] == 1
    return one and plan.kind == "conv" and plan.stride == 1 and plan.padding == 0


def fprop(plan: Plan, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Return bias and activation of the result, [N, 1, H, W].

    Args:
        plan: the block's, of which only `act` and `slope` count.
        x: [N, C, H, W]; channels_last is not copied.
        w: [G, 1, C, 1, 1].
        b: [G, 1], or None.
    """
    image = dense(x)
    check_offsets(image)
    samples, rows, columns, channels = image.shape
    y = x.new_empty(samples, rows, columns, 1)
    pixels, tiles = rows * columns, cdiv(rows * columns, PIXELS)
    launch(
        dot_kernel, (samples * tiles,),
        image, w.flatten(1), None if b is None else b.contiguous(), y,
        pixels, channels, max(1, samples // len(w)), tiles, plan.slope,
        ACT=plan.act, BLOCK_M=PIXELS, BLOCK_C=_block(channels),
    )  # fmt: skip
    return channels_last(y)


def backward(
    plan: Plan,
    dy: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    b: Tensor | None,
    needed: NeededGradients,
    into: Direct | None = None,
) -> Gradients:
    """Return the gradients of x, w and b that `needed` names, for dy [N, 1, H, W].

    y is the result; it is not read without an activation. Given `into`, the gradients of w and b
    are added to its buffers and not returned.
    """
    image, dy = dense(x), dense(dy)
    samples, rows, columns, channels = image.shape
    groups, tiles_c = len(w), cdiv(channels, CHANNELS)
    dx = torch.empty_like(image) if needed.x else None
    dw = torch.empty_like(w) if needed.w else None
    db = None if b is None or not needed.sums else b.new_empty(groups, 1)
    add = False
    if into is not None:
        dw, add = filters_gradient(into)
        db = grouped_gradients(into)[1]
    launch(
        dot_backward_kernel, (groups * tiles_c,),
        dy, None if plan.act == "none" else dense(y), image, w.flatten(1), dx, dw, db,
        samples // groups * rows * columns, channels, tiles_c,
        *((0, 0) if dw is None else (dw.stride(0), dw.stride(2))),
        0 if db is None else db.stride(0), int(add), int(into is not None), plan.slope,
        ACT=plan.act, BLOCK_M=PIXELS_BACKWARD, BLOCK_C=CHANNELS, num_warps=8,
    )  # fmt: skip
    dx = None if dx is None else channels_last(dx)
    if into is not None:
        dw = db = None
    return Gradients(dx, dw, db, None, None, None, None)


def _block(channels: int) -> int:
    return min(256, next_power_of_2(max(channels, 16)))
