"""Layers of the paper's networks, on fused operations.

Each layer keeps the 2017 release's modules in `model`, for their state_dict keys, and runs each
convolution with the norm and activation after it as one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fastunit.kernels import conv_norm_act, conv_transpose, norm_act
from fastunit.models.layers import Weights
from fastunit.models.unfused import (
    plain_convolution,
    plain_instance_norm,
    run_modules,
    say_plain,
    untouched,
)

SLOPE = 0.01  # of every LeakyReLU

Conv = nn.Conv2d | nn.ConvTranspose2d
BlockNorm = Literal["none", "in"]
BlockActivation = Literal["relu", "lrelu"]
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


class Fused:
    """A square convolution or transposed convolution, with norm and activation, as one operation.

    The convolution is the module at index `place` of `layers` at the time of the call. The modules
    after it, up to index `stop`, are the norm and activation that `options` describes: norm, act
    and slope as in `conv_norm_act`. If a module was modified or replaced, they are called one
    after the other. Can be grouped (`grouped.Groupable`).
    """

    def __init__(
        self,
        layers: Sequence[nn.Module] | nn.Sequential,
        place: int,
        stop: int | None = None,
        **options: Any,
    ) -> None:
        self._layers, self._place, self.options = layers, place, options
        self.stop = place + 1 if stop is None else stop

    @property
    def per_sample(self) -> bool:
        """Whether groups of samples can have different weights."""
        return self.fuses

    @property
    def fuses(self) -> bool:
        """Whether a fused operation computes what the modules do."""
        conv = self.conv
        square = plain_convolution(conv) and all(
            len(set(pair)) == 1 for pair in (conv.stride, conv.padding, conv.output_padding)
        )
        if not square or len(self._layers) < self.stop:
            return False
        found = [self._layers[i] for i in range(self._place + 1, self.stop)]
        return not found or self._describes(found)

    def _describes(self, modules: list[nn.Module]) -> bool:
        """Return whether `options` describes what the modules compute."""
        norm, act, slope = (self.options.get(name) for name in ("norm", "act", "slope"))
        if norm == "in" and not (plain_instance_norm(modules[0]) and modules.pop(0).eps == 1e-5):
            return False
        if act in (None, "none"):
            return not modules
        if len(modules) != 1:
            return False
        if act == "lrelu":
            return untouched(modules[0], nn.LeakyReLU) and modules[0].negative_slope == slope
        return untouched(modules[0], nn.ReLU)

    @property
    def conv(self) -> Conv:
        return cast(Conv, self._layers[self._place])  # another module where `fuses` is false

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.fuses:
            return self.run(self.weights(), x, residual)
        say_plain(type(self.conv).__name__)
        stop = min(self.stop, len(self._layers))
        following = (self._layers[place] for place in range(self._place + 1, stop))
        y = run_modules(following, self.conv(x))
        if self.stop == self._place + 1:
            y = _PLAIN[self.options.get("act", "none")](y)
        return y if residual is None else y + residual

    def weights(self) -> Weights:
        """Return the layer's parameters."""
        return Weights(self.conv.weight, self.conv.bias, None, None)

    def settings(self) -> tuple:
        """Return the layer's settings: equal for layers that differ in their weights alone."""
        shapes = self.conv.weight.shape, self.conv.bias is None
        return type(self.conv), self._where(), self.options, *shapes

    @property
    def convolution(self) -> tuple[str, int]:
        """The kind of block that the fused operation is, and its stride."""
        kind = "transpose" if isinstance(self.conv, nn.ConvTranspose2d) else "conv"
        return kind, self.conv.stride[0]

    def run(self, weights: Weights, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the layer with the given weights; see `layers.Conv2dBlock.run`."""
        operation = conv_transpose if isinstance(self.conv, nn.ConvTranspose2d) else conv_norm_act
        options: dict[str, Any] = self.options | {"residual": residual, "filters": weights.filters}
        return operation(x, weights.weight, weights.bias, **self._where(), **options)

    def _where(self) -> dict[str, Any]:
        return _where(self.conv)


def _where(conv: Conv) -> dict[str, Any]:
    where: dict[str, Any] = {"stride": conv.stride[0], "padding": conv.padding[0]}
    if isinstance(conv, nn.ConvTranspose2d):
        where["output_padding"] = conv.output_padding[0]
    return where


class ConvBlock(nn.Module):
    """Convolution or transposed convolution, norm ("none" or "in"), activation ("relu", "lrelu").

    The release's LeakyReLUConv2d, ReLUINSConv2d and their transposed forms.
    """

    def __init__(self, conv: Conv, norm: BlockNorm, act: BlockActivation) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv]
        if norm == "in":
            layers.append(nn.InstanceNorm2d(conv.out_channels))
        layers.append(nn.LeakyReLU(SLOPE) if act == "lrelu" else nn.ReLU())
        self.model = nn.Sequential(*layers)
        self._fused = Fused(self.model, 0, len(layers), norm=norm, act=act, slope=SLOPE)

    @property
    def fuses(self) -> bool:
        """Whether a fused operation computes what the modules do."""
        whole = untouched(self.model, nn.Sequential) and len(self.model) == self._fused.stop
        return whole and self._fused.fuses

    @property
    def per_sample(self) -> bool:
        """Whether groups of samples can have different weights."""
        return untouched(self, ConvBlock) and self.fuses

    def weights(self) -> Weights:
        return self._fused.weights()

    def settings(self) -> tuple:
        return self._fused.settings()

    @property
    def convolution(self) -> tuple[str, int]:
        return self._fused.convolution

    def run(self, weights: Weights, x: Tensor) -> Tensor:
        return self._fused.run(weights, x)

    def forward(self, x: Tensor) -> Tensor:
        if self.fuses:
            return self._fused(x)
        say_plain(type(self).__name__)
        return run_modules(self.model, x)


class INSResBlock(nn.Module):
    """3x3 convolution, instance norm, ReLU, 3x3 convolution, instance norm, plus the input.

    With `dropout`, nn.Dropout is applied before the input is added.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(dim, dim, 3, 1, 1),
            nn.InstanceNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, 1, 1),
            nn.InstanceNorm2d(dim),
        )
        self.first = Fused(self.model, 0, 3, norm="in", act="relu")
        self.second = Fused(self.model, 3, 5, norm="in")
        self._drops = dropout > 0
        if self._drops:
            self.model.append(nn.Dropout(dropout))

    @property
    def halves(self) -> tuple[Fused, Fused] | None:
        """The two layers, the second of which adds the input.

        None if dropout is active or a module was modified or replaced.
        """
        plain = (
            type(self) is INSResBlock and self._is_whole() and not (self._drops and self.training)
        )
        return (self.first, self.second) if plain else None

    def _is_whole(self) -> bool:
        count = 6 if self._drops else 5
        return (
            untouched(self.model, nn.Sequential)
            and len(self.model) == count
            and (not self._drops or untouched(self.model[5], nn.Dropout))
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_whole():
            say_plain(type(self).__name__)
            return run_modules(self.model, x) + x
        y = self.first(x)
        if self._drops and self.training:
            return norm_act(self.model[5](self.second(y)), residual=x)
        return self.second(y, residual=x)


class ToImage(nn.ConvTranspose2d):
    """The decoders' last layer: a transposed convolution and tanh as one operation."""

    def forward(self, x: Tensor) -> Tensor:
        plain = self.dilation == (1, 1) and self.groups == 1 and self.padding_mode == "zeros"
        if not plain or any(len(set(pair)) > 1 for pair in (self.stride, self.padding)):
            return super().forward(x).tanh()
        return conv_transpose(x, self.weight, self.bias, **_where(self), act="tanh")


class TwoDomainModule(nn.Module):
    """A module that holds both domains' layers, with a network per domain in `domains`.

    Attributes:
        domains: the networks "a" and "b", made of this module's layers; they follow replaced
            layers and the training mode. A plain dictionary, so that PyTorch does not register
            them as submodules and the state_dict contains each layer once.
    """

    domains: Mapping[str, nn.Module]

    def _make_domains(self) -> Mapping[str, nn.Module]:
        """Return `domains`; called when all layers exist, and when one is replaced."""
        raise NotImplementedError

    def _update_domains(self) -> None:
        self.domains = {
            name: each.train(self.training) for name, each in self._make_domains().items()
        }

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Module) and "domains" in vars(self):
            self._update_domains()

    def train(self, mode: bool = True) -> TwoDomainModule:
        """Set training or evaluation mode, in `domains` too."""
        for domain in self.domains.values():
            domain.train(mode)
        return super().train(mode)
