"""The convolutional block on Triton kernels: halo, matrix product with statistics, norm, act.

Forward takes a launch to write the haloed input, one for the product, and one or two for the
norm and what follows it; a bias and an activation alone are the product's epilogue. Saved for
backward: the haloed input, the raw product (or the result, where the activation can be undone
from it), mean and rstd.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastunit.kernels.common import branches
from fastunit.kernels.common.frame import channels_last, dense, laid_out_as
from fastunit.kernels.conv import dot, gemm
from fastunit.kernels.conv.direct import direct_rows, filters_gradient
from fastunit.kernels.conv.geometry import Conv, Transpose, convolution, is_frame
from fastunit.kernels.conv.layouts import Direct, layouts
from fastunit.kernels.conv.plan import Gradients, NeededGradients, Plan
from fastunit.kernels.conv.ring import Ring
from fastunit.kernels.norm_act.aten import NormActOptions
from fastunit.kernels.norm_act.launch import norm_act_backward_triton, norm_act_triton
from fastunit.kernels.norm_act.rows import Rows

Size = tuple[int, int]


def fprop(
    plan: Plan,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    filters: Tensor | None = None,
    buffer: Tensor | None = None,
    reader: Conv | Transpose | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the result [N, K, P, Q], and what is saved: haloed input, product, mean, rstd.

    `filters` are w as `layouts` has them for the forward product; None lays w out here. None in the
    result stands for what is not needed, and for the haloed input where the input is its own
    haloed buffer, or `buffer` is. For a reader the result is its frame, [N, rows, columns, pitch].
    """
    conv = convolution(plan, x.shape, w.shape[-4:])
    fused = plan.fuses_activation(residual is not None, gamma, beta, slope)
    if fused and reader is None and dot.fits(plan, w):
        return dot.fprop(plan, x, w, b), None, None, None, None
    if filters is None:
        filters = layouts(plan.kind, plan.stride, w.shape)[0].make(w, x.dtype)
    saved, haloed = None, buffer
    if haloed is None:
        haloed = x.permute(0, 2, 3, 1) if is_frame(x, conv.x_frame) else _haloed(x, conv)
        saved = None if is_frame(x, conv.x_frame) else haloed
    border = None
    if plan.corrects_border:
        image = conv.x_frame.image(haloed, conv.size, conv.channels)
        border = Ring(conv.size, conv.out, w).fprop(image, w)
    # Before an instance norm a bias is a constant that the norm takes away again.
    bias = None if b is None or plan.norm == "in" else b.contiguous()
    if fused:
        epilogue = gemm.Epilogue(bias, border, plan.act, plan.slope)
        if reader is not None and conv.writes_frames:
            place = {"frame": reader.x_frame, "halo": reader.halo, "pad_mode": reader.pad_mode}
            epilogue = epilogue._replace(**place)
        y, _ = conv.fprop(haloed, filters, epilogue)
        y = channels_last(y)
        if reader is not None:
            framed = conv.writes_frames or is_frame(y, reader.x_frame)
            y = y.permute(0, 2, 3, 1) if framed else _haloed(y, reader)
        return y, saved, None, None, None
    epilogue = gemm.Epilogue(bias, border, norm=plan.norm, eps=plan.eps)
    raw, statistics = conv.fprop(haloed, filters, epilogue)
    residual = None if residual is None else residual.permute(0, 2, 3, 1)
    frame, options = None, plan.norm_act
    if reader is not None:
        frame, options = reader.x_frame, _read_by(options, reader)
    y, mean, rstd = norm_act_triton(
        raw, gamma, beta, slope, residual, options, statistics, frame
    )  # fmt: skip
    return channels_last(y) if reader is None else y, saved, raw, mean, rstd


def _haloed(x: Tensor, conv: Conv | Transpose) -> Tensor:
    """Return the image [N, C, H, W] in the frame that a convolution reads."""
    image = x.permute(0, 2, 3, 1) if x.shape[1] <= 4 else dense(x)
    options = _read_by(NormActOptions(), conv)
    return norm_act_triton(image, None, None, None, None, options, frame=conv.x_frame)[0]


def _read_by(options: NormActOptions, conv: Conv | Transpose) -> NormActOptions:
    """Return the options with the halo that a convolution reads."""
    return options._replace(halo=conv.halo, pad_mode=conv.pad_mode)


