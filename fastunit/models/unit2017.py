"""The generators of the UNIT paper's release (2017), with its names and state_dict keys.

One module holds both domains' encoders and decoders and the layers that they share. The
discriminators are in `fastunit.models.unit2017_discriminators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastunit.common.choices import LATENTS, Latent
from fastunit.config.schema2017 import ResGenOptions, read
from fastunit.kernels.common import checks
from fastunit.models.domain_pair import DomainPair
from fastunit.models.unit2017_discriminators import COCODis, COCOMsDis, COCOSharedDis
from fastunit.models.unit2017_layers import (
    BlockActivation,
    BlockNorm,
    ConvBlock,
    INSResBlock,
    ToImage,
    TwoDomainModule,
)
from fastunit.models.vae import VAE, sigma_layer

__all__ = ["COCODis", "COCOMsDis", "COCOResGen", "COCOResGen2", "COCOSharedDis"]


class COCOResGen(TwoDomainModule, DomainPair):
    """Both domains' generators; instance norm and ReLU in every layer but the first and last.

    Args:
        params: ch, input_dim_a, input_dim_b, n_enc_front_blk, n_enc_res_blk, n_enc_shared_blk,
            n_gen_shared_blk, n_gen_res_blk, n_gen_front_blk and optionally res_dropout_ratio;
            a mapping, or ResGenOptions, which documents them.
        latent: "unit", or "learned": the code's standard deviation is softplus of a 1x1
            convolution of its mean, the attribute `sigma`, shared by both domains.

    Images are [N, input_dim_a or input_dim_b, H, W] in [-1, 1], H and W multiples of
    2^(n_enc_front_blk - 1) = `multiple`; codes are [N, ch * multiple, H / multiple,
    W / multiple]. Any floating dtype. Weights have PyTorch's initial values; the paper's are
    N(0, 0.02) (`initialise`).

    Attributes:
        domains: the domains' generators, "a" and "b"; "a" consists of encode_A, enc_shared,
            dec_shared and decode_A, "b" likewise. The state_dict contains each module once.

    Raises:
        ValueError: a key is unknown, missing or has a wrong value, or images do not fit; the
            message names it and the choices.
    """

    # Norm and activation of the layers that halve or double the image size.
    NORM: BlockNorm = "in"
    ACT: BlockActivation = "relu"

    def __init__(self, params: Mapping[str, Any] | ResGenOptions, latent: Latent = "unit") -> None:
        super().__init__()
        checks.choice("latent", latent, LATENTS)
        self.options = options = read(ResGenOptions, params, "gen", type(self).__name__)
        self.multiple = options.multiple
        self.code_dim = options.ch * self.multiple
        self.encode_A = self._encoder(options.input_dim_a)
        self.encode_B = self._encoder(options.input_dim_b)
        self.enc_shared = self._res_blocks(options.n_enc_shared_blk)
        self.dec_shared = self._res_blocks(options.n_gen_shared_blk)
        self.decode_A = self._decoder(options.input_dim_a)
        self.decode_B = self._decoder(options.input_dim_b)
        self.sigma = sigma_layer(self.code_dim) if latent == "learned" else None

    def forward(
        self, x_a: Tensor, x_b: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return reconstructions, translations and codes: x_aa, x_ba, x_ab, x_bb, shared.

        Args:
            x_a: images of domain a.
            x_b: images of domain b, of the same H and W; N may differ.
            noise: unit normals of the shared code's shape, added to it in training mode; None
                draws them. Unused in evaluation mode.

        Returns:
            Images in [-1, 1]; x_ba is b translated to a. shared is the codes that were decoded:
                those of x_a, then those of x_b.

        Raises:
            ValueError: the images or the noise do not fit.
        """
        if x_a.shape[2:] != x_b.shape[2:]:
            raise ValueError(
                f"x_a of shape {tuple(x_a.shape)} and x_b of shape {tuple(x_b.shape)} have no "
                "code in common; give images of one size, or use encode and decode"
            )
        mu = torch.cat(self.encode(x_a, x_b))
        shared = self.sample(mu, noise)[0] if self.training else mu
        images = self.decode(shared, shared)
        (x_aa, x_ba), (x_ab, x_bb) = (x.split([len(x_a), len(x_b)]) for x in images)
        return x_aa, x_ba, x_ab, x_bb, shared

    def sample(self, mu: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z = mu + sd * noise and its divergence; see `fastunit.models.vae.sample`."""
        return self.domains["a"].sample(mu, noise)

    def code(self, images: Tensor, domain: str) -> Tensor:
        """Return the mean of the code of images of domain "a" or "b", without noise.

        Raises:
            ValueError: an unknown domain, or images that do not fit it.
        """
        checks.choice("domain", domain, self.domains)
        return self.domains[domain].code(images)

    @property
    def gen_a(self) -> VAE:
        return self.domains["a"]

    @property
    def gen_b(self) -> VAE:
        return self.domains["b"]

    def _make_domains(self) -> dict[str, VAE]:
        options = self.options
        return {
            "a": self._domain(self.encode_A, self.decode_A, options.input_dim_a),
            "b": self._domain(self.encode_B, self.decode_B, options.input_dim_b),
        }

    def _domain(self, encoder: nn.Module, decoder: nn.Module, channels: int) -> VAE:
        enc = nn.Sequential(encoder, self.enc_shared)
        dec = nn.Sequential(self.dec_shared, decoder)
        return VAE(enc, dec, input_dim=channels, multiple=self.multiple, sigma=self.sigma)

    def _encoder(self, channels: int) -> nn.Sequential:
        dim = self.options.ch
        layers: list[nn.Module] = [ConvBlock(nn.Conv2d(channels, dim, 7, 1, 3), "none", "lrelu")]
        for _ in range(self.options.n_enc_front_blk - 1):
            layers.append(ConvBlock(nn.Conv2d(dim, 2 * dim, 3, 2, 1), self.NORM, self.ACT))
            dim *= 2
        return nn.Sequential(*layers, *self._res_blocks(self.options.n_enc_res_blk))

    def _decoder(self, channels: int) -> nn.Sequential:
        layers, dim = [*self._res_blocks(self.options.n_gen_res_blk)], self.code_dim
        for _ in range(self.options.n_gen_front_blk - 1):
            conv = nn.ConvTranspose2d(dim, dim // 2, 3, 2, 1, output_padding=1)
            layers.append(ConvBlock(conv, self.NORM, self.ACT))
            dim //= 2
        return nn.Sequential(*layers, ToImage(dim, channels, 1))

    def _res_blocks(self, count: int) -> nn.Sequential:
        dropout = self.options.res_dropout_ratio
        return nn.Sequential(*(INSResBlock(self.code_dim, dropout) for _ in range(count)))


class COCOResGen2(COCOResGen):
    """`COCOResGen` with LeakyReLU and without norms outside the residual blocks.

    Args:
        params: as `COCOResGen`.
        latent: as `COCOResGen`.
    """

    NORM, ACT = "none", "lrelu"
