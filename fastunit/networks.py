"""The 2018 release's networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.config import DiscriminatorConfig, GeneratorConfig
from fastunit.kernels import reparameterize
from fastunit.layers import Conv2dBlock, ResBlocks, UpsampleConv2dBlock, downsample
from fastunit.typed import build


class ContentEncoder(nn.Module):
    """Images [N, input_dim, H, W] to codes [N, output_dim, H / 2^n, W / 2^n], n downsamplings."""

    def __init__(
        self, n_downsample: int, n_res: int, input_dim: int, dim: int, activ: str, pad_type: str
    ) -> None:
        super().__init__()
        layers = [Conv2dBlock(input_dim, dim, 7, 1, 3, "in", activ, pad_type)]
        for _ in range(n_downsample):
            layers.append(Conv2dBlock(dim, 2 * dim, 4, 2, 1, "in", activ, pad_type))
            dim *= 2
        layers.append(ResBlocks(n_res, dim, "in", activ, pad_type))
        self.model = nn.Sequential(*layers)
        self.output_dim = dim

    @property
    def res_blocks(self) -> nn.Sequential:
        return self.model[-1].model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Decoder(nn.Module):
    """Codes [N, dim, P, Q] to images [N, output_dim, P * 2^n, Q * 2^n] in [-1, 1]."""

    def __init__(
        self, n_upsample: int, n_res: int, dim: int, output_dim: int, activ: str, pad_type: str
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [ResBlocks(n_res, dim, "in", activ, pad_type)]
        for _ in range(n_upsample):
            # The release has a parameterless upsampling module before each 5x5 block; ours
            # upsamples inside the block, so a placeholder keeps the state_dict keys.
            layers.append(nn.Identity())
            layers.append(UpsampleConv2dBlock(dim, dim // 2, 5, 2, "ln", activ, pad_type))
            dim //= 2
        layers.append(Conv2dBlock(dim, output_dim, 7, 1, 3, "none", "tanh", pad_type))
        self.model = nn.Sequential(*layers)

    @property
    def res_blocks(self) -> nn.Sequential:
        return self.model[0].model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class VAEGen(nn.Module):
    """One domain's encoder and decoder: a VAE whose posterior is N(hidden, I).

    Args:
        input_dim: channels of the images.
        params: the YAML's ``gen`` section (a mapping, or a GeneratorConfig): dim,
            n_downsample, n_res, activ, pad_type.

    Images are [N, input_dim, H, W] in [-1, 1], H and W multiples of 2^n_downsample; codes are
    [N, dim * 2^n_downsample, H / 2^n_downsample, W / 2^n_downsample]. Any floating dtype.

    Raises:
        ValueError: an option is unknown or out of range, or the image's channels or size do
            not fit; the message names it and the choices.
    """

    def __init__(self, input_dim: int, params: Mapping | GeneratorConfig) -> None:
        super().__init__()
        options = _section(GeneratorConfig, params, "gen")
        _positive("input_dim", input_dim)
        self.input_dim, self.multiple = input_dim, 2**options.n_downsample
        self.enc = ContentEncoder(
            options.n_downsample,
            options.n_res,
            input_dim,
            options.dim,
            options.activ,
            options.pad_type,
        )
        self.dec = Decoder(
            options.n_downsample,
            options.n_res,
            self.enc.output_dim,
            input_dim,
            options.activ,
            options.pad_type,
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code's mean and unit normals of its shape: z = hidden + noise."""
        hidden = self.code(images)
        return hidden, torch.randn_like(hidden)

    def code(self, images: Tensor) -> Tensor:
        """Return the code's mean alone, drawing no noise."""
        self.check(images)
        return self.enc(images)

    def check(self, images: Tensor) -> None:
        """Raise ValueError for images whose channels or size do not fit the encoder."""
        check_image(images, self.input_dim)
        height, width = images.shape[2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"an image of {height}x{width} cannot be halved {self.multiple.bit_length() - 1} "
                f"times; height and width must be multiples of {self.multiple}"
            )

    def decode(self, hidden: Tensor) -> Tensor:
        """Return images in [-1, 1] for codes."""
        return self.dec(hidden)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction (from a noisy code in training mode) and the code's mean."""
        hidden = self.code(images)
        z = reparameterize(hidden)[0] if self.training else hidden
        return self.decode(z), hidden


