"""``pad(act(gamma * norm(x) + beta) + residual)`` on PyTorch's (ATen's) kernels, and its options.

`NormActOptions` holds the options; the Triton kernels are in `launch`, the public operation in
`op`. Takes every floating dtype and computes in at least fp32. The backward pass is derived by
hand: with dpre the gradient before the activation, xhat the normalised x and sums
over the pixels of a channel ("in") or of a sample ("ln"),

    dx = a * dpre - b - c * xhat        a = rstd * gamma

    norm   b                       c
    none   0                       0
    in     a * mean(dpre)          a * mean(dpre * xhat)
    ln     rstd * mean(g)          sum(g * xhat) / ((M - 1) * std)     g = gamma * dpre, M = C*H*W

Only x and the statistics are needed: xhat and the activation's mask are recomputed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.common.activations import ALPHA, SCALE

PIXELS = (2, 3)
_UNPAD = {
    "reflect": torch.ops.aten.reflection_pad2d_backward,
    "replicate": torch.ops.aten.replication_pad2d_backward,
}


class NormActOptions(NamedTuple):
    """The options of the operation. `slope` is lrelu's; prelu's is a tensor beside x."""

    norm: str = "none"
    eps: float = 1e-5
    act: str = "none"
    slope: float = 0.0
    halo: int = 0
    pad_mode: str = "zero"

    @property
    def folds(self) -> bool:
        """Return whether the halo's gradient comes back to the image."""
        return self.halo > 0 and self.pad_mode != "zero"

    def tiny(self, dtype: torch.dtype) -> float:
        """Return the std below which std = 1 / rstd - eps is rounding; "ln" takes it as 0."""
        return 4 * torch.finfo(dtype).eps * self.eps


class NormActGradients(NamedTuple):
    """Gradients of the operation; those of parameters per sample: see `per_row` for their sum."""

    dx: Tensor  # as x; in a frame on the Triton path
    dresidual: Tensor | None  # as x; None without a residual or halo, where it is dy itself
    dgamma: Tensor | None  # [N, C], as the rest
    dbeta: Tensor | None
    dslope: Tensor | None
    dshift: Tensor | None  # sum of dx over pixels: a conv bias's gradient; None for "in": zero


