"""The convolutions of a configuration's networks, found by running them on meta tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fastunit.common.errors import ConfigError
from fastunit.config import Config
from fastunit.models import perceptual
from fastunit.models.layers import Conv2dBlock, UpsampleConv2dBlock, downsample
from fastunit.models.score import ScoreConv2d
from fastunit.models.unit import UNIT

NARROW = 16  # least number of channels of a matrix instruction


@dataclass(frozen=True)
class Layer:
    """A convolution for one sample; sizes are (height, width)."""

    channels: int
    channels_out: int
    size: tuple[int, int]
    size_out: tuple[int, int]
    taps: int
    stride: int
    padding: int
    upsampled: bool = False
    norm: bool = False  # its result is normalised
    residual: bool = False  # and something added to it

    @property
    def flops(self) -> int:
        """FLOPs of one of its GEMMs (fprop, dgrad or wgrad) as the layer is defined."""
        height, width = self.size_out
        return 2 * height * width * self.taps**2 * self.channels * self.channels_out

    @property
    def weights(self) -> int:
        return self.taps**2 * self.channels * self.channels_out

    @property
    def elements_out(self) -> int:
        return self.channels_out * self.size_out[0] * self.size_out[1]

    @property
    def haloed(self) -> int:
        """Elements of its input with padding."""
        return self.channels * _area(self.size, 2 * self.padding)

    @property
    def haloed_gradient(self) -> int:
        """Elements of its result's gradient with the halo that dgrad and wgrad read."""
        return self.channels_out * _area(self.size_out, -(-self.taps // self.stride) - 1)

    def as_run(self) -> Layer:
        """Return the layer that is actually run: for an upsampling block, its phases."""
        if not self.upsampled:
            return self
        taps = (self.taps + 1) // 2
        return Layer(
            self.channels,
            4 * self.channels_out,
            self.size,
            self.size,
            taps,
            stride=1,
            padding=(taps - 1) // 2,
            norm=self.norm,
            residual=self.residual,
        )

    def issued(self, gemm: str) -> int:
        """Return the FLOPs of a GEMM including the halo and padding of few channels."""
        if gemm == "fprop":
            inner, outer, area = self.channels, self.channels_out, _area(self.size_out)
        elif gemm == "dgrad":
            inner, outer = self.channels_out, self.channels
            area = _area(self.size, 2 * self.padding) // self.stride**2
        else:
            inner, outer = self.channels, self.channels_out
            area = _area(self.size_out, -(-self.taps // self.stride) - 1)
        return 2 * area * _depth(self.taps, inner) * max(outer, NARROW)


class Networks(NamedTuple):
    """The layers of both domains' networks, in the order of execution."""

    encoders: list[list[Layer]]
    decoders: list[list[Layer]]
    discriminators: list[list[list[Layer]]]  # by scale
    perceptual: list[list[Layer]]  # none without the term
    code: int  # elements of a code
    parameters: int


def networks(config: Config) -> Networks:
    """Return the layers for the configuration's crop.

    Raises:
        ConfigError: networks other than the 2018 release's.
    """
    if config.network != "release":
        raise ConfigError(f"network={config.network}: only the release's layers are counted here")
    found = Networks([], [], [], [], 0, 0)
    with torch.device("meta"):
        unit = UNIT(config)
        for name in "ab":
            generator, discriminator = getattr(unit, f"gen_{name}"), getattr(unit, f"dis_{name}")
            image = scaled = torch.empty(1, generator.input_dim, *config.crop)
            code = generator.code(image)
            found.encoders.append(walk(generator.enc, image))
            found.decoders.append(walk(generator.dec, code))
            found.discriminators.append([])
            for scale in discriminator.cnns:
                found.discriminators[-1].append(walk(scale, scaled))
                scaled = downsample(scaled)
            if config.vgg_w > 0:
                found.perceptual.append(vgg(config.crop))
    parameters = sum(p.numel() for p in unit.parameters())
    return found._replace(code=code.numel(), parameters=parameters)


def walk(network: nn.Module, x: Tensor) -> list[Layer]:
    """Run a network of fastunit's or PyTorch's layers and return its convolutions in order."""
    found: list[Layer] = []
    block_forward, conv_forward = Conv2dBlock.forward, nn.Conv2d.forward
    score_forward = ScoreConv2d.forward

    def note(module: nn.Module, x: Tensor, y: Tensor, residual: bool = False) -> None:
        block = module if isinstance(module, Conv2dBlock) else None
        conv = block.conv if block else module
        padding = block.padding if block else conv.padding[0]
        (_, channels, *size), (_, channels_out, *size_out) = x.shape, y.shape
        found.append(
            Layer(
                *(channels, channels_out, tuple(size), tuple(size_out)),
                conv.kernel_size[0],
                conv.stride[0],
                padding,
                upsampled=isinstance(module, UpsampleConv2dBlock),
                norm=block is not None and block.norm_name != "none",
                residual=residual,
            )
        )

    def run_block(block: Conv2dBlock, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = block_forward(block, x, residual)
        note(block, x, y, residual is not None)
        return y

    def run_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:  # one outside of blocks, which fuse theirs
        y = conv_forward(conv, x)
        note(conv, x, y)
        return y

    def run_score(conv: ScoreConv2d, x: Tensor) -> Tensor:
        y = score_forward(conv, x)
        note(conv, x, y)
        return y

    # Not with hooks: blocks with hooks run unfused.
    with (
        patch.object(Conv2dBlock, "forward", run_block),
        patch.object(nn.Conv2d, "forward", run_conv),
        patch.object(ScoreConv2d, "forward", run_score),
    ):
        network(x)
    return found


def vgg(size: tuple[int, int]) -> list[Layer]:
    """Return the layers of the perceptual term for an image."""
    found, channels = [], 3
    for index, block in enumerate(perceptual.BLOCKS):
        for width in block:
            found.append(Layer(channels, width, size, size, taps=3, stride=1, padding=1))
            channels = width
        if index < perceptual.POOLED_BLOCKS:
            size = size[0] // 2, size[1] // 2
    return found


def _area(size: tuple[int, int], more: int = 0) -> int:
    return (size[0] + more) * (size[1] + more)


def _depth(taps: int, channels: int) -> int:
    """Return GEMM_K; few channels are padded to a multiple of 4, a row of taps to one of 16."""
    if channels >= NARROW:
        return taps**2 * channels
    row = taps * -(-channels // 4) * 4
    return taps * -(-row // NARROW) * NARROW
