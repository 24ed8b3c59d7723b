"""The 2018 release's layers on fused operations: same constructors, same state_dict keys."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.common.choices import ACTIVATIONS, PAD_TYPES, Activation, Norm, PadType
from fastunit.kernels import norm_act
from fastunit.kernels.common import checks
from fastunit.kernels.conv.block import apply
from fastunit.kernels.conv.phases import upsampling
from fastunit.kernels.conv.plan import Kind, Plan
from fastunit.models.chain import Chain, Operation
from fastunit.models.norms import AdaptiveInstanceNorm2d, LayerNorm, RowNorm, SpectralNorm
from fastunit.models.unfused import intact, run_modules, say_plain, untouched

LRELU_SLOPE = 0.2
M = TypeVar("M", bound=nn.Module)

_PADS: dict[str, type[nn.Module]] = {
    "zero": nn.ZeroPad2d,
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "lrelu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
}


class _Block(nn.Module):
    """Base of convolutional and linear blocks: checks options, holds norm and activation modules.

    While the modules are as they were made, a fused operation computes what they define. With
    hooks, parametrizations, changed or replaced modules, the block runs the modules themselves.
    """

    NORMS: ClassVar[dict[str, type[nn.Module]]]  # the classes of norms
    norm: Any  # a module or None; users may replace it
    activation: Any  # likewise

    def __init__(self, channels: int, norm: Norm, activation: Activation) -> None:
        super().__init__()
        checks.choice("norm", norm, ("none", *self.NORMS, "sn"))
        checks.choice("activation", activation, ACTIVATIONS)
        self.norm_name, self.activ_name = norm, activation
        self.norm = self.NORMS[norm](channels) if norm in self.NORMS else None
        if activation == "lrelu":
            self.activation = nn.LeakyReLU(LRELU_SLOPE)
        else:
            self.activation = None if activation == "none" else _ACTIVATIONS[activation]()

    def _norm_act_options(self) -> dict[str, Any]:
        """Return the arguments of `norm_act` for norm and activation."""
        act, norm = self.activation, self.norm
        found: dict[str, Any] = {"act": self.activ_name}
        if self.activ_name in ("lrelu", "prelu"):
            found["slope"] = act.negative_slope if self.activ_name == "lrelu" else act.weight
        if self.norm_name in ("in", "ln"):
            found |= {"norm": self.norm_name, "eps": norm.eps}
        if self.norm_name == "ln":
            found |= {"gamma": norm.gamma, "beta": norm.beta}
        return found

    def _as_made(self, *parts: Any) -> bool:
        """Return whether `parts`, modules and their classes, norm and activation are unmodified."""
        norm, act = self.norm, self.activation
        kinds = self.NORMS.get(self.norm_name), _ACTIVATIONS.get(self.activ_name)
        if self.norm_name == "bn":  # always called as a module
            return norm is not None and intact(*parts, act, kinds[1])
        if not intact(*parts, norm, kinds[0], act, kinds[1]):
            return False
        return kinds[0] is not nn.InstanceNorm2d or not (norm.affine or norm.track_running_stats)

    @property
    def _prelu(self) -> Tensor | None:
        return self.activation.weight if self.activ_name == "prelu" else None

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
        norm: "none", "bn", "in", "ln", "adain" (scale and shift of each sample are assigned to
            `norm` before a call) or "sn" (`SpectralNorm` of the filters).
        activation: "relu", "lrelu" (slope 0.2), "prelu", "selu", "tanh" or "none".
        pad_type: what the added pixels hold: "zero", "reflect" or "replicate".

    Input [N, input_dim, H, W], result [N, output_dim, P, Q] with
    P = (H + 2 * padding - kernel_size) // stride + 1, likewise Q; any floating dtype and memory
    format, as in `conv_norm_act`. `residual`, of the result's shape, is added last.

    Raises:
        ValueError: an option is not one of its choices; the message names it and them. On a
            call: the image's shape or dtype does not fit.
    """

    NORMS: ClassVar = {
        "bn": nn.BatchNorm2d, "in": nn.InstanceNorm2d, "ln": LayerNorm,
        "adain": AdaptiveInstanceNorm2d,
    }  # fmt: skip

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
        super().__init__(output_dim, norm, activation)
        checks.choice("pad_type", pad_type, PAD_TYPES)
        self.stride, self.padding = stride, padding
        self.pad_type: PadType = pad_type
        self.pad = _PADS[pad_type](padding)
        conv = nn.Conv2d(input_dim, output_dim, kernel_size, stride)
        self.conv: Any = SpectralNorm(conv) if norm == "sn" else conv

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not self.fuses:
            if self.norm_name != "sn":
                say_plain(type(self).__name__)
            y = self._run_modules(x)
            return y if residual is None else y + residual
        operation = self.operation()
        if self.norm_name == "adain":
            gamma, beta = self.norm.rows()
            w, b = self.conv.weight, self.conv.bias
            return apply(operation.plan, x, w, b, gamma, beta, self._prelu, residual)
        if self.norm_name != "bn":
            return operation(x, residual, self._prelu)
        y = self.norm(operation(x))
        return norm_act(y, residual=residual, **self._norm_act_options())

    @property
    def fuses(self) -> bool:
        """Whether a fused operation computes what the modules do."""
        conv, pad = self.conv, self.pad
        return (
            self._as_made(conv, nn.Conv2d, pad, _PADS[self.pad_type])
            and conv.stride == (self.stride, self.stride)
            and conv.padding == (0, 0)
            and conv.dilation == (1, 1)
            and conv.groups == 1
            and pad.padding == (self.padding,) * 4
        )

    @property
    def per_sample(self) -> bool:
        """Whether groups of samples can have different weights; not with PReLU's one slope."""
        ours = type(self) in (Conv2dBlock, UpsampleConv2dBlock) and untouched(self, type(self))
        alike = self.norm_name not in ("bn", "adain") and self.activ_name != "prelu"
        return ours and alike and self.fuses

    def _run_modules(self, x: Tensor) -> Tensor:
        return self._run_norm_act(self.conv(self.pad(x)))

    def operation(self) -> Operation:
        """Return the fused operation: all but batch norm and what follows it."""
        norm, act = self.norm_name, self.activ_name
        if norm == "bn":
            norm, act = "none", "none"
        elif norm == "adain":
            norm = "in"
        eps = 0.0 if norm == "none" else self.norm.eps
        slope = self.activation.negative_slope if act == "lrelu" else 0.0
        plan = Plan(
            self._kind, self.stride, self.padding, 0, self.pad_type, norm, eps, act, slope, 0,
            "zero", "auto",
        )  # fmt: skip
        return Operation(plan, self.conv, self.norm if norm == "ln" else None)

    @property
    def _kind(self) -> Kind:
        return "conv"


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

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.fuses and self._kind == "conv":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return super().forward(x, residual)

    @property
    def per_sample(self) -> bool:
        """Whether groups of samples can have different weights, and nothing comes before it."""
        return self._kind == "upsample" and super().per_sample

    @property
    def _kind(self) -> Kind:
        return upsampling(self.padding, self.pad_type)

    def _run_modules(self, x: Tensor) -> Tensor:
        return super()._run_modules(F.interpolate(x, scale_factor=2, mode="nearest"))


class LinearBlock(_Block):
    """Linear layer, norm and activation. Input [N, input_dim], result [N, output_dim].

    Norms other than batch norm are over each sample's features, as in the release.

    Args:
        input_dim: features in.
        output_dim: features out.
        norm: "none", "bn", "in", "ln" or "sn".
        activation: "relu", "lrelu" (slope 0.2), "prelu", "selu", "tanh" or "none".

    Raises:
        ValueError: an option is not one of its choices; the message names it and them.
    """

    NORMS: ClassVar = {"bn": nn.BatchNorm1d, "in": RowNorm, "ln": LayerNorm}

    def __init__(
        self, input_dim: int, output_dim: int, norm: Norm = "none", activation: Activation = "relu"
    ) -> None:
        super().__init__(output_dim, norm, activation)
        fc = nn.Linear(input_dim, output_dim)
        self.fc = SpectralNorm(fc) if norm == "sn" else fc

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if not self._as_made():
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


class ResBlocks(Chain):
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
