"""The release's norms: for images, for features of linear layers, and of filters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
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


class AdaptiveInstanceNorm2d(nn.Module):
    """AdaIN (Huang and Belongie 2017): instance norm, scaled and shifted per sample.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: accepted as in the release, whose running statistics nothing reads.

    Attributes:
        weight: scale [N * C] or [N, C], to be assigned before each call; [1, C] is that of all
            samples.
        bias: shift, likewise.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.register_buffer("running_mean", torch.zeros(num_features))  # keys of the release
        self.register_buffer("running_var", torch.ones(num_features))

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift, each [N, C] or [1, C].

        Raises:
            RuntimeError: they have not been assigned.
        """
        if self.weight is None or self.bias is None:
            raise RuntimeError("assign weight and bias, [N * C], before AdaIN is called")
        rows = -1, self.num_features
        return self.weight.reshape(rows), self.bias.reshape(rows)

    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = self.rows()
        return norm_act(x, norm="in", gamma=gamma, beta=beta, eps=self.eps)


class SpectralNorm(nn.Module):
    """A layer whose weight is divided by its spectral norm (Miyato et al. 2018, algorithm 1).

    The largest singular value is estimated by power iteration, in training mode once a call: W v
    and W^T u, normalized. Its gradient takes u and v as constants.

    Args:
        module: the layer; its parameter `name` becomes `name`_bar, with buffers `name`_u [rows]
            and `name`_v [columns], the release's names.
        name: the parameter, [rows, ...].
        power_iterations: steps of each call in training mode.
    """

    def __init__(self, module: nn.Module, name: str = "weight", power_iterations: int = 1) -> None:
        super().__init__()
        self.module, self.name, self.power_iterations = module, name, power_iterations
        weight = module._parameters.pop(name)
        assert weight is not None
        rows, columns = weight.flatten(1).shape
        module.register_parameter(f"{name}_bar", nn.Parameter(weight.detach()))
        module.register_buffer(f"{name}_u", F.normalize(weight.new_empty(rows).normal_(), dim=0))
        module.register_buffer(f"{name}_v", F.normalize(weight.new_empty(columns).normal_(), dim=0))

    def normalized(self) -> Tensor:
        """Return the weight divided by its estimated norm, which training mode improves."""
        bar, u, v = (getattr(self.module, f"{self.name}_{end}") for end in ("bar", "u", "v"))
        matrix = bar.flatten(1)
        if self.training:
            with torch.no_grad():
                for _ in range(self.power_iterations):
                    v.copy_(F.normalize(matrix.mT @ u, dim=0, eps=1e-12))
                    u.copy_(F.normalize(matrix @ v, dim=0, eps=1e-12))
        # Copies: the next call changes u and v, which this one's backward pass needs.
        return bar / torch.dot(u.clone(), torch.mv(matrix, v.clone()))

    def forward(self, *args: Any) -> Any:
        setattr(self.module, self.name, self.normalized())
        try:
            return self.module(*args)
        finally:
            delattr(self.module, self.name)  # it is part of a graph, which cannot be copied


def _pixels(x: Tensor) -> Tensor:
    """Return features [N, C] as images of one pixel; images are unchanged."""
    return x[:, :, None, None] if x.dim() == 2 else x
