"""`norm_act` as a composition of PyTorch's operations, with all their derivatives."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.common import derivatives
from fastunit.kernels.common.eager import transformed
from fastunit.kernels.common.frame import eager_format
from fastunit.kernels.norm_act.aten import PIXELS, NormActOptions, activate, planes

# Values of a batch up to which it is the faster on a CPU. Instance norm and ReLU, forward and
# backward, take half of the operator's time for 16 channels and 4x4 pixels, for 2**15 the same.
SMALL = 1 << 14


def pays(values: int, options: NormActOptions) -> bool:
    """Return whether "auto" takes this composition of an image of so many values on a CPU.

    In place of the operator on ATen. It saves more, and the result of a tanh, which may then not
    be changed in place.
    """
    fits = options.norm == "none" or (options.norm == "in" and options.act != "tanh")
    return fits and 0 < values <= SMALL


def norm_act_plain(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    options: NormActOptions,
    direct: bool = False,
    cancelled: Tensor | None = None,
) -> Tensor:
    """Return ``pad(act(gamma * norm(x) + beta) + residual)`` of x's dtype, in fp32 or wider.

    Shapes are those of `norm_act`. Differentiable any number of times, forward mode included; the
    result may be changed in place, but for that of a tanh, which PyTorch saves. `direct` says that
    autograd alone has to know of it (`eager.only_autograd`), which takes less time. An instance
    norm then gives `cancelled`, a bias that was left out of x, the gradient 0.
    """
    y = wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if options.norm == "in" and wide.numel():
        if not direct:
            y = _composed(wide, options.eps)
        elif cancelled is not None or (wide.requires_grad and torch.is_grad_enabled()):
            y = _Normalise.apply(wide, cancelled, options.eps)
        else:
            y, *_ = _normalised(wide, options.eps, eager_format(wide))
    elif options.norm == "ln":
        std, mean = torch.std_mean(wide, (1, *PIXELS), keepdim=True)
        y = (wide - mean) / (std + options.eps)
    if gamma is not None:
        y = y * planes(gamma, wide)
    if beta is not None:
        y = y + planes(beta, wide)
    if options.act == "relu":
        y = torch.threshold(y, 0.0, 0.0)  # F.relu saves its result
    elif options.act != "none":
        y = activate(y, options, None if slope is None else planes(slope, wide), inplace=False)
    if residual is not None:
        y = y + residual
    if options.halo:
        mode = "constant" if options.pad_mode == "zero" else options.pad_mode
        y = F.pad(y, (options.halo,) * 4, mode=mode)
    return y.to(x.dtype)


def _composed(x: Tensor, eps: float) -> Tensor:
    """Normalise each sample's channels, [N, C, H, W]."""
    if transformed() and torch.onnx.is_in_onnx_export():  # it has an operator for this
        return F.instance_norm(x, eps=eps)
    var, mean = torch.var_mean(x, PIXELS, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(var + eps)


class _Normalise(torch.autograd.Function):
    """`_composed` by PyTorch's batch norm, in less time.

    Of batch norm PyTorch (2.11, 2.13) has two derivatives: what it returns for the third, and for
    the gradient of a tangent, is wrong. A gradient that is differentiated is composed.

    Of images, [1, C, H, W], its backward pass on CPUs is wrong where image and gradient differ in
    memory format and one has strides of its own for samples: it gets the columns of a matrix. In
    float64, since it may add up in the dtype it is given.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cancelled: Tensor | None, eps: float) -> Tensor:
        ctx.eps, ctx.form = eps, eager_format(x)
        y, *saved = _normalised(x, eps, ctx.form)
        ctx.save_for_backward(x, cancelled, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, cancelled, columns, *statistics = ctx.saved_tensors
        nothing = None if cancelled is None else torch.zeros_like(cancelled)
        if derivatives.differentiated_again():
            run = functools.partial(_composed, eps=ctx.eps)
            return derivatives.gradients(run, (x,), (True,), dy)[0], nothing, None
        of_columns = dy.permute(2, 3, 0, 1).reshape(columns.shape).double()
        given = of_columns, columns, None, None, None, *statistics, True, ctx.eps
        dx, *_ = torch.ops.aten.native_batch_norm_backward(*given, [True, False, False])
        return _image(dx, x, ctx.form), nothing, None


def _normalised(x: Tensor, eps: float, form: torch.memory_format) -> tuple[Tensor, ...]:
    """Return normalised images, and of their columns, [H * W, N * C], values, means and rstds."""
    columns = x.permute(2, 3, 0, 1).reshape(x.shape[2] * x.shape[3], -1).double()
    y, mean, rstd = torch.native_batch_norm(columns, None, None, None, None, True, 0.0, eps)
    return _image(y, x, form), columns, mean, rstd


def _image(columns: Tensor, like: Tensor, form: torch.memory_format) -> Tensor:
    """Return columns, [H * W, N * C], as images [N, C, H, W] of an image's shape and dtype."""
    samples, channels, height, width = like.shape
    if samples == 1:  # the usual stride of samples, on which kernels of PyTorch's depend
        y = columns.view(1, height, width, channels).permute(0, 3, 1, 2)
    else:
        y = columns.view(height, width, samples, channels).permute(2, 3, 0, 1)
    return y.to(like.dtype).contiguous(memory_format=form)
