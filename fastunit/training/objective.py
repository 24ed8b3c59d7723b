"""UNIT's objective (Liu, Breuel and Kautz 2017, equations 1 to 3) as named losses.

`LOSSES` documents the names. All losses are scalars; the `total` entries are differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fastunit.config import Config
from fastunit.models.discriminator import total, widened
from fastunit.models.domain_pair import TrainablePair
from fastunit.models.perceptual import Perceptual

Losses = dict[str, Tensor]
Noise = Mapping[str, Tensor | None]  # None: drawn

LOSSES = {
    "discriminator_a": "equation 2, discriminator of a: real a against b translated to a",
    "discriminator_b": "equation 2, discriminator of b: real b against a translated to b",
    "discriminator_total": "weighted sum, minimized by the discriminators",
    "adversarial_a": "equation 2, generator: b translated to a should be taken for a real a",
    "adversarial_b": "equation 2, generator: a translated to b should be taken for a real b",
    "reconstruction_a": "equation 1: mean absolute difference of a and its reconstruction",
    "reconstruction_b": "equation 1: mean absolute difference of b and its reconstruction",
    "kl_a": "equation 1: mean(mu^2) of a's code; see vae.sample for learned variance",
    "kl_b": "equation 1: mean(mu^2) of b's code; likewise",
    "cycle_a": "equation 3: mean absolute difference of a and a -> b -> a",
    "cycle_b": "equation 3: mean absolute difference of b and b -> a -> b",
    "cycle_kl_a": "equation 3: as kl_b, of a translated to b",
    "cycle_kl_b": "equation 3: as kl_a, of b translated to a",
    "identity_a": "mean absolute difference of a and a translated from b to a",
    "identity_b": "mean absolute difference of b and b translated from a to b",
    "perceptual_a": "VGG16 feature distance of b translated to a from b",
    "perceptual_b": "VGG16 feature distance of a translated to b from a",
    "generator_total": "weighted sum, minimized by the generators",
}
DISCRIMINATOR_NOISE = ("a", "b")
GENERATOR_NOISE = ("a", "b", "ba", "ab")


class Decoded(NamedTuple):
    """Both codes decoded by both generators; `x_ba` is b translated to a."""

    x_aa: Tensor
    x_ba: Tensor
    x_ab: Tensor
    x_bb: Tensor
    kl_a: Tensor
    kl_b: Tensor


def decode_both(
    unit: TrainablePair, x_a: Tensor, x_b: Tensor, noise: Noise | None = None
) -> Decoded:
    """Encode both images and decode both codes with each generator.

    Args:
        unit: the networks of both domains.
        x_a: images of domain a, [N, C, H, W] in [-1, 1].
        x_b: images of domain b; N, C, H and W may differ from x_a's.
        noise: standard normal noise of the codes' shapes, keys "a" and "b"; None draws it.

    Returns:
        Images in [-1, 1] and the codes' divergences, scalars, all with their graph.

    Raises:
        ValueError: a key of noise is missing.
    """
    noise = checked(noise, DISCRIMINATOR_NOISE)
    mu_a, mu_b = unit.encode(x_a, x_b)
    z_a, kl_a = unit.gen_a.sample(mu_a, noise["a"])
    z_b, kl_b = unit.gen_b.sample(mu_b, noise["b"])
    if z_a.shape[1:] != z_b.shape[1:]:
        x_aa, x_bb = unit.decode(z_a, z_b)
        x_ba, x_ab = unit.decode(z_b, z_a)
    else:  # no layer mixes samples
        z = torch.cat([z_a, z_b])
        (x_aa, x_ba), (x_ab, x_bb) = (x.split([len(z_a), len(z_b)]) for x in unit.decode(z, z))
    return Decoded(x_aa, x_ba, x_ab, x_bb, kl_a, kl_b)


def discriminator_losses(
    unit: TrainablePair,
    x_a: Tensor,
    x_b: Tensor,
    config: Config,
    noise: Noise | None = None,
    decoded: Decoded | None = None,
) -> Losses:
    """Return the discriminators' losses; the generators receive no gradient.

    Args:
        unit: the networks of both domains.
        x_a: images of domain a, [N, C, H, W] in [-1, 1].
        x_b: images of domain b; N, C, H and W may differ from x_a's.
        config: its gan_w is the weight of both losses.
        noise: standard normal noise of the codes' shapes, keys "a" and "b"; None draws it.
        decoded: translations computed before; noise is then unused.

    Returns:
        discriminator_a, discriminator_b (equation 2) and discriminator_total, scalars in float32
            or wider.

    Raises:
        ValueError: a key of noise is missing.
    """
    if decoded is None:
        noise = checked(noise, DISCRIMINATOR_NOISE)
        with torch.no_grad():
            mu_a, mu_b = unit.encode(x_a, x_b)
            z_a, _ = unit.gen_a.sample(mu_a, noise["a"])
            z_b, _ = unit.gen_b.sample(mu_b, noise["b"])
            x_ba, x_ab = unit.decode(z_b, z_a)
    else:
        x_ba, x_ab = decoded.x_ba.detach(), decoded.x_ab.detach()
    losses = _discriminated(unit, x_ba, x_a, x_ab, x_b)
    both = losses["discriminator_a"] + losses["discriminator_b"]
    return losses | {"discriminator_total": config.gan_w * both}


def generator_losses(
    unit: TrainablePair,
    x_a: Tensor,
    x_b: Tensor,
    config: Config,
    noise: Noise | None = None,
    perceptual: Perceptual | None = None,
    decoded: Decoded | None = None,
) -> Losses:
    """Return the generators' losses (equations 1 to 3, and the terms that the release adds).

    Args:
        unit: the networks of both domains.
        x_a: images of domain a, [N, C, H, W] in [-1, 1].
        x_b: images of domain b; N, C, H and W may differ from x_a's.
        config: the losses' weights.
        noise: standard normal noise of the codes' shapes, keys "a", "b" (codes of the images),
            "ba", "ab" (codes of the translations); None draws it.
        perceptual: the VGG16 term; required if config.vgg_w is above 0.
        decoded: the result of `decode_both`, with its graph; noise "a" and "b" are then unused.

    With config.recon_x_cyc_w 0 there is no cycle, nor the KL of its codes. With config.identity_w
    above 0 the identity term of CycleGAN (Zhu et al. 2017, section 5.2) is added: images should
    not change when they are translated to their own domain. Its codes have no noise, as in
    translation.

    Returns:
        The losses of `LOSSES` with a weight above 0, and generator_total, scalars in float32 or
            wider. Gradients also reach the discriminators unless they are frozen.

    Raises:
        ValueError: a key of noise is missing, or `perceptual` is required but None.
    """
    noise = checked(noise, GENERATOR_NOISE)
    if config.vgg_w > 0 and perceptual is None:
        raise ValueError(f"vgg_w={config.vgg_w} needs the perceptual term, which is not loaded")
    if decoded is None:
        decoded = decode_both(unit, x_a, x_b, noise)
    x_aa, x_ba, x_ab, x_bb, kl_a, kl_b = decoded
    outputs_a, outputs_b = unit.discriminate(x_ba, x_ab)
    losses = {
        "adversarial_a": unit.dis_a.gen_loss(outputs_a),
        "adversarial_b": unit.dis_b.gen_loss(outputs_b),
        "reconstruction_a": _l1(x_aa, x_a),
        "reconstruction_b": _l1(x_bb, x_b),
        "kl_a": kl_a,
        "kl_b": kl_b,
    }
    if config.recon_x_cyc_w > 0:
        mu_ba, mu_ab = unit.encode(x_ba, x_ab)
        z_ba, kl_ba = unit.gen_a.sample(mu_ba, noise["ba"])
        z_ab, kl_ab = unit.gen_b.sample(mu_ab, noise["ab"])
        x_aba, x_bab = unit.decode(z_ab, z_ba)
        losses["cycle_a"], losses["cycle_b"] = _l1(x_aba, x_a), _l1(x_bab, x_b)
        losses["cycle_kl_a"], losses["cycle_kl_b"] = kl_ab, kl_ba
    if config.identity_w > 0:
        for_b, for_a = unit.encode(x_b, x_a)  # gen_a encodes b, gen_b encodes a
        x_a_again, x_b_again = unit.decode(for_a, for_b)
        losses["identity_a"], losses["identity_b"] = _l1(x_a_again, x_a), _l1(x_b_again, x_b)
    if config.vgg_w > 0:
        assert perceptual is not None
        distances = perceptual.pair((x_ba, x_ab), (x_b, x_a))
        losses["perceptual_a"], losses["perceptual_b"] = distances
    return losses | {"generator_total": weighted(losses, config)}


def _discriminated(
    unit: TrainablePair, x_ba: Tensor, x_a: Tensor, x_ab: Tensor, x_b: Tensor
) -> Losses:
    dis_a, dis_b = unit.dis_a, unit.dis_b
    if not (dis_a.can_join(x_ba, x_a) and dis_b.can_join(x_ab, x_b)):
        loss_a, loss_b = dis_a.calc_dis_loss(x_ba, x_a), dis_b.calc_dis_loss(x_ab, x_b)
    else:
        outputs = unit.discriminate(torch.cat([x_ba, x_a]), torch.cat([x_ab, x_b]))
        loss_a, loss_b = (
            dis_a.dis_loss(outputs[0], len(x_ba)),
            dis_b.dis_loss(outputs[1], len(x_ab)),
        )
    return {"discriminator_a": loss_a, "discriminator_b": loss_b}


def weighted(losses: Losses, config: Config) -> Tensor:
    """Return the weighted sum of the generators' losses."""
    weights = {
        "adversarial": config.gan_w,
        "reconstruction": config.recon_x_w,
        "kl": config.recon_kl_w,
        "cycle": config.recon_x_cyc_w,
        "cycle_kl": config.recon_kl_cyc_w,
        "identity": config.identity_w,
        "perceptual": config.vgg_w,
    }
    return total(weights[name.rpartition("_")[0]] * loss for name, loss in losses.items())


def _l1(output: Tensor, target: Tensor) -> Tensor:
    return widened(output - target).abs().mean()


def checked(noise: Noise | None, names: tuple[str, ...]) -> Noise:
    """Return the noise with these keys, None for those to be drawn.

    Raises:
        ValueError: a key is missing.
    """
    if noise is None:
        return dict.fromkeys(names)
    missing = [name for name in names if name not in noise]
    if missing:
        raise ValueError(f"noise has no {', '.join(missing)}; it must hold {', '.join(names)}")
    return noise
