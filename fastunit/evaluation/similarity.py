"""How near an image is to the true one: mean absolute difference, PSNR and SSIM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # for values of 0..1


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean absolute difference of each pair, [N], on the scale of [-1, 1]."""
    return (x.double() - y.double()).abs().mean((1, 2, 3))


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Return each pair's peak signal-to-noise ratio in dB, [N]; at most 100, for equal images."""
    error = ((x.double() - y.double()) / 2).square().mean((1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return each pair's structural similarity, [N] (Wang et al. 2004).

    A Gaussian window of 11x11 pixels and sigma 1.5, where it lies within the image, over all
    channels; of images smaller than that the window is cut to their size.
    """
    x, y = (x.double() + 1) / 2, (y.double() + 1) / 2
    channels = x.shape[1]
    kernels = []
    for size in x.shape[2:]:
        count = min(_WINDOW, size)
        places = torch.arange(count, dtype=x.dtype, device=x.device) - (count - 1) / 2
        weights = torch.exp(-places.square() / (2 * _SIGMA**2))
        kernels.append(weights / weights.sum())
    window = (kernels[0][:, None] * kernels[1]).expand(channels, 1, -1, -1)

    def local(image: Tensor) -> Tensor:
        return F.conv2d(image, window, groups=channels)

    mx, my = local(x), local(y)
    vx, vy, cov = local(x * x) - mx * mx, local(y * y) - my * my, local(x * y) - mx * my
    value = (2 * mx * my + _C1) * (2 * cov + _C2)
    value /= (mx.square() + my.square() + _C1) * (vx + vy + _C2)
    return value.mean((1, 2, 3))
