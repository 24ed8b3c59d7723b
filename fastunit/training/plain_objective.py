"""The release's objective by single calls of the networks' methods, which may be replaced.

`objective` computes the same faster for unmodified networks. Here networks only need the release's
methods `encode`, `decode`, `calc_dis_loss` and `calc_gen_loss`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastunit.config import Config
from fastunit.training.objective import (
    DISCRIMINATOR_NOISE,
    GENERATOR_NOISE,
    Batch,
    Losses,
    checked,
    weighted,
)


def discriminator_losses(trainer: Any, batch: Batch, config: Config) -> Losses:
    """Return the discriminators' losses; arguments as in `objective.discriminator_losses`.

    `trainer` has gen_a, gen_b, dis_a and dis_b. Noise that is not given is what `encode` returns.
    """
    (x_a, x_b, _), noise = batch, checked(batch.noise, DISCRIMINATOR_NOISE)
    h_a, n_a = _encoded(trainer.gen_a, x_a, noise["a"])
    h_b, n_b = _encoded(trainer.gen_b, x_b, noise["b"])
    x_ba = trainer.gen_a.decode(h_b + n_b).detach()
    x_ab = trainer.gen_b.decode(h_a + n_a).detach()
    loss_a = trainer.dis_a.calc_dis_loss(x_ba, x_a)
    loss_b = trainer.dis_b.calc_dis_loss(x_ab, x_b)
    total = config.gan_w * (loss_a + loss_b)
    return {"discriminator_a": loss_a, "discriminator_b": loss_b, "discriminator_total": total}


def generator_losses(trainer: Any, batch: Batch, config: Config) -> Losses:
    """Return the generators' losses; arguments as in `objective.generator_losses`.

    `trainer` is a `compat.UNIT_Trainer`.
    """
    (x_a, x_b, _), noise = batch, checked(batch.noise, GENERATOR_NOISE)
    gen_a, gen_b = trainer.gen_a, trainer.gen_b
    # The latter by the release's private name, which a subclass of the same name may override.
    difference, divergence = trainer.recon_criterion, trainer._UNIT_Trainer__compute_kl
    h_a, n_a = _encoded(gen_a, x_a, noise["a"])
    h_b, n_b = _encoded(gen_b, x_b, noise["b"])
    x_aa, x_bb = gen_a.decode(h_a + n_a), gen_b.decode(h_b + n_b)
    x_ba, x_ab = gen_a.decode(h_b + n_b), gen_b.decode(h_a + n_a)
    losses = {"reconstruction_a": difference(x_aa, x_a), "reconstruction_b": difference(x_bb, x_b)}
    losses["kl_a"], losses["kl_b"] = divergence(h_a), divergence(h_b)
    if config.recon_x_cyc_w > 0:
        h_ba, n_ba = _encoded(gen_a, x_ba, noise["ba"])
        h_ab, n_ab = _encoded(gen_b, x_ab, noise["ab"])
        x_aba, x_bab = gen_a.decode(h_ab + n_ab), gen_b.decode(h_ba + n_ba)
        losses["cycle_a"], losses["cycle_b"] = difference(x_aba, x_a), difference(x_bab, x_b)
        losses["cycle_kl_a"], losses["cycle_kl_b"] = divergence(h_ab), divergence(h_ba)
    if config.identity_w > 0:  # without noise, as in `objective`
        x_a_again = gen_a.decode(gen_b.encode(x_a)[0])
        x_b_again = gen_b.decode(gen_a.encode(x_b)[0])
        losses["identity_a"] = difference(x_a_again, x_a)
        losses["identity_b"] = difference(x_b_again, x_b)
    losses["adversarial_a"] = trainer.dis_a.calc_gen_loss(x_ba)
    losses["adversarial_b"] = trainer.dis_b.calc_gen_loss(x_ab)
    if config.vgg_w > 0:
        losses["perceptual_a"] = trainer.compute_vgg_loss(trainer.vgg, x_ba, x_b)
        losses["perceptual_b"] = trainer.compute_vgg_loss(trainer.vgg, x_ab, x_a)
    return losses | {"generator_total": weighted(losses, config)}


def _encoded(generator: Any, images: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    hidden, drawn = generator.encode(images)
    return hidden, drawn if noise is None else noise
