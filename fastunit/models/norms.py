"""The 2018 release's norms: for images, and for features of linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastunit.kernels import norm_act


class LayerNorm(nn.Module):
    """The release's layer norm: ``(x - mean) / (std + eps) * gamma + beta`` over (C, H, W).

    The standard deviation is the unbiased one and eps is added to it, not to the variance.
    Input and result: [N, C, H, W] or [N, C], of any floating dtype and memory format, as in
    `norm_act`.

    Args:
        num_features: channels C.
        eps: added to the standard deviation.
        affine: whether to scale and shift by `gamma` and `beta`, both [C]; they start uniform in
            [0, 1) and at 0.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.gamma = nn.Parameter(torch.rand(num_features)) if affine else None
        self.beta = nn.Parameter(torch.zeros(num_features)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = norm_act(_pixels(x), norm="ln", gamma=self.gamma, beta=self.beta, eps=self.eps)
        return y.view(x.shape) if x.dim() == 2 else y


class RowNorm(nn.Module):
    """The release's instance norm for linear layers: over each sample's features [N, C]."""

    eps = 1e-5

    def __init__(self, num_features: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(x[:, None, None, :], norm="in", eps=self.eps)[:, 0, 0]


def _pixels(x: Tensor) -> Tensor:
    """Return features [N, C] as images of one pixel; images are unchanged."""
    return x[:, :, None, None] if x.dim() == 2 else x
