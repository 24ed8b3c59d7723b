"""The convolutional block as a composition of PyTorch's operations, with all their derivatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.common.runtime import is_auto
from fastunit.kernels.conv.plan import Plan
from fastunit.kernels.norm_act import plain as norm_act
from fastunit.kernels.norm_act.operators import norm_act_eager

# Values of an image, and of the filters, up to which `split_block` is the faster on a CPU. Above,
# the operator's memory matters more; large filters on few pixels want `aten.filter_gradient`.
SMALL = 1 << 17


def splitting_pays(plan: Plan, asked: str, x: Tensor, w: Tensor) -> bool:
    """Return whether "auto" takes `split_block`.

    `asked` is what the caller named as implementation.

    Forward and backward of a 3x3 block of 16 channels on 4x4 pixels then take half of the time on
    a CPU; autograd saves up to twice as much.
    """
    if plan.impl != "aten" or x.device.type != "cpu" or not is_auto(asked):
        return False
    if plan.kind == "upsample":
        # Whose phases save products. Phases of a 5x5 convolution took 1.2 to 2.5 times as long for
        # 2^13 values or fewer, twice as many where they correct the border; 0.9 to 1.1 for more.
        return x.numel() <= (SMALL >> 4) << plan.corrects_border
    return max(x.numel(), w.numel()) <= SMALL


def split_block(
    plan: Plan,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Return the result of `conv_block`: PyTorch's padding and convolution, then `norm_act`.

    Args:
        plan: the block's; with "plain" the norm is a composition, with "aten" where that pays.
        x: [N, C, H, W].
        w: filters [K, C, R, S] or [G, K, C, R, S], as in `conv_block`.
        b: bias [K] or [G, K].
        gamma: scale, beta: shift, [K] or [G, K].
        slope: prelu's.
        residual: [N, K, P, Q].
    """
    inside = plan.kind == "transpose" or plan.pad_mode == "zero"
    if plan.kind == "upsample":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    if plan.padding and not inside:
        x = F.pad(x, (plan.padding,) * 4, mode=plan.pad_mode)
    if b is not None and plan.norm == "in":  # takes a bias away again: its gradient is 0
        followed = b.requires_grad and torch.is_grad_enabled()
        b = torch.where(b.new_zeros((), dtype=torch.bool), b, 0.0) if followed else None
    b = None if b is None else b.to(x.dtype)
    w, padding = w.to(x.dtype), plan.padding if inside else 0
    if w.dim() > 4:
        raw = _grouped(plan, x, w, b, padding)
    elif plan.kind == "transpose":
        raw = torch.conv_transpose2d(x, w, b, plan.stride, padding, plan.output_padding)
    else:
        raw = torch.conv2d(x, w, b, plan.stride, padding)
    options = plan.norm_act
    bare = plan.norm == "none" and not plan.halo
    if plan.impl == "plain" or bare or norm_act.pays(raw, options):
        return norm_act.norm_act_plain(raw, gamma, beta, slope, residual, options)
    return norm_act_eager(raw, gamma, beta, slope, residual, options, plan.impl, auto=True)


def _grouped(plan: Plan, x: Tensor, w: Tensor, b: Tensor | None, padding: int) -> Tensor:
    """Convolve each group of samples with its own filters, [G, K, C, R, S]."""
    biases = [None] * len(w) if b is None else b.unbind()
    parts = zip(x.chunk(len(w)) if len(x) else [x] * len(w), w.unbind(), biases, strict=True)
    if plan.kind == "transpose":
        more = plan.stride, padding, plan.output_padding
        return torch.cat([torch.conv_transpose2d(*part, *more) for part in parts])
    return torch.cat([torch.conv2d(*part, plan.stride, padding) for part in parts])
