"""Layers of the paper's networks: plain modules in the 2017 release's places, run fused.

Each keeps the release's modules in `model`, for the state_dict's keys, and runs a convolution with
what follows it as one operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastunit.kernels import conv_norm_act, conv_transpose, norm_act
from fastunit.layers import Weights

SLOPE = 0.01  # of every LeakyReLU

Conv = nn.Conv2d | nn.ConvTranspose2d


class Fused:
    """A square convolution, or a transposed one, and what follows it, as one operation.

    The convolution is the module at `place` in `layers`, whichever that is when it is run. `tail`
    holds norm, act and slope as `conv_norm_act` takes them. Has what `pairing` asks of a layer:
    `weights`, `settings`, `run`.
    """

    per_sample = True  # samples may have weights of their own

    def __init__(self, layers: Sequence[Conv], place: int, **tail: Any) -> None:
        self._layers, self._place, self.tail = layers, place, tail

    @property
    def conv(self) -> Conv:
        return self._layers[self._place]

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.run(self.weights(), x, residual)

    def weights(self) -> Weights:
        """Return what the layer learns."""
        return Weights(self.conv.weight, self.conv.bias, None, None)

    def settings(self) -> tuple:
        """Return what two layers that differ in their weights alone have in common."""
        return type(self.conv), self._where(), self.tail, self.conv.weight.shape

    def run(self, weights: Weights, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the layer with other weights than its own; see `layers.Conv2dBlock.run`."""
        operation = conv_transpose if isinstance(self.conv, nn.ConvTranspose2d) else conv_norm_act
        tail = self.tail | {"residual": residual}
        return operation(x, weights.weight, weights.bias, **self._where(), **tail)

    def _where(self) -> dict[str, int]:
        where = {"stride": self.conv.stride[0], "padding": self.conv.padding[0]}
        if isinstance(self.conv, nn.ConvTranspose2d):
            where["output_padding"] = self.conv.output_padding[0]
        return where


class ConvBlock(nn.Module):
    """Convolution or transposed convolution, norm ("none" or "in"), activation ("relu", "lrelu").

    The release's LeakyReLUConv2d, ReLUINSConv2d and their transposed forms.
    """

    per_sample = True

    def __init__(self, conv: Conv, norm: str, act: str) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv]
        if norm == "in":
            layers.append(nn.InstanceNorm2d(conv.out_channels))
        layers.append(nn.LeakyReLU(SLOPE) if act == "lrelu" else nn.ReLU())
        self.model = nn.Sequential(*layers)
        self._fused = Fused(self.model, 0, norm=norm, act=act, slope=SLOPE)

    def weights(self) -> Weights:
        return self._fused.weights()

    def settings(self) -> tuple:
        return self._fused.settings()

    def run(self, weights: Weights, x: Tensor) -> Tensor:
        return self._fused.run(weights, x)

    def forward(self, x: Tensor) -> Tensor:
        return self._fused(x)


class INSResBlock(nn.Module):
    """3x3 convolution, instance norm, ReLU, convolution, instance norm, plus the input.

    With `dropout`, training sets that share of the values to 0, and scales the others up, before
    the input is added.
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
        self.first = Fused(self.model, 0, norm="in", act="relu")
        self.second = Fused(self.model, 3, norm="in")
        self._drops = dropout > 0
        if self._drops:
            self.model.append(nn.Dropout(dropout))

    @property
    def halves(self) -> tuple[Fused, Fused] | None:
        """The two layers, the second of which adds the input; None where dropout is between."""
        return None if self._drops and self.training else (self.first, self.second)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.halves is not None:
            return self.second(y, residual=x)
        return norm_act(self.model[5](self.second(y)), residual=x)


class ToImage(nn.ConvTranspose2d):
    """The decoders' last layer: a transposed convolution and tanh as one operation."""

    def forward(self, x: Tensor) -> Tensor:
        return Fused([self], 0, act="tanh")(x)


class OfDomains(nn.Module):
    """A module of both domains' layers, shown as a network for each domain in `domains`.

    Attributes:
        domains: by name, "a" and "b"; made of the layers that this module has now, also after
            one is replaced, and in its mode. A plain dictionary: PyTorch does not take them for
            children, so the state_dict has each layer once.
    """

    domains: dict[str, nn.Module]

    def _make(self) -> dict[str, nn.Module]:
        """Return `domains`; called when all layers are there, and when one is replaced."""
        raise NotImplementedError

    def _couple(self) -> None:
        self.domains = {name: each.train(self.training) for name, each in self._make().items()}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Module) and "domains" in vars(self):
            self._couple()

    def train(self, mode: bool = True) -> OfDomains:
        """Set training or evaluation mode, of `domains` too."""
        for domain in self.domains.values():
            domain.train(mode)
        return super().train(mode)
