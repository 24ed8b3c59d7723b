"""The convolutional block in plain PyTorch: any device and dtype, and what runs on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.common.frame import laid_out_as, memory_format, owned
from fastunit.kernels.common.weight_cache import kept
from fastunit.kernels.conv import phases
from fastunit.kernels.conv.plan import Gradients, Plan, Wants
from fastunit.kernels.norm_act.aten import Tail, fold_halo, tail_aten, tail_backward_aten


class Direct:
    """PyTorch's own convolution or transposed convolution, after padding it cannot do itself."""

    def __init__(self, plan: Plan) -> None:
        inside = plan.kind == "transpose" or plan.pad_mode == "zero"
        self.halo = Tail(halo=0 if inside else plan.padding, pad_mode=plan.pad_mode)
        self._options = {
            "stride": [plan.stride] * 2,
            "padding": [plan.padding if inside else 0] * 2,
            "dilation": [1, 1],
            "transposed": plan.kind == "transpose",
            "output_padding": [plan.output_padding] * 2,
            "groups": 1,
        }

    def fprop(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return torch.convolution(x, kept(_cast, w, x.dtype), b, **self._options)

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, mask: list[bool]) -> tuple[Any, Any]:
        """Return the gradients of x and w; None where the mask has False."""
        return torch.ops.aten.convolution_backward(
            dy, x, kept(_cast, w, x.dtype), None, **self._options, output_mask=[*mask, False]
        )[:2]


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
        self.halo = Tail(halo=pad, pad_mode=mode)

    def fprop(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        b = None if b is None else b.repeat_interleave(4)
        y = F.conv2d(x, kept(phases.phase_filters, w, x.dtype), b)
        return self._inside(F.pixel_shuffle(y, 2))

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, mask: list[bool]) -> tuple[Any, Any]:
        """Return the gradients of x and w; None where the mask has False."""
        if (whole := dy.new_zeros(*dy.shape[:2], *self._whole)).shape != dy.shape:
            self._inside(whole).copy_(dy)
            dy = whole
        dx, dw, _ = torch.ops.aten.convolution_backward(
            F.pixel_unshuffle(dy, 2), x, kept(phases.phase_filters, w, x.dtype), None,
            [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [*mask, False],
        )  # fmt: skip
        return dx, None if dw is None else phases.phase_filters_backward(dw, w)

    def _inside(self, y: Tensor) -> Tensor:
        (top, left), (rows, columns) = self._first, self._out
        return y[:, :, top : top + rows, left : left + columns]


def convolution(plan: Plan, size: Sequence[int], w: Tensor) -> Direct | Phases:
    """Return how w [G, K, C, R, S] is applied to an image of `size` (H, W)."""
    return Phases(plan, size, w.shape[3:]) if plan.kind == "upsample" else Direct(plan)


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
    haloed form.
    """
    conv, form = convolution(plan, x.shape[2:], w), result_format(x, w)
    haloed = tail_aten(x, None, None, None, None, conv.halo)[0] if conv.halo.halo else x
    haloed = haloed.contiguous(memory_format=form)
    bias = b.to(x.dtype) if b is not None and plan.norm != "in" else [None] * len(w)
    raw = _joined([conv.fprop(*part) for part in zip(_split(haloed, w), w, bias, strict=True)])
    if plan.has_ring:
        phases.add_ring(raw, phases.ring(x, w))
    raw = raw.contiguous(memory_format=form)
    y, mean, rstd = tail_aten(raw, gamma, beta, slope, residual, plan.tail)
    saved = haloed if conv.halo.halo else None
    if plan.fuses_activation(residual is not None, gamma, beta, slope):
        raw = None
    return y.contiguous(memory_format=form), saved, raw, mean, rstd


def _cast(w: Tensor, dtype: torch.dtype) -> Tensor:
    return w.to(dtype)


def _split(x: Tensor, w: Tensor) -> Sequence[Tensor]:
    return x.chunk(len(w)) if len(x) else [x] * len(w)


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
    wants: Wants,
) -> Gradients:
    """Return the gradients that `wants` names; others are None.

    `source` is the haloed input, or the input where that is the same; `raw` the result where
    the activation was fused, and anything where backward does without.
    """
    if not plan.keeps_product(gamma):
        raw = plan.without_halo(dy, (2, 3))
    tail = tail_backward_aten(
        dy, raw, mean, rstd, gamma, beta, slope, plan.tail,
        from_output=plan.fuses_activation(wants.residual, gamma, beta, slope),
        sums=wants.sums, residual=wants.residual,
    )  # fmt: skip
    dx, dw = _conv_backward(plan, x_shape, tail.dx, source, w, wants)
    form = result_format(source, w)
    dresidual = tail.dresidual
    if dresidual is not None:
        dresidual = owned(dresidual, form, dy)  # an operator may not return its argument
    found = None, None, None, None
    if wants.sums:
        found = plan.parameter_gradients(tail, b, gamma, beta, slope)
    return Gradients(dx, dw, *found, dresidual)


def _conv_backward(
    plan: Plan, x_shape: Sequence[int], dy: Tensor, haloed: Tensor, w: Tensor, wants: Wants
) -> tuple[Tensor | None, Tensor | None]:
    conv, dx, dw = convolution(plan, x_shape[2:], w), None, None
    parts = zip(_split(dy, w), _split(haloed, w), w, strict=True)
    found = [conv.backward(*part, [wants.x, wants.w]) for part in parts]
    if wants.x:
        dx = fold_halo(_joined([dx for dx, _ in found]), conv.halo)
        dx = dx.contiguous(memory_format=result_format(haloed, w))
    if wants.w:
        dws = [dw for _, dw in found]
        dw = torch.stack(dws) if len(dws) > 1 else dws[0][None]
    if plan.has_ring:
        halo, (rows, columns) = conv.halo.halo, x_shape[2:]
        x = haloed[:, :, halo : halo + rows, halo : halo + columns]
        phases.add_ring_backward(dy, x, w, dx, dw)
    return dx, None if dw is None else laid_out_as(w, dw)


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
