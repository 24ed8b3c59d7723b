"""The 2018 release's networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import cast

from torch import nn

from fastunit.common.choices import LATENTS, Activation, Latent, Norm, PadType
from fastunit.config import DiscriminatorConfig, GeneratorConfig
from fastunit.config.fields import Options, build
from fastunit.kernels.common import checks
from fastunit.models.chain import Chain
from fastunit.models.discriminator import Discriminator
from fastunit.models.layers import Conv2dBlock, ResBlocks, UpsampleConv2dBlock
from fastunit.models.score import ScoreConv2d
from fastunit.models.vae import VAE, sigma_layer


class ContentEncoder(Chain):
    """Images [N, input_dim, H, W] to codes [N, output_dim, H / 2^n, W / 2^n], n downsamplings."""

    def __init__(
        self,
        n_downsample: int,
        n_res: int,
        input_dim: int,
        dim: int,
        activ: Activation,
        pad_type: PadType,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv2dBlock(input_dim, dim, 7, 1, 3, "in", activ, pad_type)]
        for _ in range(n_downsample):
            layers.append(Conv2dBlock(dim, 2 * dim, 4, 2, 1, "in", activ, pad_type))
            dim *= 2
        layers.append(ResBlocks(n_res, dim, "in", activ, pad_type))
        self.model = nn.Sequential(*layers)
        self.output_dim = dim

    @property
    def res_blocks(self) -> nn.Sequential:
        return cast(ResBlocks, self.model[-1]).model


class Decoder(Chain):
    """Codes [N, dim, P, Q] to images [N, output_dim, P * 2^n, Q * 2^n] in [-1, 1].

    `res_norm` is the norm of the residual blocks; MUNIT's is "adain".
    """

    def __init__(
        self,
        n_upsample: int,
        n_res: int,
        dim: int,
        output_dim: int,
        activ: Activation,
        pad_type: PadType,
        res_norm: Norm = "in",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [ResBlocks(n_res, dim, res_norm, activ, pad_type)]
        for _ in range(n_upsample):
            # The release has an upsampling module without parameters before each 5x5 block. Here
            # the block upsamples itself; a placeholder keeps the state_dict keys.
            layers.append(nn.Identity())
            layers.append(UpsampleConv2dBlock(dim, dim // 2, 5, 2, "ln", activ, pad_type))
            dim //= 2
        layers.append(Conv2dBlock(dim, output_dim, 7, 1, 3, "none", "tanh", pad_type))
        self.model = nn.Sequential(*layers)

    @property
    def res_blocks(self) -> nn.Sequential:
        return cast(ResBlocks, self.model[0]).model


class VAEGen(VAE):
    """One domain's encoder and decoder: a VAE whose posterior is N(hidden, sigma^2).

    Args:
        input_dim: channels of the images.
        params: the YAML's ``gen`` section (a mapping, or a GeneratorConfig): dim,
            n_downsample, n_res, activ, pad_type.
        latent: "unit", sigma is 1 as in the release, or "learned", sigma is softplus of a 1x1
            convolution of hidden, the attribute `sigma`.

    Images are [N, input_dim, H, W] in [-1, 1], H and W multiples of 2^n_downsample; codes are
    [N, dim * 2^n_downsample, H / 2^n_downsample, W / 2^n_downsample]. Any floating dtype.

    Raises:
        ValueError: an option is unknown or out of range, or the image's channels or size do
            not fit; the message names it and the choices.
    """

    enc: ContentEncoder
    dec: Decoder

    def __init__(
        self, input_dim: int, params: Mapping | GeneratorConfig, latent: Latent = "unit"
    ) -> None:
        options = section(GeneratorConfig, params, "gen")
        positive("input_dim", input_dim)
        checks.choice("latent", latent, LATENTS)
        count, blocks = options.n_downsample, options.n_res
        style = options.activ, options.pad_type
        enc = ContentEncoder(count, blocks, input_dim, options.dim, *style)
        dec = Decoder(count, blocks, enc.output_dim, input_dim, *style)
        sigma = sigma_layer(enc.output_dim) if latent == "learned" else None
        super().__init__(enc, dec, input_dim=input_dim, multiple=2**count, sigma=sigma)


class MsImageDis(Discriminator):
    """Multi-scale patch discriminator: one convolutional network per image scale.

    Args:
        input_dim: channels of the images.
        params: the YAML's ``dis`` section (a mapping, or a DiscriminatorConfig): dim, norm,
            activ, n_layer, gan_type, num_scales, pad_type.

    `forward` takes images [N, input_dim, H, W] in [-1, 1], of any floating dtype and memory
    format, and returns one [N, 1, P, Q] tensor of logits (nsgan) or scores (lsgan) per scale,
    finest first.

    Raises:
        ValueError: an option is unknown or out of range, or the channels do not fit.
    """

    def __init__(self, input_dim: int, params: Mapping | DiscriminatorConfig) -> None:
        options = section(DiscriminatorConfig, params, "dis")
        positive("input_dim", input_dim)
        super().__init__(
            [_patch_net(input_dim, options) for _ in range(options.num_scales)],
            input_dim=input_dim,
            gan_type=options.gan_type,
            mixes_samples=options.norm == "bn",
        )


def _patch_net(input_dim: int, options: DiscriminatorConfig) -> nn.Sequential:
    dim, activ, pad_type = options.dim, options.activ, options.pad_type
    layers: list[nn.Module] = [Conv2dBlock(input_dim, dim, 4, 2, 1, "none", activ, pad_type)]
    for _ in range(options.n_layer - 1):
        layers.append(Conv2dBlock(dim, 2 * dim, 4, 2, 1, options.norm, activ, pad_type))
        dim *= 2
    layers.append(ScoreConv2d(dim))
    return nn.Sequential(*layers)


def section(cls: type[Options], params: Mapping | Options, name: str) -> Options:
    """Return a section's options from a mapping or from such options, checked."""
    return build(cls, asdict(params) if isinstance(params, cls) else params, name)


def positive(name: str, value: int) -> None:
    """Raise ValueError unless a value is a whole number above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