class MsImageDis(nn.Module):
    """Multi-scale patch discriminator: one convolutional net per image scale.

    Args:
        input_dim: channels of the images.
        params: the YAML's ``dis`` section (a mapping, or a DiscriminatorConfig): dim, norm,
            activ, n_layer, gan_type, num_scales, pad_type.

    `forward` takes images [N, input_dim, H, W] and returns one [N, 1, P, Q] tensor of logits
    (nsgan) or scores (lsgan) per scale, finest first.

    Raises:
        ValueError: an option is unknown or out of range, or the channels do not fit.
    """

    def __init__(self, input_dim: int, params: Mapping | DiscriminatorConfig) -> None:
        super().__init__()
        self.options = _section(DiscriminatorConfig, params, "dis")
        _positive("input_dim", input_dim)
        self.input_dim, self.gan_type = input_dim, self.options.gan_type
        self.cnns = nn.ModuleList(self._make_net() for _ in range(self.options.num_scales))

    def _make_net(self) -> nn.Sequential:
        dim, activ, pad_type = self.options.dim, self.options.activ, self.options.pad_type
        layers: list[nn.Module] = [
            Conv2dBlock(self.input_dim, dim, 4, 2, 1, "none", activ, pad_type)
        ]
        for _ in range(self.options.n_layer - 1):
            layers.append(Conv2dBlock(dim, 2 * dim, 4, 2, 1, self.options.norm, activ, pad_type))
            dim *= 2
        layers.append(nn.Conv2d(dim, 1, 1))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        check_image(x, self.input_dim)
        outputs = []
        for scale, net in enumerate(self.cnns):
            if scale:
                x = downsample(x)
            outputs.append(net(x))
        return outputs

    def calc_dis_loss(self, input_fake: Tensor, input_real: Tensor) -> Tensor:
        """Return the scalar loss that teaches this network fake from real (equation 2)."""
        if self.can_join(input_fake, input_real):
            return self.dis_loss(self(torch.cat([input_fake, input_real])), len(input_fake))
        fake, real = self(input_fake), self(input_real)
        return self._score(fake, 0.0) + self._score(real, 1.0)

    def can_join(self, input_fake: Tensor, input_real: Tensor) -> bool:
        """Return whether one pass over both images is the same as two, as the release takes.

        It is not with batch norm, whose statistics are of a batch.
        """
        return self.options.norm != "bn" and input_fake.shape[1:] == input_real.shape[1:]

    def calc_gen_loss(self, input_fake: Tensor) -> Tensor:
        """Return the scalar loss of a generator whose images should be taken for real."""
        return self.gen_loss(self(input_fake))

    def dis_loss(self, outputs: Sequence[Tensor], fakes: int) -> Tensor:
        """Return `calc_dis_loss` from the outputs for a batch that begins with the fakes."""
        fake, real = zip(*(output.tensor_split([fakes]) for output in outputs), strict=True)
        return self._score(fake, 0.0) + self._score(real, 1.0)

    def gen_loss(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return `calc_gen_loss` from the outputs."""
        return self._score(outputs, 1.0)

    def _score(self, outputs: Sequence[Tensor], target: float) -> Tensor:
        outputs = [widened(output) for output in outputs]
        if self.gan_type == "lsgan":
            return sum((output - target).square().mean() for output in outputs)
        return sum(
            F.binary_cross_entropy_with_logits(output, torch.full_like(output, target))
            for output in outputs
        )


def widened(x: Tensor) -> Tensor:
    """Return x in float32 or wider, in which losses are computed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_image(images: Tensor, channels: int) -> None:
    """Raise ValueError for anything but images [N, channels, H, W]."""
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(
            f"images must be [N, {channels}, H, W] for this network, not {tuple(images.shape)}"
        )


def _section(cls: type, params: Mapping, name: str) -> GeneratorConfig | DiscriminatorConfig:
    return build(cls, asdict(params) if isinstance(params, cls) else params, name)


def _positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
