"""The convolutional block on PyTorch's (ATen's) kernels: any device and dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.common.eager import cached
from fastunit.kernels.common.frame import laid_out_as, memory_format, owned
from fastunit.kernels.conv import phases
from fastunit.kernels.conv.plan import Gradients, NeededGradients, Plan
from fastunit.kernels.conv.winograd import Winograd, pays
from fastunit.kernels.norm_act.aten import (
    NormActOptions,
    fold_halo,
    norm_act_aten,
    norm_act_backward_aten,
)

# Pixels of a result (N * P * Q) up to which the filters' gradient is one product of matrices on a
# CPU. oneDNN (torch 2.13, a Xeon with AVX-512, one thread) reached 14 GFLOP/s for 32 pixels, 33 for
# 128 and 101 for 256 where the product reached 119 to 149; from 2,048 on oneDNN was the faster.
FEW_PIXELS = 1024


class Direct:
    """PyTorch's own convolution or transposed convolution, after padding it cannot do itself."""

    def __init__(self, plan: Plan) -> None:
        inside = plan.kind == "transpose" or plan.pad_mode == "zero"
        self.halo = NormActOptions(halo=0 if inside else plan.padding, pad_mode=plan.pad_mode)
        self.options = {
            "stride": [plan.stride] * 2,
            "padding": [plan.padding if inside else 0] * 2,
            "dilation": [1, 1],
            "transposed": plan.kind == "transpose",
            "output_padding": [plan.output_padding] * 2,
            "groups": 1,
        }
        self.winograd = Winograd(False, self.options["padding"][0])

    def filters(self, w: Tensor, dtype: torch.dtype) -> Tensor:
        """Return w [K, C, R, S] as the methods read it."""
        return w.to(dtype)

    def fprop(self, x: Tensor, filters: Tensor, b: Tensor | None) -> Tensor:
        return torch.convolution(x, filters, b, **self.options)

    def backward(
        self, dy: Tensor, x: Tensor, w: Tensor, filters: Tensor, mask: list[bool]
    ) -> tuple[Any, Any]:
        """Return the gradients of x and w; None where the mask has False."""
        dw = None
        if mask[1] and not self.options["transposed"] and _has_few_pixels(dy):
            padding, stride = self.options["padding"][0], self.options["stride"][0]
            padded = F.pad(x, (padding,) * 4) if padding else x
            dw, mask = filter_gradient(dy, padded, w.shape[1:], stride), [mask[0], False]
        if not any(mask):
            return None, dw
        found = torch.ops.aten.convolution_backward(
            dy, x, filters, None, **self.options, output_mask=[*mask, False]
        )
        return found[0], found[1] if dw is None else dw


