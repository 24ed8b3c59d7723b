"""`norm_act` as a composition of PyTorch's operations, with all their derivatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.norm_act.aten import PIXELS, NormActOptions, activate, planes

# Values of an image, and samples, up to which it is the faster on a CPU. An instance norm of 16
# channels and 4x4 pixels takes a third of the operator's time, of 64 channels and 32x32 the same.
SMALL, FEW = 1 << 15, 4


def is_small(x: Tensor, norm: str) -> bool:
    """Return whether "auto" takes this composition in place of the operator on ATen."""
    few = x.device.type == "cpu" and len(x) <= FEW and x.numel() <= SMALL
    return norm == "none" or (norm == "in" and few)


def norm_act_plain(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    options: NormActOptions,
) -> Tensor:
    """Return ``pad(act(gamma * norm(x) + beta) + residual)`` of x's dtype, in fp32 or wider.

    Shapes are those of `norm_act`. Differentiable any number of times, forward mode included; the
    result may be changed in place, but for that of a tanh, which PyTorch saves.
    """
    y = wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if options.norm == "in":
        y = _instance_norm(wide, options.eps)
    elif options.norm == "ln":
        std, mean = torch.std_mean(wide, (1, *PIXELS), keepdim=True)
        y = (wide - mean) / (std + options.eps)
    scale, shift = planes(gamma, wide), planes(beta, wide)
    if scale is not None:
        y = y * scale
    if shift is not None:
        y = y + shift
    if options.act == "relu":
        y = F.threshold(y, 0.0, 0.0)  # F.relu saves its result
    else:
        y = activate(y, options, planes(slope, wide), inplace=False)
    if residual is not None:
        y = y + residual
    if options.halo:
        mode = "constant" if options.pad_mode == "zero" else options.pad_mode
        y = F.pad(y, (options.halo,) * 4, mode=mode)
    return y.to(x.dtype)


def _instance_norm(x: Tensor, eps: float) -> Tensor:
    """Normalise each sample as a batch of its own, which keeps channels_last.

    In float64: of channels_last images PyTorch's batch norm adds up in the dtype it is given, and
    ends with up to ten times the error of its instance norm.
    """
    if not x.numel():
        return x
    samples = [
        torch.batch_norm(sample, None, None, None, None, True, 0.0, eps, False)
        for sample in x.double().split(1)
    ]
    return (samples[0] if len(samples) == 1 else torch.cat(samples)).to(x.dtype)
