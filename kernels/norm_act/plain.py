"""`norm_act` as a composition of PyTorch's operations, with all their derivatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.common.eager import transformed
from fastunit.kernels.common.frame import memory_format
from fastunit.kernels.norm_act.aten import PIXELS, NormActOptions, activate, planes

# Values of a batch up to which it is the faster on a CPU. Instance norm and ReLU, forward and
# backward, take half of the operator's time for 16 channels and 4x4 pixels, for 2**15 the same.
SMALL = 1 << 14


def pays(x: Tensor, options: NormActOptions) -> bool:
    """Return whether "auto" takes this composition in place of the operator on ATen.

    It saves more, and the result of a tanh, which may then not be changed in place.
    """
    fits = options.norm == "none" or (options.norm == "in" and options.act != "tanh")
    return fits and x.device.type == "cpu" and 0 < x.numel() <= SMALL


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
        y = _instance_norm(wide, options.eps) if wide.numel() else wide
    elif options.norm == "ln":
        std, mean = torch.std_mean(wide, (1, *PIXELS), keepdim=True)
        y = (wide - mean) / (std + options.eps)
    if gamma is not None:
        y = y * planes(gamma, wide)
    if beta is not None:
        y = y + planes(beta, wide)
    if options.act == "relu":
        y = F.threshold(y, 0.0, 0.0)  # F.relu saves its result
    elif options.act != "none":
        y = activate(y, options, None if slope is None else planes(slope, wide), inplace=False)
    if residual is not None:
        y = y + residual
    if options.halo:
        mode = "constant" if options.pad_mode == "zero" else options.pad_mode
        y = F.pad(y, (options.halo,) * 4, mode=mode)
    return y.to(x.dtype)


def _instance_norm(x: Tensor, eps: float) -> Tensor:
    """Normalise each sample's channels, [N, C, H, W], as the columns of a matrix.

    Of images, [1, C, H, W], PyTorch's batch norm (2.11, 2.13) has a backward pass on CPUs that is
    wrong where image and gradient differ in memory format and one has strides of its own for
    samples. In float64, since it may add up in the dtype it is given.
    """
    if transformed() and torch.onnx.is_in_onnx_export():  # it has an operator for this
        return F.instance_norm(x, eps=eps)
    samples, channels, height, width = x.shape
    rows = x.permute(2, 3, 0, 1).reshape(height * width, samples * channels).double()
    y = torch.batch_norm(rows, None, None, None, None, True, 0.0, eps, False).to(x.dtype)
    if samples == 1:  # the usual stride of samples, on which kernels of PyTorch's depend
        y = y.view(1, height, width, channels).permute(0, 3, 1, 2)
    else:
        y = y.view(height, width, samples, channels).permute(2, 3, 0, 1)
    return y.contiguous(memory_format=memory_format(x))