class Phases:
    """Upsampling and a convolution as one convolution into the four pixels of each 2x2 square.

    See phases.py: 36 products where 5x5 filters on the large image take 100.
    """

    def __init__(self, plan: Plan, size: Sequence[int], taps: Sequence[int]) -> None:
        self._out = tuple(map(plan.size_out, size, taps))
        # Large pixel j is small pixel j // 2, so a halo of p there needs (p + 1) // 2 here.
        pad, axes = (plan.padding + 1) // 2, []
        for length, count in zip(size, taps, strict=True):
            reach = count // 2 + 1  # small pixels that one large pixel depends on
            before = count - 1 - plan.padding  # large pixels that come before the first result
            axes.append((length, reach, before))
            pad = max(pad, reach - 1 - before // 2)
        self._whole = [2 * (length + 2 * pad - reach + 1) for length, reach, _ in axes]
        self._first = [2 * (pad - reach + 1) + before for _, reach, before in axes]
        mode = "zero" if plan.pad_mode == "zero" else "replicate"
        self.halo = NormActOptions(halo=pad, pad_mode=mode)
        self.winograd = Winograd(True, 0)

    def filters(self, w: Tensor, dtype: torch.dtype) -> Tensor:
        """Return w [K, C, R, S] as the methods read it."""
        return phases.phase_filters(w, dtype)

    def fprop(self, x: Tensor, filters: Tensor, b: Tensor | None) -> Tensor:
        b = None if b is None else b.repeat_interleave(4)
        y = F.conv2d(x, filters, b)
        return self._inside(F.pixel_shuffle(y, 2))

    def backward(
        self, dy: Tensor, x: Tensor, w: Tensor, filters: Tensor, mask: list[bool]
    ) -> tuple[Any, Any]:
        """Return the gradients of x and w; None where the mask has False."""
        if (whole := dy.new_zeros(*dy.shape[:2], *self._whole)).shape != dy.shape:
            self._inside(whole).copy_(dy)
            dy = whole
        dx, dw, _ = torch.ops.aten.convolution_backward(
            F.pixel_unshuffle(dy, 2), x, filters, None,
            [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [*mask, False],
        )  # fmt: skip
        return dx, None if dw is None else phases.phase_filters_backward(dw, w)

    def _inside(self, y: Tensor) -> Tensor:
        (top, left), (rows, columns) = self._first, self._out
        return y[:, :, top : top + rows, left : left + columns]


def _has_few_pixels(dy: Tensor) -> bool:
    """Return whether `filter_gradient` is faster than PyTorch's."""
    pixels = len(dy) * dy.shape[2] * dy.shape[3]
    wide = dy.dtype in (torch.float32, torch.float64)
    return dy.device.type == "cpu" and wide and pixels <= FEW_PIXELS


def filter_gradient(dy: Tensor, x: Tensor, taps: Sequence[int], stride: int) -> Tensor:
    """Return the filters' gradient [K, C, R, S] as one product with the windows of x.

    Args:
        dy: gradient of the result, [N, K, P, Q].
        x: the image with its padding, [N, C, H, W]; channels_last is read fastest.
        taps: C, R, S.
        stride: of the convolution, both axes.
    """
    samples, k, rows, columns = dy.shape
    c, r, s = taps
    step, across, down, right = x.stride()
    windows = x.as_strided(
        (samples, rows, columns, r, s, c),
        (step, stride * down, stride * right, down, right, across),
        x.storage_offset(),
    ).reshape(samples * rows * columns, r * s * c)
    product = dy.permute(0, 2, 3, 1).reshape(-1, k).t() @ windows
    return product.view(k, r, s, c).permute(0, 3, 1, 2)


def convolution(plan: Plan, size: Sequence[int], w: Tensor) -> Direct | Phases:
    """Return how w [G, K, C, R, S] is applied to an image of `size` (H, W)."""
    if plan.kind == "upsample":
        return _phases(plan, tuple(size), w.shape[3:])
    return _direct(plan)


_direct, _phases = cached(Direct), cached(Phases)


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
) -> tuple[Tensor | None, ...]:
    """Return the result [N, K, P, Q], and what is saved: haloed input, product, mean, rstd.

    `filters` are w as PyTorch's kernels read it, made before. None stands for what is not needed,
    and for the haloed input where the input is its own haloed form.
    """
    conv, form = convolution(plan, x.shape[2:], w), result_format(x, w)
    halo = conv.halo
    haloed = norm_act_aten(x, None, None, None, None, halo)[0] if halo.halo else x
    haloed = haloed.contiguous(memory_format=form)
    groups = len(w)
    bias = b.to(x.dtype).unbind() if b is not None and plan.norm != "in" else [None] * groups
    if pays(plan, haloed, w, x.shape[2:]):
        conv = conv.winograd
    filters_of_groups = _filters(conv, w, filters, x.dtype)
    if groups == 1 and isinstance(conv, Direct):
        raw = torch.convolution(haloed, filters_of_groups[0], bias[0], **conv.options)
    elif groups == 1:
        raw = conv.fprop(haloed, filters_of_groups[0], bias[0])
    else:
        parts = zip(_split(haloed, groups), filters_of_groups, bias, strict=True)
        raw = _joined([conv.fprop(*part) for part in parts])
    if plan.corrects_border:
        phases.add_border_correction(raw, phases.border_correction(x, w))
    raw = raw.contiguous(memory_format=form)
    y, mean, rstd = norm_act_aten(raw, gamma, beta, slope, residual, plan.norm_act)
    saved = haloed if halo.halo else None
    if plan.fuses_activation(residual is not None, gamma, beta, slope):
        raw = None
    return y.contiguous(memory_format=form), saved, raw, mean, rstd


def _filters(
    conv: Direct | Phases | Winograd, w: Tensor, filters: Tensor | None, dtype: torch.dtype
) -> Sequence[Tensor]:
    """Return the filters of each group as `conv` reads them."""
    if isinstance(conv, Winograd):
        return w.unbind()
    if filters is not None:
        return filters.unbind()
    if isinstance(conv, Direct):
        return w.to(dtype).unbind()
    return [conv.filters(group, dtype) for group in w.unbind()]


def _split(x: Tensor, groups: int) -> Sequence[Tensor]:
    return x.chunk(groups) if len(x) and groups > 1 else [x] * groups


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
) -> Gradients:
    """Return the gradients that `needed` names; others are None.

    `filters` as in `fprop`.

    `source` is the haloed input, or the input where that is the same; `raw` the result where
    the activation was fused, and anything where backward does without.
    """
    if not plan.keeps_product(gamma):
        raw = plan.without_halo(dy, (2, 3))
    gradients = norm_act_backward_aten(
        dy, raw, mean, rstd, gamma, beta, slope, plan.norm_act,
        from_output=plan.fuses_activation(needed.residual, gamma, beta, slope),
        sums=needed.sums, residual=needed.residual,
    )  # fmt: skip
    dx, dw = _conv_backward(plan, x_shape, gradients.dx, source, w, needed, filters)
    form = result_format(source, w)
    dresidual = gradients.dresidual
    if dresidual is not None:
        dresidual = owned(dresidual, form, dy)  # an operator may not return its argument
    found = None, None, None, None
    if needed.sums:
        found = plan.parameter_gradients(gradients, b, gamma, beta, slope)
    return Gradients(dx, dw, *found, dresidual)


