"""The 2018 release's layers on fused operations: same constructors, same state_dict keys."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.common.choices import ACTIVATIONS, NORMS, PAD_TYPES, Activation, Norm, PadType
from fastunit.kernels import conv_norm_act, norm_act, upsample_conv
from fastunit.kernels.common import checks
from fastunit.kernels.conv.layouts import Filters
from fastunit.kernels.conv.phases import upsampling
from fastunit.models.unfused import (
    plain_convolution,
    plain_instance_norm,
    run_modules,
    say_plain,
    untouched,
)

LRELU_SLOPE = 0.2
M = TypeVar("M", bound=nn.Module)

_PADS = {
    "zero": nn.ZeroPad2d,
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
}
_ACTIVATIONS = {
    "relu": nn.ReLU,
    "lrelu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "none": type(None),
}


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


class _RowNorm(nn.Module):
    """The release's instance norm for linear layers: over each sample's features [N, C]."""

    eps = 1e-5

    def __init__(self, num_features: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(x[:, None, None, :], norm="in", eps=self.eps)[:, 0, 0]


def _pixels(x: Tensor) -> Tensor:
    """Return features [N, C] as images of one pixel; images are unchanged."""
    return x[:, :, None, None] if x.dim() == 2 else x


class Weights(NamedTuple):
    """The parameters of a convolutional block; for G groups each has a leading dimension G."""

    weight: Tensor  # [K, C, R, S]
    bias: Tensor | None  # [K]
    gamma: Tensor | None  # [K]
    beta: Tensor | None  # [K]
    filters: Filters | None = None  # the weight, laid out before


class _Block(nn.Module):
    """Base of convolutional and linear blocks: checks options, holds norm and activation modules.

    While the modules are unmodified, a fused operation computes what they define. With hooks,
    parametrizations or replaced modules, the block runs the modules themselves.
    """

    norm: Any  # a module or None; users may replace it
    activation: Any  # likewise

    def __init__(
        self,
        channels: int,
        norm: Norm,
        activation: Activation,
        batch_norm: type[nn.Module],
        instance_norm: type[nn.Module],
    ) -> None:
        super().__init__()
        checks.choice("norm", norm, NORMS)
        checks.choice("activation", activation, ACTIVATIONS)
        self.norm_name, self.activ_name = norm, activation
        if norm == "bn":
            self.norm = batch_norm(channels)
        elif norm == "ln":
            self.norm = LayerNorm(channels)
        else:
            self.norm = instance_norm(channels) if norm == "in" else None
        if activation == "lrelu":
            self.activation = nn.LeakyReLU(LRELU_SLOPE)
        else:
            self.activation = None if activation == "none" else _ACTIVATIONS[activation]()

    def _norm_act_options(self) -> dict[str, Any]:
        """Return the norm's and activation's keyword arguments of the fused operation."""
        fused: dict[str, Any] = {"act": self.activ_name}
        if self.activ_name == "lrelu":
            fused["slope"] = self.activation.negative_slope
        elif self.activ_name == "prelu":
            fused["slope"] = self.activation.weight
        if self.norm_name != "bn":
            fused["norm"] = self.norm_name
        if self.norm_name in ("in", "ln"):
            fused["eps"] = self.norm.eps
        if self.norm_name == "ln":
            fused |= {"gamma": self.norm.gamma, "beta": self.norm.beta}
        return fused

    def _norm_act_fuses(self) -> bool:
        """Return whether norm and activation still compute what `_norm_act_options` says."""
        act, norm = self.activation, self.norm
        if self.activ_name == "none" and act is not None:
            return False
        if self.activ_name != "none" and not untouched(act, _ACTIVATIONS[self.activ_name]):
            return False
        if self.norm_name == "ln":
            return untouched(norm, LayerNorm)
        if self.norm_name == "bn":  # not fused: always called as a module
            return norm is not None
        if self.norm_name == "in":
            return plain_instance_norm(norm) or untouched(norm, _RowNorm)
        return norm is None

    def _run_norm_act(self, x: Tensor) -> Tensor:
        """Apply norm and activation by calling the modules."""
        return run_modules((each for each in (self.norm, self.activation) if each is not None), x)


class Conv2dBlock(_Block):
    """Padding, convolution, norm and activation as one operation.

    Args:
        input_dim: channels in.
        output_dim: channels out.
        kernel_size: height and width of the filters, in pixels.
        stride: of the convolution, both axes.
        padding: pixels added on each side.
        norm: "none", "bn", "in" or "ln".
        activation: "relu", "lrelu" (slope 0.2), "prelu", "selu", "tanh" or "none".
        pad_type: what the added pixels hold: "zero", "reflect" or "replicate".

    Input [N, input_dim, H, W], result [N, output_dim, P, Q] with
    P = (H + 2 * padding - kernel_size) // stride + 1, likewise Q; any floating dtype and memory
    format, as in `conv_norm_act`. `residual`, of the result's shape, is added last.

    Raises:
        ValueError: an option is not one of its choices; the message names it and them. On a
            call: the image's shape or dtype does not fit.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        norm: Norm = "none",
        activation: Activation = "relu",
        pad_type: PadType = "zero",
    ) -> None:
        super().__init__(output_dim, norm, activation, nn.BatchNorm2d, nn.InstanceNorm2d)
        checks.choice("pad_type", pad_type, PAD_TYPES)
        self.stride, self.padding = stride, padding
        self.pad_type: PadType = pad_type
        self.pad = _PADS[pad_type](padding)
        self.conv = nn.Conv2d(input_dim, output_dim, kernel_size, stride)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.fuses:
            conv = self.conv
            return self._run_fused(x, conv.weight, conv.bias, residual, self._norm_act_options())
        say_plain(type(self).__name__)
        y = self._run_modules(x)
        return y if residual is None else y + residual

    @property
    def fuses(self) -> bool:
        """Whether a fused operation computes what the modules do."""
        conv, pad = self.conv, self.pad
        return (
            type(conv) is nn.Conv2d
            and plain_convolution(conv)
            and conv.stride == (self.stride, self.stride)
            and conv.padding == (0, 0)
            and untouched(pad, _PADS[self.pad_type])
            and pad.padding == (self.padding,) * 4
            and self._norm_act_fuses()
        )

    @property
    def per_sample(self) -> bool:
        """Whether groups of samples can have different weights; not with PReLU's one slope."""
        ours = type(self) in (Conv2dBlock, UpsampleConv2dBlock) and untouched(self, type(self))
        return ours and self.norm_name != "bn" and self.activ_name != "prelu" and self.fuses

    def _run_modules(self, x: Tensor) -> Tensor:
        return self._run_norm_act(self.conv(self.pad(x)))

    def weights(self) -> Weights:
        """Return the block's weights, except those of batch norm and PReLU."""
        options = self._norm_act_options()
        return Weights(self.conv.weight, self.conv.bias, options.get("gamma"), options.get("beta"))

    def settings(self) -> tuple:
        """Return the block's settings: equal for blocks that differ in their weights alone."""
        options = self._norm_act_options()
        where = self.stride, self.padding, self.pad_type
        shapes = self.conv.weight.shape, self.conv.bias is None
        numbers = options.get("eps"), None if self.activ_name == "prelu" else options.get("slope")
        return type(self), *where, self.norm_name, self.activ_name, *numbers, *shapes

    @property
    def convolution(self) -> tuple[str, int]:
        """The kind of block that the fused operation is, and its stride."""
        return "conv", self.stride

    def run(self, weights: Weights, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the block with the given weights instead of its own.

        Weights may be stacked: with G of each, sample n uses group n // (N / G).
        """
        options = self._norm_act_options()
        if weights.gamma is not None:
            options |= {"gamma": weights.gamma, "beta": weights.beta}
        options["filters"] = weights.filters
        return self._run_fused(x, weights.weight, weights.bias, residual, options)

    def _run_fused(
        self,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        residual: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        if self.norm_name != "bn":
            return self._convolve(x, w, b, residual=residual, **options)
        return norm_act(self.norm(self._convolve(x, w, b)), residual=residual, **options)

    def _convolve(self, x: Tensor, w: Tensor, b: Tensor | None, **options: Any) -> Tensor:
        where: dict[str, Any] = {"padding": self.padding, "pad_mode": self.pad_type}
        return conv_norm_act(x, w, b, stride=self.stride, **where, **options)


class UpsampleConv2dBlock(Conv2dBlock):
    """`Conv2dBlock` with stride 1 on the input upsampled by 2 (nearest neighbour).

    The result is [N, output_dim, P, Q] with P = 2 * H + 2 * padding - kernel_size + 1, likewise Q.

    Args:
        input_dim: channels in.
        output_dim: channels out.
        kernel_size: height and width of the filters, in pixels of the enlarged image.
        padding: pixels added on each side of the enlarged image.
        norm: as in `Conv2dBlock`.
        activation: as in `Conv2dBlock`.
        pad_type: as in `Conv2dBlock`.

    Raises:
        ValueError: as `Conv2dBlock`.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int,
        padding: int = 0,
        norm: Norm = "none",
        activation: Activation = "relu",
        pad_type: PadType = "zero",
    ) -> None:
        super().__init__(input_dim, output_dim, kernel_size, 1, padding, norm, activation, pad_type)

    @property
    def convolution(self) -> tuple[str, int]:
        """The kind of block that the fused operation is, and its stride."""
        return upsampling(self.padding, self.pad_type), 1

    def _convolve(
        self, x: Tensor, w: Tensor, b: Tensor | None, residual: Tensor | None = None, **options: Any
    ) -> Tensor:
        y = upsample_conv(x, w, b, padding=self.padding, pad_mode=self.pad_type, **options)
        return y if residual is None else y + residual

    def _run_modules(self, x: Tensor) -> Tensor:
        return super()._run_modules(F.interpolate(x, scale_factor=2, mode="nearest"))


