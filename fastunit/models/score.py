"""The last layer of a discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastunit.kernels import conv_norm_act
from fastunit.kernels.common import runtime
from fastunit.models.layers import Weights
from fastunit.models.unfused import untouched


class ScoreConv2d(nn.Conv2d):
    """1x1 convolution into one channel; on a GPU a dot product over channels, else PyTorch's.

    Args:
        dim: channels of the input.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Return scores [N, 1, H, W] for [N, dim, H, W] of any floating dtype."""
        return self.run(self.weights(), input)

    @property
    def per_sample(self) -> bool:
        """Whether groups of samples can have different weights."""
        return untouched(self, ScoreConv2d)

    def weights(self) -> Weights:
        """Return weight and bias."""
        return Weights(self.weight, self.bias, None, None)

    def settings(self) -> tuple:
        """Return what is equal for layers that differ in their weights alone."""
        return type(self), self.weight.shape, self.bias is None

    def run(self, weights: Weights, x: Tensor) -> Tensor:
        """Apply the layer with the given weights, which may be stacked as in `Conv2dBlock.run`."""
        w, b = weights.weight, weights.bias
        if runtime.choose_impl("auto", x) == "triton":
            return conv_norm_act(x, w, b)
        if w.dim() == 4:
            return self._conv_forward(x, w, b)
        biases = [None] * len(w) if b is None else b.unbind()
        parts = zip(x.tensor_split(len(w)), w.unbind(), biases, strict=True)
        return torch.cat([self._conv_forward(*part) for part in parts])
