"""Layers of the 2018 release over fused operations: same constructors, same state_dict keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.config import ACTIVATIONS, NORMS, PAD_TYPES
from fastunit.kernels import checks, conv_norm_act, norm_act, upsample_conv

LRELU_SLOPE = 0.2


class LayerNorm(nn.Module):
    """The release's layer norm: ``(x - mean) / (std + eps) * gamma + beta`` over (C, H, W).

    The standard deviation is the unbiased one and eps is added to it, not to the variance.
    `gamma` starts uniform in [0, 1), `beta` at 0; both [C], absent when `affine` is false.
    Input and result: [N, C, H, W].
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.gamma = nn.Parameter(torch.rand(num_features)) if affine else None
        self.beta = nn.Parameter(torch.zeros(num_features)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(x, norm="ln", gamma=self.gamma, beta=self.beta, eps=self.eps)


class Weights(NamedTuple):
    """What a convolutional block learns, each with a leading dimension where it is for groups."""

    weight: Tensor  # [K, C, R, S]
    bias: Tensor  # [K]
    gamma: Tensor | None  # [K]
    beta: Tensor | None  # [K]


class _Block(nn.Module):
    """What convolutional and linear blocks share: checked options, norm and activation modules."""

    def __init__(self, channels: int, norm: str, activation: str, batch_norm: type) -> None:
        super().__init__()
        checks.choice("norm", norm, NORMS)
        checks.choice("activation", activation, ACTIVATIONS)
        self.norm_name, self.activ_name = norm, activation
        if norm == "bn":
            self.norm = batch_norm(channels)
        elif norm == "ln":
            self.norm = LayerNorm(channels)
        else:
            self.norm = None
        self.activation = nn.PReLU() if activation == "prelu" else None

    def _tail(self) -> dict:
        """Return the keyword arguments of the fused norm and activation."""
        fused = {"act": self.activ_name, "slope": LRELU_SLOPE}
        if self.activation is not None:
            fused["slope"] = self.activation.weight
        if self.norm_name != "bn":
            fused["norm"] = self.norm_name
        if isinstance(self.norm, LayerNorm):
            fused |= {"gamma": self.norm.gamma, "beta": self.norm.beta, "eps": self.norm.eps}
        return fused


class Conv2dBlock(_Block):
    """Pad, convolve, normalise, activate.

    Args:
        input_dim, output_dim: channels in and out.
        kernel_size, stride, padding: of the convolution, both axes.
        norm: "none", "bn", "in" or "ln".
        activation: "relu", "lrelu" (slope 0.2), "prelu", "selu", "tanh" or "none".
        pad_type: "zero", "reflect" or "replicate".

    Input [N, input_dim, H, W], result [N, output_dim, P, Q]; `residual`, of the result's shape,
    is added last. Raises ValueError naming an option, its value and the choices.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        norm: str = "none",
        activation: str = "relu",
        pad_type: str = "zero",
    ) -> None:
        super().__init__(output_dim, norm, activation, nn.BatchNorm2d)
        checks.choice("pad_type", pad_type, PAD_TYPES)
        self.stride, self.padding, self.pad_type = stride, padding, pad_type
        self.conv = nn.Conv2d(input_dim, output_dim, kernel_size, stride)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.run(self.weights(), x, residual)

    @property
    def per_sample(self) -> bool:
        """Whether samples may have weights of their own; PReLU's slope is for all."""
        return self.norm_name != "bn" and self.activ_name != "prelu"

    def weights(self) -> Weights:
        """Return the weights; those of batch norm and PReLU are not among them."""
        tail = self._tail()
        return Weights(self.conv.weight, self.conv.bias, tail.get("gamma"), tail.get("beta"))

    def settings(self) -> tuple:
        """Return what two blocks that differ in their weights alone have in common."""
        eps = self._tail().get("eps")
        where = self.stride, self.padding, self.pad_type
        return type(self), *where, self.norm_name, self.activ_name, eps, self.conv.weight.shape

    def run(self, weights: Weights, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the block with other weights than its own.

        They may be stacked: with G of each, sample n takes those of group n // (N / G).
        """
        tail = self._tail() | {"residual": residual}
        if weights.gamma is not None:
            tail |= {"gamma": weights.gamma, "beta": weights.beta}
        if self.norm_name != "bn":
            return self._convolve(x, weights, **tail)
        return norm_act(self.norm(self._convolve(x, weights)), **tail)

    def _convolve(self, x: Tensor, weights: Weights, **tail: Any) -> Tensor:
        where = {"stride": self.stride, "padding": self.padding, "pad_mode": self.pad_type}
        return conv_norm_act(x, weights.weight, weights.bias, **where, **tail)


class UpsampleConv2dBlock(Conv2dBlock):
    """`Conv2dBlock` with stride 1 on the input enlarged twice by repetition.

    The result is [N, output_dim, P, Q] with P = 2 * H + 2 * padding - kernel_size + 1.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int,
        padding: int = 0,
        norm: str = "none",
        activation: str = "relu",
        pad_type: str = "zero",
    ) -> None:
        super().__init__(input_dim, output_dim, kernel_size, 1, padding, norm, activation, pad_type)

    def _convolve(self, x: Tensor, weights: Weights, residual: None = None, **tail: Any) -> Tensor:
        where = {"padding": self.padding, "pad_mode": self.pad_type}
        return upsample_conv(x, weights.weight, weights.bias, **where, **tail)


class LinearBlock(_Block):
    """Linear layer, norm, activation. Input [N, input_dim], result [N, output_dim].

    A norm other than batch norm takes each sample's features as one row, as the release does.
    """

    def __init__(
        self, input_dim: int, output_dim: int, norm: str = "none", activation: str = "relu"
    ) -> None:
        super().__init__(output_dim, norm, activation, nn.BatchNorm1d)
        self.fc = nn.Linear(input_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if self.norm_name == "bn":
            y = self.norm(y)
        tail = self._tail()
        if self.norm_name == "in":  # one row of features: the same as one channel of pixels
            return norm_act(y[:, None, None, :], **tail)[:, 0, 0]
        return norm_act(y[:, :, None, None], **tail)[:, :, 0, 0]


class ResBlock(nn.Module):
    """Two 3x3 blocks, the second without activation, plus the input. Shape is kept."""

    def __init__(
        self, dim: int, norm: str = "in", activation: str = "relu", pad_type: str = "zero"
    ) -> None:
        super().__init__()
        self.model = nn.Sequential(
            Conv2dBlock(dim, dim, 3, 1, 1, norm, activation, pad_type),
            Conv2dBlock(dim, dim, 3, 1, 1, norm, "none", pad_type),
        )

    @property
    def halves(self) -> tuple[Conv2dBlock, Conv2dBlock]:
        """The two blocks, the second of which adds the input."""
        return self.model[0], self.model[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.model[1](self.model[0](x), residual=x)


class ResBlocks(nn.Module):
    """`num_blocks` residual blocks in a row; none is the identity."""

    def __init__(
        self,
        num_blocks: int,
        dim: int,
        norm: str = "in",
        activation: str = "relu",
        pad_type: str = "zero",
    ) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *(ResBlock(dim, norm, activation, pad_type) for _ in range(num_blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def downsample(x: Tensor) -> Tensor:
    """Halve images for a discriminator's next scale: 3x3 means that count no padding."""
    return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
