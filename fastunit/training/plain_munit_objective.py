"""MUNIT's objective by single calls of the networks' methods, which may be replaced.

`munit_objective` computes the same faster for unmodified networks. Here networks only need the
release's methods `encode`, `decode`, `calc_dis_loss` and `calc_gen_loss`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastunit.config import MunitConfig
from fastunit.training.munit_objective import drawn_styles
from fastunit.training.objective import Batch, Losses, weighted


def discriminator_losses(trainer: Any, batch: Batch, config: MunitConfig) -> Losses:
    """Return the discriminators' losses; arguments as in `munit_objective.discriminator_losses`.

    `trainer` has gen_a, gen_b, dis_a and dis_b.
    """
    x_a, x_b, _ = batch
    s_a, s_b = _styles(batch, config)
    c_a, c_b = trainer.gen_a.encode(x_a)[0], trainer.gen_b.encode(x_b)[0]
    x_ba = trainer.gen_a.decode(c_b, s_a).detach()
    x_ab = trainer.gen_b.decode(c_a, s_b).detach()
    loss_a = trainer.dis_a.calc_dis_loss(x_ba, x_a)
    loss_b = trainer.dis_b.calc_dis_loss(x_ab, x_b)
    total = config.gan_w * (loss_a + loss_b)
    return {"discriminator_a": loss_a, "discriminator_b": loss_b, "discriminator_total": total}


def generator_losses(trainer: Any, batch: Batch, config: MunitConfig) -> Losses:
    """Return the generators' losses; arguments as in `munit_objective.generator_losses`.

    `trainer` is a `compat.trainer.MUNIT_Trainer`.
    """
    x_a, x_b, _ = batch
    gen_a, gen_b, difference = trainer.gen_a, trainer.gen_b, trainer.recon_criterion
    s_a, s_b = _styles(batch, config)
    (c_a, own_a), (c_b, own_b) = gen_a.encode(x_a), gen_b.encode(x_b)
    x_aa, x_bb = gen_a.decode(c_a, own_a), gen_b.decode(c_b, own_b)
    x_ba, x_ab = gen_a.decode(c_b, s_a), gen_b.decode(c_a, s_b)
    losses = {"reconstruction_a": difference(x_aa, x_a), "reconstruction_b": difference(x_bb, x_b)}
    if config.recon_s_w > 0 or config.recon_c_w > 0 or config.recon_x_cyc_w > 0:
        (found_b, style_a), (found_a, style_b) = gen_a.encode(x_ba), gen_b.encode(x_ab)
        if config.recon_s_w > 0:
            losses["style_a"], losses["style_b"] = (
                difference(style_a, s_a),
                difference(style_b, s_b),
            )
        if config.recon_c_w > 0:
            losses["content_a"] = difference(found_a, c_a)
            losses["content_b"] = difference(found_b, c_b)
        if config.recon_x_cyc_w > 0:
            losses["cycle_a"] = difference(gen_a.decode(found_a, own_a), x_a)
            losses["cycle_b"] = difference(gen_b.decode(found_b, own_b), x_b)
    losses["adversarial_a"] = trainer.dis_a.calc_gen_loss(x_ba)
    losses["adversarial_b"] = trainer.dis_b.calc_gen_loss(x_ab)
    if config.vgg_w > 0:
        losses["perceptual_a"] = trainer.compute_vgg_loss(trainer.vgg, x_ba, x_b)
        losses["perceptual_b"] = trainer.compute_vgg_loss(trainer.vgg, x_ab, x_a)
    return losses | {"generator_total": weighted(losses, config)}


def _styles(batch: Batch, config: MunitConfig) -> tuple[Tensor, Tensor]:
    """Return the styles of both translations as the release's decoders take them."""
    s_a, s_b = drawn_styles(batch, config.gen.style_dim)
    return s_a[..., None, None], s_b[..., None, None]