def _conv_backward(
    plan: Plan,
    x_shape: Sequence[int],
    dy: Tensor,
    haloed: Tensor,
    w: Tensor,
    needed: NeededGradients,
    filters: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    conv, dx, dw = convolution(plan, x_shape[2:], w), None, None
    halo = conv.halo
    if pays(plan, haloed, w, x_shape[2:]):
        conv = conv.winograd
    images = _split(dy, len(w)), _split(haloed, len(w))
    filters_of_groups = _filters(conv, w, filters, haloed.dtype)
    parts = zip(*images, w.unbind(), filters_of_groups, strict=True)
    found = [conv.backward(*part, [needed.x, needed.w]) for part in parts]
    if needed.x:
        dx = fold_halo(_joined([dx for dx, _ in found]), halo)
        dx = dx.contiguous(memory_format=result_format(haloed, w))
    if needed.w:
        dws = [dw for _, dw in found]
        dw = torch.stack(dws) if len(dws) > 1 else dws[0][None]
    if plan.corrects_border:
        (rows, columns), first = x_shape[2:], halo.halo
        x = haloed[:, :, first : first + rows, first : first + columns]
        phases.add_border_correction_backward(dy, x, w, dx, dw)
    return dx, None if dw is None else laid_out_as(w, dw)


def image(plan: Plan, x_shape: Sequence[int], source: Tensor, w: Tensor) -> Tensor:
    """Return the image [N, C, H, W] inside the haloed one that `fprop` saved."""
    conv = convolution(plan, x_shape[2:], w if w.dim() == 5 else w[None])
    (rows, columns), halo = x_shape[2:], conv.halo.halo
    return source[:, :, halo : halo + rows, halo : halo + columns]


def outputs(plan: Plan, x: Tensor, w: Tensor, shape: Sequence[int]) -> tuple[Tensor | None, ...]:
    """Return empty tensors like `fprop`'s result [N, K, P, Q] = shape, haloed input and product."""
    form, conv = result_format(x, w), convolution(plan, x.shape[2:], w)
    samples, channels, *size = shape

    def empty(count: int, size: Sequence[int], halo: int) -> Tensor:
        padded = (length + 2 * halo for length in size)
        return x.new_empty(samples, count, *padded).to(memory_format=form)

    haloed = empty(x.shape[1], x.shape[2:], conv.halo.halo) if conv.halo.halo else None
    return empty(channels, size, plan.halo), haloed, empty(channels, size, 0)


def result_format(source: Tensor, w: Tensor) -> torch.memory_format:
    """Return the memory format of results and gradients of images: as PyTorch's convolution's."""
    return memory_format(source, *w.unbind())
