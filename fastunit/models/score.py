"""The last layer of a discriminator."""

from __future__ import annotations

from torch import Tensor, nn

from fastunit.kernels.conv.plan import Plan
from fastunit.models.chain import Operation
from fastunit.models.unfused import untouched

_PLAN = Plan("conv", 1, 0, 0, "zero", "none", 0.0, "none", 0.0, 0, "zero", "auto")


class ScoreConv2d(nn.Conv2d):
    """1x1 convolution into one channel; on Triton kernels a dot product over channels.

    Args:
        dim: channels of the input.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Return scores [N, 1, H, W] for [N, dim, H, W] of any floating dtype."""
        return self.operation()(input)

    @property
    def per_sample(self) -> bool:
        """Whether groups of samples can have different weights."""
        return untouched(self, ScoreConv2d)

    def operation(self) -> Operation:
        """Return the fused operation."""
        return Operation(_PLAN, self)
