"""Layers of the paper's networks, on fused operations.

Each layer keeps the 2017 release's modules in `model`, for their state_dict keys, and runs each
convolution with the norm and activation after it as one operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_not
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fastunit.kernels import norm_act
from fastunit.kernels.conv.block import apply
from fastunit.kernels.conv.plan import Plan
from fastunit.models.chain import Operation
from fastunit.models.unfused import (
    plain_convolution,
    plain_instance_norm,
    run_modules,
    say_plain,
    untouched,
)

SLOPE = 0.01  # of every LeakyReLU
NORM_EPS = 1e-5  # of every instance norm

Conv = nn.Conv2d | nn.ConvTranspose2d
BlockNorm = Literal["none", "in"]
BlockActivation = Literal["relu", "lrelu"]


class FusedConvolution:
    """A square convolution or transposed convolution, with norm and activation, as one operation.

    The convolution is the module at index `place` of `layers` at the time of the call. The modules
    after it, up to index `stop`, are the norm and activation that norm, act and slope describe, as
    in `conv_norm_act`. If a module was modified or replaced, they are called one after the other.
    A layer of `chain.Program`.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module] | nn.Sequential,
        place: int,
        stop: int,
        *,
        norm: BlockNorm = "none",
        act: BlockActivation | Literal["none"] = "none",
    ) -> None:
        self._layers, self._place, self.stop = layers, place, stop
        self._norm: BlockNorm = norm
        self._act = act

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
        return self._describes(found)

    def _describes(self, modules: list[nn.Module]) -> bool:
        """Return whether norm and activation describe what the modules compute."""
        if self._norm == "in" and not (
            plain_instance_norm(modules[0]) and modules.pop(0).eps == NORM_EPS
        ):
            return False
        if self._act == "none":
            return not modules
        if len(modules) != 1:
            return False
        if self._act == "lrelu":
            return untouched(modules[0], nn.LeakyReLU) and modules[0].negative_slope == SLOPE
        return untouched(modules[0], nn.ReLU)

    @property
    def conv(self) -> Conv:
        return cast(Conv, self._layers[self._place])  # another module where `fuses` is false

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.fuses:
            return self.operation()(x, residual)
        say_plain(type(self.conv).__name__)
        stop = min(self.stop, len(self._layers))
        following = (self._layers[place] for place in range(self._place + 1, stop))
        y = run_modules(following, self.conv(x))
        return y if residual is None else y + residual

    def operation(self) -> Operation:
        """Return the fused operation."""
        return Operation(plan_of(self.conv, self._norm, self._act), self.conv)


def plan_of(conv: Conv, norm: BlockNorm, act: str) -> Plan:
    """Return what a square convolution with norm and activation computes."""
    transposed = isinstance(conv, nn.ConvTranspose2d)
    (stride, _), (padding, _) = conv.stride, cast(tuple[int, int], conv.padding)
    more = conv.output_padding[0] if transposed else 0
    kind, slope = "transpose" if transposed else "conv", SLOPE if act == "lrelu" else 0.0
    return Plan(
        kind, stride, padding, more, "zero", norm, NORM_EPS, act, slope, 0, "zero", "auto"
    )  # fmt: skip


def convolve(conv: nn.Module, x: Tensor, act: Literal["none", "relu", "tanh"] = "none") -> Tensor:
    """Apply a square convolution, or a transposed one, and an activation as one operation."""
    layer = FusedConvolution([conv], 0, 1)
    if layer.fuses:
        return apply(plan_of(layer.conv, "none", act), x, layer.conv.weight, layer.conv.bias)
    say_plain(type(conv).__name__)
    y = conv(x)
    return y if act == "none" else getattr(torch, act)(y)


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
        self._fused = FusedConvolution(self.model, 0, len(layers), norm=norm, act=act)

    @property
    def fuses(self) -> bool:
        """Whether a fused operation computes what the modules do."""
        whole = untouched(self.model, nn.Sequential) and len(self.model) == self._fused.stop
        return whole and self._fused.fuses

    @property
    def per_sample(self) -> bool:
        """Whether groups of samples can have different weights."""
        return untouched(self, ConvBlock) and self.fuses

    def operation(self) -> Operation:
        """Return the fused operation."""
        return self._fused.operation()

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
        self.first = FusedConvolution(self.model, 0, 3, norm="in", act="relu")
        self.second = FusedConvolution(self.model, 3, 5, norm="in")
        self._drops = dropout > 0
        if self._drops:
            self.model.append(nn.Dropout(dropout))

    @property
    def halves(self) -> tuple[FusedConvolution, FusedConvolution] | None:
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
        return apply(plan_of(self, "none", "tanh"), x, self.weight, self.bias)


class TwoDomainModule(nn.Module):
    """A module that holds both domains' layers, with a network per domain in `domains`."""

    def _make_domains(self) -> Mapping[str, nn.Module]:
        """Return `domains`, of the layers that there are now."""
        raise NotImplementedError

    @property
    def domains(self) -> Mapping[str, Any]:
        """The networks "a" and "b", made of this module's layers.

        They follow replaced layers and the training mode. Not in `modules()`, so that the
        state_dict contains each layer once.
        """
        parts = *self._modules.values(), self.training
        made = vars(self).get("_domains")
        if made is None or len(made[0]) != len(parts) or any(map(is_not, made[0], parts)):
            networks = self._make_domains()
            for network in networks.values():
                network.training = self.training  # its layers have their own modes
                for part in network.children():
                    part.training = self.training
            made = vars(self)["_domains"] = parts, networks
        return made[1]
