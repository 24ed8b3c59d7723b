"""The convolutional block as a composition of PyTorch's operations, with all their derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.conv.plan import Plan
from fastunit.kernels.norm_act import plain as norm_act
from fastunit.kernels.norm_act.aten import NormActOptions
from fastunit.kernels.norm_act.operators import norm_act_eager

# Values of an image, and of the filters, up to which `split_block` is the faster on a CPU: forward
# and backward of a 3x3 block of 16 channels on 4x4 pixels take half of the time; autograd saves up
# to twice as much. Above, memory matters more; large filters on few pixels want
# `aten.filter_gradient`.
SMALL = 1 << 17


class Split(NamedTuple):
    """How `split_block` runs a block on tensors of certain shapes."""

    plan: Plan
    norm_act: NormActOptions
    composes: bool  # the norm too
    values: int  # to be compared with SMALL


def composed(plan: Plan) -> Split:
    """Return that a block's norm is composed, whatever its shapes."""
    return Split(plan, plan.norm_act, True, 0)


def split(plan: Plan, x: Sequence[int], w: Sequence[int], y: Sequence[int]) -> Split:
    """Return how `split_block` runs a block on an image and filters of these shapes.

    Args:
        plan: the block's; with "aten" the norm is a composition where that pays.
        x: [N, C, H, W].
        w: [K, C, R, S] or [G, K, C, R, S].
        y: [N, K, P, Q], the result without halo.
    """
    options = plan.norm_act
    bare = plan.norm == "none" and not plan.halo
    composes = plan.impl == "plain" or bare or norm_act.pays(math.prod(y), options)
    if plan.kind == "upsample":
        # Whose phases save products. Phases of a 5x5 convolution took 1.2 to 2.5 times as long for
        # 2^13 values or fewer, twice as many where they correct the border; 0.9 to 1.1 for more.
        return Split(plan, options, composes, math.prod(x) << (4 - plan.corrects_border))
    return Split(plan, options, composes, max(math.prod(x), math.prod(w)))


def split_block(
    how: Split,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    direct: bool = False,
) -> Tensor:
    """Return the result of `conv_block`: PyTorch's padding and convolution, then `norm_act`.

    Args:
        how: what to compute; see `split`.
        x: [N, C, H, W].
        w: filters [K, C, R, S] or [G, K, C, R, S], as in `conv_block`.
        b: bias [K] or [G, K].
        gamma: scale, beta: shift, [K] or [G, K].
        slope: prelu's.
        residual: [N, K, P, Q].
        direct: autograd alone has to know of it (`eager.only_autograd`).
    """
    plan, options, composes, _ = how
    inside = plan.kind == "transpose" or plan.pad_mode == "zero"
    if plan.kind == "upsample":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    if plan.padding and not inside:
        x = F.pad(x, (plan.padding,) * 4, mode=plan.pad_mode)
    cancelled = None
    if b is not None and plan.norm == "in":  # takes a bias away again: its gradient is 0
        if not (b.requires_grad and torch.is_grad_enabled()):
            b = None
        elif direct and composes and plan.impl == "aten":
            cancelled, b = b, None
        else:
            b = torch.where(b.new_zeros((), dtype=torch.bool), b, 0.0)
    b = None if b is None else b.to(x.dtype)
    w, padding = w.to(x.dtype), plan.padding if inside else 0
    if w.dim() > 4:
        raw = _grouped(plan, x, w, b, padding)
    elif plan.kind == "transpose":
        raw = torch.conv_transpose2d(x, w, b, plan.stride, padding, plan.output_padding)
    else:
        raw = torch.conv2d(x, w, b, plan.stride, padding)
    if composes:
        return norm_act.norm_act_plain(
            raw, gamma, beta, slope, residual, options, direct, cancelled
        )  # fmt: skip
    return norm_act_eager(raw, gamma, beta, slope, residual, options, plan.impl, auto=True)


def _grouped(plan: Plan, x: Tensor, w: Tensor, b: Tensor | None, padding: int) -> Tensor:
    """Convolve each group of samples with its own filters, [G, K, C, R, S]."""
    biases = [None] * len(w) if b is None else b.unbind()
    parts = zip(x.chunk(len(w)) if len(x) else [x] * len(w), w.unbind(), biases, strict=True)
    if plan.kind == "transpose":
        more = plan.stride, padding, plan.output_padding
        return torch.cat([torch.conv_transpose2d(*part, *more) for part in parts])
    return torch.cat([torch.conv2d(*part, plan.stride, padding) for part in parts])
