"""The 2018 release's `UNIT_Trainer`, for code that was written for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastunit.compat.hyperparameters import ATTRIBUTES, WEIGHTS, configuration
from fastunit.compat.release_trainer import ReleaseTrainer
from fastunit.models.discriminator import widened
from fastunit.models.vae import VAE
from fastunit.training import plain_objective


class UNIT_Trainer(ReleaseTrainer):
    """Networks, optimizers and schedules under the release's names.

    Images are [N, C, H, W] in [-1, 1], of the networks' dtype and device. Works on any device and
    in float32 or float64: use ``.to(...)`` or ``.cuda()``. Computes in PyTorch's current precision
    (autocast, tf32) unless the mapping has `precision`.

    Args:
        hyperparameters: the mapping of a release YAML file. Keys unknown to both the release and
            fastunit are ignored with a warning.

    All attributes below may be assigned. After an update its losses are attributes too, under the
    names in `ATTRIBUTES`: detached scalars, 0 for terms that are off.

    Attributes:
        gen_a: generator of domain a.
        gen_b: generator of domain b.
        dis_a: discriminator of domain a.
        dis_b: discriminator of domain b.
        gen_opt: optimizer of the generators.
        dis_opt: optimizer of the discriminators.
        gen_scheduler: learning-rate schedule of gen_opt; None: constant.
        dis_scheduler: schedule of dis_opt's rate, likewise.
        vgg: the perceptual term; None if vgg_w is 0.
        instancenorm: normalizes its features.

    While everything is unmodified, the updates use grouped execution. Once a method of this class
    or of a network, a network, a layer or vgg is replaced, or has a hook, the updates call
    `encode`, `decode`, `calc_dis_loss`, `calc_gen_loss`, `recon_criterion` and `compute_vgg_loss`
    one after the other, as the release does: slower, and equal up to rounding if the methods
    compute the same. Noise is then what `encode` returns. `latent: learned`, which the release does
    not have, cannot be combined with that.

    Raises:
        ValueError: a value is wrong, or `network` is not the release's; from an update: something
            is replaced while latents are learned.
    """

    gen_a: VAE
    gen_b: VAE
    KINDS, WEIGHTS, PLAIN = ATTRIBUTES, WEIGHTS, plain_objective

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        super().__init__(configuration(hyperparameters, "release"))

    def forward(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the translations x_ab and x_ba without noise.

        Args:
            x_a: images of domain a, of any size while nothing is replaced; otherwise with sides
                that are multiples of the downsampling.
            x_b: images of domain b, likewise.
        """
        with self._evaluating():
            if self._built.changes(self._networks()):
                h_a, h_b = self.gen_a.encode(x_a)[0], self.gen_b.encode(x_b)[0]
                x_ba, x_ab = self.gen_a.decode(h_b), self.gen_b.decode(h_a)
            else:  # images of any size
                unit = self._unit()
                x_ab, x_ba = unit.translate(x_a, "a2b"), unit.translate(x_b, "b2a")
        return x_ab, x_ba

    @torch.no_grad()
    def sample(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, ...]:
        """Return x_a, its reconstruction, x_ab, x_b, its reconstruction, x_ba, without noise.

        Args:
            x_a: images of domain a; sides are multiples of the downsampling.
            x_b: images of domain b, likewise.
        """
        with self._evaluating():
            h_a, h_b = self.gen_a.encode(x_a)[0], self.gen_b.encode(x_b)[0]
            outputs = (
                x_a,
                self.gen_a.decode(h_a),
                self.gen_b.decode(h_a),
                x_b,
                self.gen_b.decode(h_b),
                self.gen_a.decode(h_b),
            )
        return outputs

    def __compute_kl(self, mu: Tensor) -> Tensor:
        """Return a code's divergence from N(0, I) for a standard deviation of 1: mean(mu^2)."""
        return widened(mu).square().mean()


UNIT_Trainer.METHODS = {
    name: getattr(UNIT_Trainer, name)
    for name in ("recon_criterion", "compute_vgg_loss", "_UNIT_Trainer__compute_kl")
}
