"""The generator of an image domain: UNIT's variational autoencoder, and sampling of its codes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.kernels import reparameterize


class Generator(nn.Module):
    """One domain's encoder, and its decoder `dec`.

    Attributes:
        input_dim: channels of the images.
        multiple: the number that height and width must be multiples of.
    """

    dec: nn.Module
    input_dim: int
    multiple: int

    @property
    def encoder(self) -> nn.Module:
        """The network from images to codes."""
        raise NotImplementedError

    def code(self, images: Tensor) -> Tensor:
        """Return the code [N, C, P, Q] of images [N, input_dim, H, W]; raises as `check`."""
        self.check(images)
        return self.encoder(images)

    def decode(self, hidden: Tensor) -> Tensor:
        """Return images [N, input_dim, H, W] in [-1, 1] for codes [N, C, P, Q]."""
        return self.dec(hidden)

    def check(self, images: Tensor) -> None:
        """Raise ValueError if the images' channels or size do not fit the encoder."""
        check_image(images, self.input_dim)
        height, width = images.shape[2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"an image of {height}x{width} cannot be halved {self.multiple.bit_length() - 1} "
                f"times; height and width must be multiples of {self.multiple}"
            )


class VAE(Generator):
    """One domain's encoder and decoder; the posterior is N(hidden, sigma^2).

    Args:
        enc: from images [N, input_dim, H, W] in [-1, 1] to the codes' means [N, C, P, Q].
        dec: from codes to images.
        input_dim: channels of the images.
        multiple: the number that height and width must be multiples of.
        sigma: the `sigma_layer` for a learned standard deviation; None: it is 1.
    """

    def __init__(
        self,
        enc: nn.Module,
        dec: nn.Module,
        *,
        input_dim: int,
        multiple: int,
        sigma: nn.Conv2d | None = None,
    ) -> None:
        super().__init__()
        self.enc, self.dec, self.sigma = enc, dec, sigma
        self.input_dim, self.multiple = input_dim, multiple

    @property
    def encoder(self) -> nn.Module:
        return self.enc

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images, as in the 2018 release.

        Args:
            images: [N, input_dim, H, W] in [-1, 1]. Where H and W are no multiples of `multiple`,
                decoding gives a smaller image.

        Returns:
            The code's mean, hidden, [N, C, P, Q], and noise of its shape with the code's standard
                deviation, for z = hidden + noise.

        Raises:
            ValueError: the images' channels do not fit.
        """
        check_image(images, self.input_dim)
        hidden = self.enc(images)
        noise = torch.randn_like(hidden)
        return hidden, noise if self.sigma is None else noise * F.softplus(self.sigma(hidden))

    def sample(self, hidden: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z = hidden + sigma * noise and the code's divergence from N(0, I).

        Args:
            hidden: the code's mean [N, C, P, Q].
            noise: standard normal noise of its shape; None draws it.

        Returns:
            z of hidden's shape and dtype, and a scalar; the equation is in
                `fastunit.models.vae.sample`.
        """
        return sample(hidden, self.sigma, noise)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction (from a noisy code in training mode) and the code's mean."""
        hidden = self.code(images)
        z = self.sample(hidden)[0] if self.training else hidden
        return self.decode(z), hidden


def sigma_layer(dim: int) -> nn.Conv2d:
    """Return a layer whose softplus is a learned standard deviation, initially close to 1."""
    layer = nn.Conv2d(dim, dim, 1)
    start_sigma(layer)
    return layer


def start_sigma(layer: nn.Conv2d) -> None:
    """Initialize a `sigma_layer`: weights N(0, 0.02), the bias such that its softplus is 1."""
    nn.init.normal_(layer.weight, 0.0, 0.02)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, math.log(math.e - 1))


def sample(
    mu: Tensor, sigma: nn.Conv2d | None, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sample z = mu + sd * noise and return it with its divergence from N(0, I), a scalar.

    Args:
        mu: the mean of a code [N, C, P, Q].
        sigma: the layer such that sd = softplus(sigma(mu)); None: sd is 1.
        noise: standard normal noise of mu's shape; None draws it.

    Returns:
        z of mu's shape and dtype, and the divergence, in float32 or wider.

    The divergence is mean(mu^2 + sd^2 - log(sd^2) - 1): the KL of equation 1 (Liu, Breuel and
    Kautz 2017) times 2 / (C P Q). For an sd of 1 that is the release's mean(mu^2), so the loss
    weights have the same meaning for both kinds of codes.
    """
    if sigma is None:
        return reparameterize(mu, noise=noise)
    raw = sigma(mu).to(mu.dtype)
    z, kl = reparameterize(mu, raw, sigma="softplus", noise=noise, kl="normal")
    return z, kl * (2 / mu.shape[1:].numel())


def check_image(images: Tensor, channels: int) -> None:
    """Raise ValueError unless images are [N, channels, H, W]."""
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(
            f"images must be [N, {channels}, H, W] for this network, not {tuple(images.shape)}"
        )