def backward(
    plan: Plan,
    dy: Tensor,
    x_shape: Sequence[int],
    source: Tensor,
    raw: Tensor,
    mean: Tensor,
    rstd: Tensor,
    w: Tensor,
    b: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    needed: NeededGradients,
    filters: Tensor | None = None,
    into: Direct | None = None,
    more: Tensor | None = None,
    linked: bool = False,
    reader: Conv | Transpose | None = None,
) -> Gradients:
    """Return the gradients that `needed` names; others are None.

    `filters` are w as `layouts` has them for the input's gradient; None lays w out here. Given
    `into`, the gradients of w, b, gamma and beta are added to its buffers and not returned.

    `source` is the haloed input, or the input where that is the same; `raw` the result where
    the activation was fused, and anything where backward does without. For a reader dy is the
    gradient of the haloed result, and `more` another of the result; `linked` asks for dx as the
    gradient of the haloed input.
    """
    conv = convolution(plan, x_shape, w.shape[-4:])
    haloed = source.permute(0, 2, 3, 1) if is_frame(source, conv.x_frame) else source
    fused = plan.fuses_activation(needed.residual, gamma, beta, slope)
    if fused and reader is None and dot.fits(plan, w):
        return dot.backward(plan, dy, channels_last(haloed), raw, w, b, needed, into)
    options = plan.norm_act if reader is None else _read_by(plan.norm_act, reader)
    dy, more = dense(dy), None if more is None else _channels_last_pixels(more)
    if not plan.keeps_product(gamma):
        halo, (rows, columns) = options.halo, conv.out
        raw = dy[:, halo : halo + rows, halo : halo + columns]  # for its shape and dtype
    elif fused:
        raw = raw.permute(0, 2, 3, 1)
    rows = None
    if needed.sums:
        shift = None if plan.norm == "in" else b
        rows = Rows.like(beta, gamma, shift) if into is None else direct_rows(plan, into)
    gradients = norm_act_backward_triton(
        dy, raw, mean, rstd, gamma, beta, slope, options, frame=conv.dy_frame,
        from_output=fused, sums=needed.sums, residual=needed.residual, more=more, rows=rows,
    )  # fmt: skip
    dx, dw = _conv_backward(plan, conv, gradients.dx, haloed, w, needed, filters, into, linked)
    dresidual = None if gradients.dresidual is None else channels_last(gradients.dresidual)
    found = None, None, None, None
    if needed.sums:
        found = plan.parameter_gradients(gradients, b, gamma, beta, slope, rows)
    return Gradients(dx, dw, *found, dresidual)


def _conv_backward(
    plan: Plan,
    conv: Conv | Transpose,
    dy: Tensor,
    haloed: Tensor,
    w: Tensor,
    needed: NeededGradients,
    filters: Tensor | None,
    into: Direct | None,
    linked: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x [N, C, H, W] and of w, for dy in its frame.

    That of x with its halo, [N, C, H + 2 * halo, W + 2 * halo], if `linked`.
    """
    x, dx, dw, add = conv.x_frame.image(haloed, conv.size, conv.channels), None, None, False
    if needed.w and into is not None:
        dw, add = filters_gradient(into)
    elif needed.w:
        # In w's own layout, which autograd keeps; what is added to it below is added in fp32.
        dw = torch.empty_like(w, dtype=torch.float32 if plan.corrects_border else w.dtype)
    with branches.beside(dy, needed.x and needed.w) as branch:
        if needed.x:
            if filters is None:
                filters = layouts(plan.kind, plan.stride, w.shape)[1].make(w, dy.dtype)
            dx = conv.dgrad(dy, filters)
            if conv.halo and not linked:
                options = _read_by(NormActOptions(), conv)
                nones = None, None, None, None, None  # statistics, gamma, beta, slope
                dx = norm_act_backward_triton(dx, x, *nones, options, sums=False).dx
        if dw is not None:
            with branch:
                conv.wgrad(haloed, dy, dw, add=add)
    if plan.corrects_border:
        plain = conv.dy_frame.image(dy, conv.out, conv.channels_out)
        inside = dx
        if dx is not None and linked:
            halo, (rows, columns) = conv.halo, conv.size
            inside = dx[:, halo : halo + rows, halo : halo + columns]
        Ring(conv.size, conv.out, w).backward(plain, x, w, inside, dw)
    dx = None if dx is None else channels_last(dx)
    return dx, None if dw is None or into is not None else laid_out_as(w, dw)


def _channels_last_pixels(x: Tensor) -> Tensor:
    """View an image [N, C, H, W] as [N, H, W, C] with channel stride 1, copying where it is not."""
    pixels = x.permute(0, 2, 3, 1)
    return pixels if pixels.stride(3) == 1 else pixels.contiguous()


def image(plan: Plan, x_shape: Sequence[int], source: Tensor, w: Tensor) -> Tensor:
    """Return the image [N, C, H, W] inside the haloed buffer that `fprop` saved for it."""
    conv = convolution(plan, x_shape, w.shape[-4:])
    return channels_last(conv.x_frame.image(source, conv.size, conv.channels))


def outputs(plan: Plan, x: Tensor, w: Tensor, shape: Sequence[int]) -> tuple[Tensor | None, ...]:
    """Return empty tensors like `fprop`'s result [N, K, P, Q] = shape, haloed input and product."""
    frame = convolution(plan, x.shape, w.shape).x_frame
    samples, channels, *size = shape
    rows, columns = (length + 2 * plan.halo for length in size)
    y = channels_last(x.new_empty(samples, rows, columns, channels))
    haloed = None if is_frame(x, frame) else frame.empty(samples, x)
    return y, haloed, x.new_empty(samples, *size, channels)


def result_format(source: Tensor, w: Tensor) -> torch.memory_format:
    """Return the memory format of results and gradients of images."""
    return torch.channels_last