def per_row(sums: Tensor, parameter: Tensor) -> Tensor:
    """Sum [N, C] over the samples of each row of a parameter [C] or [G, C], or all for [1]."""
    if parameter.shape == (1,) and sums.shape[1] != 1:
        return sums.sum().to(parameter.dtype).view(1)
    rows = parameter.shape[0] if parameter.dim() == 2 else 1
    samples, channels = sums.shape
    grouped = sums.reshape(rows, samples // rows if rows else 0, channels)
    return grouped.sum(1).to(parameter.dtype).view(parameter.shape)


def norm_act_aten(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    options: NormActOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y [N, C, H + 2 * halo, W + 2 * halo] and mean, rstd [N, C] in at least fp32.

    For "ln" the statistics hold the sample's value in every channel, and rstd = 1 / (std + eps);
    for "none" they are empty, and autograd may follow. y is x itself where nothing is to be done.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = None if gamma is None else planes(gamma, wide)
    mean, rstd = wide.new_empty(0), wide.new_empty(0)
    y = wide
    # A normalised y is a new tensor, free to be changed: half the time of making another.
    own = options.norm != "none"
    if own:
        y, mean, rstd = _normalise(wide, scale, options)
    elif scale is not None:
        y = wide * scale
    if beta is not None:
        shift = planes(beta, wide)
        y = y.add_(shift) if own else y + shift
    y = activate(y, options, None if slope is None else planes(slope, wide), own)
    if residual is not None:
        y = y.add_(residual) if own else y + residual
    if options.halo:
        mode = "constant" if options.pad_mode == "zero" else options.pad_mode
        y = F.pad(y, (options.halo,) * 4, mode=mode)
    return y.to(x.dtype), mean, rstd


def planes(parameter: Tensor, x: Tensor) -> Tensor:
    """Return a parameter [1], [C] or [G, C] as [1 or N, 1 or C, 1, 1] of x's dtype."""
    rows = parameter.to(x.dtype)
    if rows.dim() == 2 and len(rows) > 1:
        rows = rows.repeat_interleave(x.shape[0] // len(rows), 0)
    return _over_pixels(rows) if rows.dim() == 2 else rows.view(1, -1, 1, 1)


def _over_pixels(rows: Tensor) -> Tensor:
    """View [N, C] as [N, C, 1, 1]."""
    return rows.view(*rows.shape, 1, 1)


def _normalise(
    x: Tensor, scale: Tensor | None, options: NormActOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scale * norm(x) as a new tensor, and the statistics."""
    # In passes of its own: as accurate as var_mean, and vectorised on the CPU, which it is not.
    over = PIXELS if options.norm == "in" else (1, *PIXELS)
    count = x.shape[2] * x.shape[3] * (1 if options.norm == "in" else x.shape[1])
    mean = x.mean(over, keepdim=True)
    y = x - mean
    rest = y.mean(over, keepdim=True)  # the mean's rounding, where that dwarfs the spread
    y.sub_(rest)
    mean = mean + rest
    m2 = y.square().sum(over, keepdim=True)
    if options.norm == "in":
        rstd = (m2 / count + options.eps).rsqrt()
    else:
        rstd = 1 / ((m2 / (count - 1)).sqrt() + options.eps)
    y.mul_(rstd if scale is None else rstd * scale)
    return y, _of_channels(mean, x.shape[1]), _of_channels(rstd, x.shape[1])


def _of_channels(value: Tensor, channels: int) -> Tensor:
    """Return statistics [N, C or 1, 1, 1] as [N, C]."""
    rows = value.flatten(1)
    return rows if rows.shape[1] == channels else rows.expand(-1, channels).contiguous()


def activate(x: Tensor, options: NormActOptions, slope: Tensor | None, inplace: bool) -> Tensor:
    """Apply the activation; `slope` is prelu's, [1 or N, 1 or C, 1, 1]."""
    if options.act == "relu":
        return F.relu(x, inplace)
    if options.act == "lrelu":
        return F.leaky_relu(x, options.slope, inplace)
    if options.act == "prelu":
        return torch.ops.aten._prelu_kernel(x, slope)  # which autocast leaves in x's dtype
    if options.act == "selu":
        return F.selu(x, inplace)
    if options.act == "tanh":
        return x.tanh_() if inplace else x.tanh()
    return x


def norm_act_backward_aten(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    options: NormActOptions,
    from_output: bool = False,
    residual: bool = False,
    sums: bool = True,
) -> NormActGradients:
    """Return the gradients for dy [N, C, H + 2 * halo, W + 2 * halo], that of the haloed y.

    Args:
        from_output: x holds the activation's result instead (norm "none", no gamma or beta, act
            "none", "relu", "lrelu" with slope >= 0, "selu" or "tanh").
        residual: return dresidual.
        sums: return the gradients of the parameters and dshift.
    """
    g = fold_halo(dy.to(torch.promote_types(x.dtype, torch.float32)), options)
    xhat = x.to(g.dtype)
    if options.norm != "none":
        xhat = (xhat - _over_pixels(mean)).mul_(_over_pixels(rstd))
    scale = None if gamma is None else planes(gamma, xhat)
    pre = xhat if scale is None else xhat * scale
    if beta is not None:
        pre = pre + planes(beta, xhat)
    slopes = None if slope is None else planes(slope, xhat)
    dpre, dslope = _activate_backward(g, pre, options, slopes, from_output)
    del pre  # the size of x
    if options.norm != "none":
        total, total_xhat = dpre.sum(PIXELS), (dpre * xhat).sum(PIXELS)
        dx = _normalise_backward(dpre, xhat, rstd, scale, total, total_xhat, options)
    else:
        total = dpre.sum(PIXELS) if sums else None
        total_xhat = (dpre * xhat).sum(PIXELS) if sums and gamma is not None else None
        dx = dpre if scale is None else dpre * scale
    return NormActGradients(
        dx=dx.to(x.dtype),
        dresidual=g.to(x.dtype) if residual and options.halo else None,
        dgamma=total_xhat if sums and gamma is not None else None,
        dbeta=total if sums and beta is not None else None,
        dslope=dslope.sum(PIXELS) if sums and dslope is not None else None,
        dshift=dx.sum(PIXELS) if sums and options.norm != "in" else None,
    )


def fold_halo(dy: Tensor, options: NormActOptions) -> Tensor:
    """Return the gradient [N, C, H, W] of an image from that of its haloed form."""
    if options.folds and dy.device.type == "cpu":
        inside = dy[:, :, options.halo : -options.halo, options.halo : -options.halo]
        return _UNPAD[options.pad_mode](dy, inside, [options.halo] * 4)
    # On a GPU PyTorch's own adjoint of padding is not deterministic.
    own = False
    for axis in PIXELS if options.halo else ():
        size = dy.shape[axis] - 2 * options.halo
        before, dy, after = dy.split((options.halo, size, options.halo), axis)
        if options.folds and not own:
            dy, own = dy.clone(), True
        if options.pad_mode == "reflect":
            dy.narrow(axis, 1, options.halo).add_(before.flip(axis))
            dy.narrow(axis, size - 1 - options.halo, options.halo).add_(after.flip(axis))
        elif options.pad_mode == "replicate":
            dy.narrow(axis, 0, 1).add_(before.sum(axis, keepdim=True))
            dy.narrow(axis, size - 1, 1).add_(after.sum(axis, keepdim=True))
    return dy


def _activate_backward(
    dy: Tensor, pre: Tensor, options: NormActOptions, slope: Tensor | None, from_output: bool
) -> tuple[Tensor, Tensor | None]:
    """Return dy * act'(pre) and, for prelu, dslope per pixel. ATen's own, fused, not where()."""
    aten = torch.ops.aten
    if options.act == "relu":
        return aten.threshold_backward(dy, pre, 0), None
    if options.act == "lrelu":
        return aten.leaky_relu_backward(dy, pre, options.slope, False), None
    if options.act == "prelu":
        return aten._prelu_kernel_backward(dy, pre, slope)
    if options.act == "selu":
        return aten.elu_backward(dy, ALPHA, SCALE, 1, from_output, pre), None
    if options.act == "tanh":
        return aten.tanh_backward(dy, pre if from_output else pre.tanh()), None
    return dy, None


def _normalise_backward(
    dpre: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    total: Tensor,
    total_xhat: Tensor,
    options: NormActOptions,
) -> Tensor:
    """Return dx = a * dpre - b - c * xhat, made in xhat's memory; the totals are [N, C]."""
    gamma = 1 if scale is None else scale[..., 0, 0]
    a, pixels = rstd if scale is None else rstd * gamma, dpre.shape[2] * dpre.shape[3]
    if options.norm == "in":
        b, c = a * total / pixels, a * total_xhat / pixels
    else:
        count = dpre.shape[1] * pixels
        std = 1 / rstd - options.eps
        b = rstd * (gamma * total).sum(1, keepdim=True) / count
        c = (gamma * total_xhat).sum(1, keepdim=True) / ((count - 1) * std)
        c = torch.where(std > options.tiny(std.dtype), c, 0)
    a, b, c = map(_over_pixels, (a, b, -c))
    return xhat.mul_(c).sub_(b).addcmul_(dpre, a)
