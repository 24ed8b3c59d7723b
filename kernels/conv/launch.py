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

from fastunit.kernels.common.frame import channels_last, dense, laid_out_as
from fastunit.kernels.common.weight_cache import kept
from fastunit.kernels.conv import gemm, phases
from fastunit.kernels.conv.geometry import Conv, Transpose, convolution, is_frame
from fastunit.kernels.conv.plan import Gradients, NeededGradients, Plan
from fastunit.kernels.norm_act.aten import NormActOptions
from fastunit.kernels.norm_act.launch import norm_act_backward_triton, norm_act_triton

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
) -> tuple[Tensor | None, ...]:
    """Return the result [N, K, P, Q], and what is saved: haloed input, product, mean, rstd.

    None stands for what is not needed, and for the haloed input where the input is its own
    haloed buffer.
    """
    conv = convolution(plan, x.shape, w)
    haloed = x.permute(0, 2, 3, 1) if is_frame(x, conv.x_frame) else _haloed(x, conv)
    saved = None if is_frame(x, conv.x_frame) else haloed
    border = phases.border_correction(x, w) if plan.corrects_border else None
    # Before an instance norm a bias is a constant that the norm takes away again.
    bias = None if b is None or plan.norm == "in" else b.contiguous()
    if plan.fuses_activation(residual is not None, gamma, beta, slope):
        epilogue = gemm.Epilogue(bias, border, plan.act, plan.slope)
        y, _ = conv.fprop(haloed, _filters(plan, w), epilogue)
        return channels_last(y), saved, None, None, None
    epilogue = gemm.Epilogue(bias, border, statistics=plan.norm != "none")
    raw, partial = conv.fprop(haloed, _filters(plan, w), epilogue)
    residual = None if residual is None else dense(residual)
    y, mean, rstd = norm_act_triton(raw, gamma, beta, slope, residual, plan.norm_act, partial)
    return channels_last(y), saved, raw, mean, rstd


def _haloed(x: Tensor, conv: Conv | Transpose) -> Tensor:
    options = NormActOptions(halo=conv.halo, pad_mode=conv.pad_mode)
    image = x.permute(0, 2, 3, 1) if x.shape[1] <= 4 else dense(x)
    return norm_act_triton(image, None, None, None, None, options, frame=conv.x_frame)[0]


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
) -> Gradients:
    """Return the gradients that `needed` names; others are None.

    `source` is the haloed input, or the input where that is the same; `raw` the result where
    the activation was fused, and anything where backward does without.
    """
    conv = convolution(plan, x_shape, w)
    haloed = source.permute(0, 2, 3, 1) if is_frame(source, conv.x_frame) else source
    fused = plan.fuses_activation(needed.residual, gamma, beta, slope)
    dy = dense(dy)
    if not plan.keeps_product(gamma):
        raw = plan.without_halo(dy, (1, 2))
    elif fused:
        raw = dense(raw)
    gradients = norm_act_backward_triton(
        dy, raw, mean, rstd, gamma, beta, slope, plan.norm_act,
        frame=conv.dy_frame, from_output=fused, sums=needed.sums, residual=needed.residual,
    )  # fmt: skip
    dx, dw = _conv_backward(plan, conv, gradients.dx, haloed, w, needed)
    dresidual = None if gradients.dresidual is None else channels_last(gradients.dresidual)
    found = None, None, None, None
    if needed.sums:
        found = plan.parameter_gradients(gradients, b, gamma, beta, slope)
    return Gradients(dx, dw, *found, dresidual)


def _conv_backward(
    plan: Plan,
    conv: Conv | Transpose,
    dy: Tensor,
    haloed: Tensor,
    w: Tensor,
    needed: NeededGradients,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x [N, C, H, W] and of w, for dy in its frame."""
    (rows, columns), lead, dx, dw = conv.size, conv.x_frame.lead, None, None
    x = haloed[:, lead : lead + rows, lead : lead + columns, : conv.channels]
    filters = _filters(plan, w)
    if needed.x:
        dxh = conv.dgrad(dy, filters)
        if conv.halo:
            options = NormActOptions(halo=conv.halo, pad_mode=conv.pad_mode)
            nones = None, None, None, None, None  # statistics, gamma, beta, slope
            dxh = norm_act_backward_triton(dxh, x, *nones, options, sums=False).dx
        dx = channels_last(dxh)
    if needed.w:
        dw = conv.wgrad(haloed, dy, filters)
        dw = dw if plan.kind != "upsample" else phases.combined_filters_backward(dw)
    if plan.corrects_border:
        lead, (rows, columns) = conv.dy_frame.lead, conv.out
        plain = dy[:, lead : lead + rows, lead : lead + columns, : conv.channels_out]
        phases.add_border_correction_backward(channels_last(plain), channels_last(x), w, dx, dw)
    return dx, None if dw is None else laid_out_as(w, dw)


def image(plan: Plan, x_shape: Sequence[int], source: Tensor, w: Tensor) -> Tensor:
    """Return the image [N, C, H, W] inside the haloed buffer that `fprop` saved for it."""
    conv = convolution(plan, x_shape, w if w.dim() == 5 else w[None])
    (rows, columns), lead = conv.size, conv.x_frame.lead
    return channels_last(source[:, lead : lead + rows, lead : lead + columns, : conv.channels])


def _filters(plan: Plan, w: Tensor) -> Tensor:
    return kept(phases.combined_filters, w) if plan.kind == "upsample" else w


def outputs(plan: Plan, x: Tensor, w: Tensor, shape: Sequence[int]) -> tuple[Tensor | None, ...]:
    """Return empty tensors like `fprop`'s result [N, K, P, Q] = shape, haloed input and product."""
    frame = convolution(plan, x.shape, w).x_frame
    samples, channels, *size = shape
    rows, columns = (length + 2 * plan.halo for length in size)
    y = channels_last(x.new_empty(samples, rows, columns, channels))
    haloed = None if is_frame(x, frame) else frame.empty(samples, x)
    return y, haloed, x.new_empty(samples, *size, channels)


def result_format(source: Tensor, w: Tensor) -> torch.memory_format:
    """Return the memory format of results and gradients of images."""
    return torch.channels_last
