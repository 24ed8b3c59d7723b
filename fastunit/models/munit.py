"""MUNIT's networks (Huang, Liu, Belongie and Kautz 2018) under its release's state_dict keys.

An image is a content code, which the domains share, and a style code of its domain. The decoder's
residual blocks have AdaIN, whose scale and shift a small network makes from the style code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from fastunit.common.choices import Activation, Norm, PadType
from fastunit.config import MunitGeneratorConfig
from fastunit.models.chain import Chain
from fastunit.models.layers import Conv2dBlock, LinearBlock
from fastunit.models.norms import AdaptiveInstanceNorm2d
from fastunit.models.unit2018 import ContentEncoder, Decoder, positive, section
from fastunit.models.vae import Generator, check_image

STYLE_DOWNSAMPLINGS = 4
SMALLEST = 2**STYLE_DOWNSAMPLINGS  # pixels a side of images that have a style code
_MLP_LAYERS = 3


class StyleEncoder(Chain):
    """Images [N, input_dim, H, W] to style codes [N, style_dim, 1, 1].

    Args:
        n_downsample: 4x4 convolutions of stride 2; the first two double the channels.
        input_dim: channels of the images.
        dim: channels of the first layer.
        style_dim: values of a code.
        norm: of all blocks.
        activ: of all blocks.
        pad_type: of all blocks.
    """

    def __init__(
        self,
        n_downsample: int,
        input_dim: int,
        dim: int,
        style_dim: int,
        norm: Norm,
        activ: Activation,
        pad_type: PadType,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv2dBlock(input_dim, dim, 7, 1, 3, norm, activ, pad_type)]
        for index in range(n_downsample):
            wider = 2 * dim if index < 2 else dim
            layers.append(Conv2dBlock(dim, wider, 4, 2, 1, norm, activ, pad_type))
            dim = wider
        pool, head = nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, style_dim, 1)
        self.model = nn.Sequential(*layers, pool, head)
        self.output_dim = dim


class MLP(nn.Module):
    """Linear blocks on features, flattened to [N, input_dim].

    Args:
        input_dim: features in.
        output_dim: features out.
        dim: features between.
        n_blk: linear layers.
        norm: of all blocks but the last.
        activ: of all blocks but the last.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        dim: int,
        n_blk: int,
        norm: Norm = "none",
        activ: Activation = "relu",
    ) -> None:
        super().__init__()
        middle = [LinearBlock(dim, dim, norm, activ) for _ in range(n_blk - 2)]
        last = LinearBlock(dim, output_dim, "none", "none")
        self.model = nn.Sequential(LinearBlock(input_dim, dim, norm, activ), *middle, last)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.flatten(1))


class AdaINGen(Generator):
    """One domain's generator: encoders of content and style, and a decoder with AdaIN.

    Args:
        input_dim: channels of the images.
        params: the YAML's ``gen`` section (a mapping, or a MunitGeneratorConfig): dim, style_dim,
            n_downsample, n_res, activ, pad_type, mlp_dim.

    Images are [N, input_dim, H, W] in [-1, 1], H and W at least 16; content codes are
    [N, dim * 2^n_downsample, H / 2^n_downsample, W / 2^n_downsample], style codes
    [N, style_dim, 1, 1]. Any floating dtype.

    Raises:
        ValueError: an option is unknown or out of range, or the image's channels or size do not
            fit; the message names it and the choices.
    """

    enc_content: ContentEncoder
    dec: Decoder

    def __init__(self, input_dim: int, params: Mapping | MunitGeneratorConfig) -> None:
        super().__init__()
        options = section(MunitGeneratorConfig, params, "gen")
        positive("input_dim", input_dim)
        count, blocks, dim = options.n_downsample, options.n_res, options.dim
        self.input_dim, self.style_dim, self.multiple = input_dim, options.style_dim, 2**count
        how = options.activ, options.pad_type
        self.enc_style = StyleEncoder(
            STYLE_DOWNSAMPLINGS, input_dim, dim, options.style_dim, "none", *how
        )
        self.enc_content = ContentEncoder(count, blocks, input_dim, dim, *how)
        self.dec = Decoder(count, blocks, self.enc_content.output_dim, input_dim, *how, "adain")
        width = sum(2 * norm.num_features for norm in self._norms())
        self.mlp = MLP(
            options.style_dim, width, options.mlp_dim, _MLP_LAYERS, "none", options.activ
        )

    @property
    def encoder(self) -> nn.Module:
        return self.enc_content

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return content and style codes of images.

        Raises:
            ValueError: the images' channels do not fit, or they are smaller than 16 pixels.
        """
        check_image(images, self.input_dim)
        return self.enc_content(images), self.style(images)

    def style(self, images: Tensor) -> Tensor:
        """Return the style codes [N, style_dim, 1, 1] of images; raises as `encode`."""
        check_image(images, self.input_dim)
        if min(images.shape[2:]) < SMALLEST:
            height, width = images.shape[2:]
            raise ValueError(
                f"an image of {height}x{width} pixels is too small for a style code; it must have "
                f"{SMALLEST} a side"
            )
        return self.enc_style(images)

    def decode(self, hidden: Tensor, style: Tensor | None = None) -> Tensor:
        """Return images [N, input_dim, H, W] in [-1, 1] of content and style codes.

        Args:
            hidden: content codes [N, C, P, Q].
            style: style codes [N, style_dim], with dimensions of size 1 after it or not; one code,
                [1, style_dim], is that of all images. None: 0, the mean of the styles' prior.

        Raises:
            ValueError: the style codes do not fit.
        """
        with self.styled(hidden, style):
            return self.dec(hidden)

    @contextmanager
    def styled(self, hidden: Tensor, style: Tensor | None) -> Iterator[None]:
        """Set the decoder to styles inside the block; arguments and errors as `decode`'s."""
        if style is None:  # whatever the number of images, which an exported graph leaves open
            style = hidden.new_zeros(1, self.style_dim)
        else:
            self._check_style(style, len(hidden))
        parameters, norms = self.mlp(style), self._norms()
        sizes = [norm.num_features for norm in norms for _ in range(2)]
        parts = iter(parameters.split(sizes, 1))
        try:
            for norm in norms:
                norm.bias, norm.weight = next(parts), next(parts)
            yield
        finally:
            for norm in norms:  # they belong to a graph, and to these images
                norm.bias = norm.weight = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the reconstruction of images; raises as `encode`."""
        self.check(images)
        return self.decode(*self.encode(images))

    def _check_style(self, style: Tensor, count: int) -> None:
        fits = style.dim() in (2, 4) and style.numel() == len(style) * self.style_dim
        if not fits or len(style) not in (1, count):
            raise ValueError(
                f"style codes of shape {tuple(style.shape)} do not fit; {count} images take "
                f"[{count}, {self.style_dim}] or [1, {self.style_dim}]"
            )

    def _norms(self) -> list[AdaptiveInstanceNorm2d]:
        return [each for each in self.dec.modules() if isinstance(each, AdaptiveInstanceNorm2d)]