class LinearBlock(_Block):
    """Linear layer, norm and activation. Input [N, input_dim], result [N, output_dim].

    Norms other than batch norm are over each sample's features, as in the release.

    Args:
        input_dim: features in.
        output_dim: features out.
        norm: "none", "bn", "in" or "ln".
        activation: "relu", "lrelu" (slope 0.2), "prelu", "selu", "tanh" or "none".

    Raises:
        ValueError: an option is not one of its choices; the message names it and them.
    """

    def __init__(
        self, input_dim: int, output_dim: int, norm: Norm = "none", activation: Activation = "relu"
    ) -> None:
        super().__init__(output_dim, norm, activation, nn.BatchNorm1d, _RowNorm)
        self.fc = nn.Linear(input_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if not self._norm_act_fuses():
            say_plain(type(self).__name__)
            return self._run_norm_act(y)
        if self.norm_name == "bn":
            y = self.norm(y)
        options = self._norm_act_options()
        if self.norm_name == "in":  # over all features: as one channel whose pixels they are
            return norm_act(y[:, None, None, :], **options)[:, 0, 0]
        return norm_act(y[:, :, None, None], **options)[:, :, 0, 0]


class ResBlock(nn.Module):
    """Two 3x3 blocks, the second without activation, plus the input. Shape is kept.

    Args:
        dim: channels of input [N, dim, H, W] and result.
        norm: of both blocks, as in `Conv2dBlock`.
        activation: of the first block, as in `Conv2dBlock`.
        pad_type: of both blocks, as in `Conv2dBlock`.

    Raises:
        ValueError: as `Conv2dBlock`.
    """

    def __init__(
        self,
        dim: int,
        norm: Norm = "in",
        activation: Activation = "relu",
        pad_type: PadType = "zero",
    ) -> None:
        super().__init__()
        self.model = nn.Sequential(
            Conv2dBlock(dim, dim, 3, 1, 1, norm, activation, pad_type),
            Conv2dBlock(dim, dim, 3, 1, 1, norm, "none", pad_type),
        )

    @property
    def halves(self) -> tuple[Conv2dBlock, Conv2dBlock] | None:
        """The two blocks, the second of which adds the input; None if they were replaced."""
        if type(self) is not ResBlock or not untouched(self.model, nn.Sequential):
            return None
        if len(blocks := tuple(self.model)) != 2:
            return None
        first, second = blocks
        if untouched(first, Conv2dBlock) and untouched(second, Conv2dBlock):
            return first, second
        return None

    def forward(self, x: Tensor) -> Tensor:
        if (halves := self.halves) is None:
            return self.model(x) + x
        return halves[1](halves[0](x), residual=x)


class ResBlocks(nn.Module):
    """A sequence of residual blocks.

    Args:
        num_blocks: how many `ResBlock`s; 0 is the identity.
        dim: channels of input [N, dim, H, W] and result.
        norm: as in `ResBlock`.
        activation: as in `ResBlock`.
        pad_type: as in `ResBlock`.

    Raises:
        ValueError: as `Conv2dBlock`.
    """

    def __init__(
        self,
        num_blocks: int,
        dim: int,
        norm: Norm = "in",
        activation: Activation = "relu",
        pad_type: PadType = "zero",
    ) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *(ResBlock(dim, norm, activation, pad_type) for _ in range(num_blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def moved(
    module: M,
    device: torch.device | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> M:
    """Return the module, moved to a device and with its filters in a memory format."""
    to: Any = module.to  # its type annotations lack memory_format
    return to(device, memory_format=memory_format)


def downsample(x: Tensor) -> Tensor:
    """Halve images for a discriminator's next scale: 3x3 average pooling without padding pixels."""
    return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
