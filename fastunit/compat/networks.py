"""The names of the release's `networks`, UNIT's and MUNIT's.

Encoder and decoder have the release's signatures, with a norm; those of `fastunit.models` have
what the networks need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.common.choices import Activation, Norm, PadType
from fastunit.models import munit, norms, unit2018
from fastunit.models.layers import (
    Conv2dBlock,
    LayerNorm,
    LinearBlock,
    ResBlock,
    ResBlocks,
    UpsampleConv2dBlock,
)
from fastunit.models.perceptual import BLOCKS, POOLED_BLOCKS

MsImageDis, VAEGen = unit2018.MsImageDis, unit2018.VAEGen
AdaINGen, StyleEncoder, MLP = munit.AdaINGen, munit.StyleEncoder, munit.MLP
AdaptiveInstanceNorm2d, SpectralNorm = norms.AdaptiveInstanceNorm2d, norms.SpectralNorm
__all__ = [
    "MLP",
    "AdaINGen",
    "AdaptiveInstanceNorm2d",
    "ContentEncoder",
    "Conv2dBlock",
    "Decoder",
    "LayerNorm",
    "LinearBlock",
    "MsImageDis",
    "ResBlock",
    "ResBlocks",
    "SpectralNorm",
    "StyleEncoder",
    "VAEGen",
    "Vgg16",
]


class _Sequence(nn.Module):
    """A module whose layers are in `model`, as the release has them."""

    def __init__(self, *layers: nn.Module, output_dim: int) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)
        self.output_dim = output_dim

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class ContentEncoder(_Sequence):
    """Images [N, input_dim, H, W] to codes [N, output_dim, H / 2^n, W / 2^n], n downsamplings.

    Args:
        n_downsample: 4x4 convolutions of stride 2.
        n_res: residual blocks.
        input_dim: channels of the images.
        dim: channels of the first layer.
        norm: of all blocks, as in `Conv2dBlock`.
        activ: of all blocks.
        pad_type: of all blocks.
    """

    def __init__(
        self,
        n_downsample: int,
        n_res: int,
        input_dim: int,
        dim: int,
        norm: Norm,
        activ: Activation,
        pad_type: PadType,
    ) -> None:
        layers: list[nn.Module] = [Conv2dBlock(input_dim, dim, 7, 1, 3, norm, activ, pad_type)]
        for _ in range(n_downsample):
            layers.append(Conv2dBlock(dim, 2 * dim, 4, 2, 1, norm, activ, pad_type))
            dim *= 2
        super().__init__(*layers, ResBlocks(n_res, dim, norm, activ, pad_type), output_dim=dim)


class Decoder(_Sequence):
    """Codes [N, dim, P, Q] to images [N, output_dim, P * 2^n, Q * 2^n] in [-1, 1].

    Args:
        n_upsample: nearest 2x upsamplings, each before a 5x5 convolution with layer norm.
        n_res: residual blocks.
        dim: channels of the codes.
        output_dim: channels of the images.
        res_norm: of the residual blocks, as in `Conv2dBlock`.
        activ: of all blocks but the last.
        pad_type: of all blocks.
    """

    def __init__(
        self,
        n_upsample: int,
        n_res: int,
        dim: int,
        output_dim: int,
        res_norm: Norm = "in",
        activ: Activation = "relu",
        pad_type: PadType = "zero",
    ) -> None:
        layers: list[nn.Module] = [ResBlocks(n_res, dim, res_norm, activ, pad_type)]
        for _ in range(n_upsample):
            # The block upsamples itself; the placeholder keeps the release's state_dict keys.
            block = UpsampleConv2dBlock(dim, dim // 2, 5, 2, "ln", activ, pad_type)
            layers += [nn.Identity(), block]
            dim //= 2
        last = Conv2dBlock(dim, output_dim, 7, 1, 3, "none", "tanh", pad_type)
        super().__init__(*layers, last, output_dim=output_dim)


class Vgg16(nn.Module):
    """VGG16 (Simonyan and Zisserman 2015) up to relu5_3, under the release's parameter names.

    Takes BGR images [N, 3, H, W] of 0..255 minus the mean; returns features [N, 512, H/8, W/8]: as
    in the release, nothing is pooled before the last block.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for block, widths in enumerate(BLOCKS, start=1):
            for index, width in enumerate(widths, start=1):
                self.add_module(f"conv{block}_{index}", nn.Conv2d(channels, width, 3, padding=1))
                channels = width

    def forward(self, X: Tensor) -> Tensor:
        for block, widths in enumerate(BLOCKS, start=1):
            if 1 < block <= POOLED_BLOCKS + 1:
                X = F.max_pool2d(X, 2)
            for index in range(1, len(widths) + 1):
                convolve = cast(Callable[[Tensor], Tensor], getattr(self, f"conv{block}_{index}"))
                X = F.relu(convolve(X))
        return X
