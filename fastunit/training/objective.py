"""UNIT's objective (Liu, Breuel and Kautz 2017, equations 1 to 3) as named losses.

`LOSSES` documents the names. All losses are scalars; the `total` entries are differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastunit.config import Config
from fastunit.models.discriminator import total, widened
from fastunit.models.domain_pair import TrainablePair
from fastunit.models.perceptual import Perceptual

Losses = dict[str, Tensor]
Noise = Mapping[str, Tensor | None]  # None: drawn
Call = Callable[..., Any]  # call(function, *arguments) returns what the function does


def directly(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function."""
    return function(*args)


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
    "style_a": "MUNIT: mean absolute difference of b translated to a's style and the one drawn",
    "style_b": "MUNIT: likewise of a translated to b",
    "content_a": "MUNIT: mean absolute difference of a's content and that of a translated to b",
    "content_b": "MUNIT: likewise of b",
    "perceptual_a": "VGG16 feature distance of b translated to a from b",
    "perceptual_b": "VGG16 feature distance of a translated to b from a",
    "generator_total": "weighted sum, minimized by the generators",
}
WEIGHTS = {  # the configuration's key for each kind of the generators' losses
    "adversarial": "gan_w",
    "reconstruction": "recon_x_w",
    "kl": "recon_kl_w",
    "cycle": "recon_x_cyc_w",
    "cycle_kl": "recon_kl_cyc_w",
    "identity": "identity_w",
    "style": "recon_s_w",
    "content": "recon_c_w",
    "perceptual": "vgg_w",
}
DISCRIMINATOR_NOISE = ("a", "b")
GENERATOR_NOISE = ("a", "b", "ba", "ab")


class Batch(NamedTuple):
    """Images of both domains, and the noise of their codes.

    x_a: images of domain a, [N, C, H, W] in [-1, 1].
    x_b: images of domain b; N, C, H and W may differ from x_a's.
    noise: standard normal noise of the codes' shapes, keys "a", "b" (codes of the images), "ba",
        "ab" (codes of the translations, which the generators' losses use); None draws it. That of
        MUNIT: see `munit_objective`.
    """

    x_a: Tensor
    x_b: Tensor
    noise: Noise | None = None

    def parts(self, count: int) -> list[Batch]:
        """Split the batch, and its noise, into equal parts.

        Raises:
            ValueError: the batch cannot be divided by `count`.
        """
        if count == 1:
            return [self]
        found = zip(_chunks(self.x_a, count), _chunks(self.x_b, count), strict=True)
        if self.noise is None:
            return [Batch(*images) for images in found]
        noise = {
            name: [None] * count if value is None else _chunks(value, count)
            for name, value in self.noise.items()
        }
        return [
            Batch(*images, {name: values[part] for name, values in noise.items()})
            for part, images in enumerate(found)
        ]


def _chunks(value: Tensor, count: int) -> Sequence[Tensor]:
    if len(value) % count:
        raise ValueError(f"a batch of {len(value)} cannot be divided by accumulate={count}")
    return value.chunk(count)


class Decoded(NamedTuple):
    """Both codes decoded by both generators; `x_ba` is b translated to a."""

    x_aa: Tensor
    x_ba: Tensor
    x_ab: Tensor
    x_bb: Tensor
    kl_a: Tensor
    kl_b: Tensor


def decode_both(unit: TrainablePair, batch: Batch) -> Decoded:
    """Encode both images and decode both codes with each generator.

    Args:
        unit: both domains' networks.
        batch: images of both domains, [N, C, H, W] in [-1, 1], and the noise, if it is given.

    Returns:
        Images in [-1, 1] and the codes' divergences, scalars, all with their graph.

    Raises:
        ValueError: a key of noise is missing.
    """
    noise = checked(batch.noise, DISCRIMINATOR_NOISE)
    mu_a, mu_b = unit.encode(batch.x_a, batch.x_b)
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
    batch: Batch,
    config: Config,
    decoded: Decoded | None = None,
    call: Call = directly,
) -> Losses:
    """Return the discriminators' losses; the generators receive no gradient.

    Args:
        unit: the networks of both domains.
        batch: images and noise.
        config: its gan_w is the weight of both losses.
        decoded: translations computed before; the batch's noise is then unused.
        call: calls a function of tensors; may compile it.

    Returns:
        discriminator_a, discriminator_b (equation 2) and discriminator_total, scalars in float32
            or wider.

    Raises:
        ValueError: a key of noise is missing.
    """
    if decoded is None:
        noise = checked(batch.noise, DISCRIMINATOR_NOISE)
        with torch.no_grad():
            mu_a, mu_b = unit.encode(batch.x_a, batch.x_b)
            z_a, _ = unit.gen_a.sample(mu_a, noise["a"])
            z_b, _ = unit.gen_b.sample(mu_b, noise["b"])
            fakes = unit.decode(z_b, z_a)
    else:
        fakes = decoded.x_ba.detach(), decoded.x_ab.detach()
    return losses_of_fakes(unit, batch, fakes, config, call)


def losses_of_fakes(
    unit: TrainablePair, batch: Batch, fakes: tuple[Tensor, Tensor], config: Config, call: Call
) -> Losses:
    """Return the discriminators' losses for the translations `fakes`, x_ba and x_ab."""
    (x_a, x_b, _), (x_ba, x_ab) = batch, fakes
    dis_a, dis_b = unit.dis_a, unit.dis_b
    if dis_a.can_join(x_ba, x_a) and dis_b.can_join(x_ab, x_b):
        outputs = unit.discriminate(torch.cat([x_ba, x_a]), torch.cat([x_ab, x_b]))
        return call(_discriminator_terms, unit, *outputs, len(x_ba), len(x_ab), config.gan_w)
    loss_a, loss_b = dis_a.calc_dis_loss(x_ba, x_a), dis_b.calc_dis_loss(x_ab, x_b)
    return _discriminator_total(loss_a, loss_b, config.gan_w)


def _discriminator_terms(
    unit: TrainablePair,
    outputs_a: Sequence[Tensor],
    outputs_b: Sequence[Tensor],
    fakes_a: int,
    fakes_b: int,
    weight: float,
) -> Losses:
    """Return the losses of outputs for fake and real images, of which the first are fake."""
    terms = unit.dis_a.dis_terms(outputs_a, fakes_a), unit.dis_b.dis_terms(outputs_b, fakes_b)
    loss_a, loss_b = _sums(*terms)
    return _discriminator_total(loss_a, loss_b, weight)


def _discriminator_total(loss_a: Tensor, loss_b: Tensor, weight: float) -> Losses:
    total = weight * (loss_a + loss_b)
    return {"discriminator_a": loss_a, "discriminator_b": loss_b, "discriminator_total": total}


def generator_losses(
    unit: TrainablePair,
    batch: Batch,
    config: Config,
    perceptual: Perceptual | None = None,
    decoded: Decoded | None = None,
    call: Call = directly,
) -> Losses:
    """Return the generators' losses (equations 1 to 3, and the terms that the release adds).

    Args:
        unit: the networks of both domains.
        batch: images and noise.
        config: the losses' weights.
        perceptual: the VGG16 term; required if config.vgg_w is above 0.
        decoded: the result of `decode_both`, with its graph; noise "a" and "b" are then unused.
        call: calls a function of tensors; may compile it.

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
    noise = checked(batch.noise, GENERATOR_NOISE)
    if config.vgg_w > 0 and perceptual is None:
        raise ValueError(f"vgg_w={config.vgg_w} needs the perceptual term, which is not loaded")
    if decoded is None:
        decoded = decode_both(unit, batch)
    x_a, x_b, _ = batch
    x_aa, x_ba, x_ab, x_bb, kl_a, kl_b = decoded
    outputs = unit.discriminate(x_ba, x_ab)
    differences = {"reconstruction_a": (x_aa, x_a), "reconstruction_b": (x_bb, x_b)}
    losses = {"kl_a": kl_a, "kl_b": kl_b}
    if config.recon_x_cyc_w > 0:
        mu_ba, mu_ab = unit.encode(x_ba, x_ab)
        z_ba, losses["cycle_kl_b"] = unit.gen_a.sample(mu_ba, noise["ba"])
        z_ab, losses["cycle_kl_a"] = unit.gen_b.sample(mu_ab, noise["ab"])
        x_aba, x_bab = unit.decode(z_ab, z_ba)
        differences |= {"cycle_a": (x_aba, x_a), "cycle_b": (x_bab, x_b)}
    if config.identity_w > 0:
        for_b, for_a = unit.encode(x_b, x_a)  # gen_a encodes b, gen_b encodes a
        x_a_again, x_b_again = unit.decode(for_a, for_b)
        differences |= {"identity_a": (x_a_again, x_a), "identity_b": (x_b_again, x_b)}
    if config.vgg_w > 0:
        assert perceptual is not None
        distances = perceptual.pair((x_ba, x_ab), (x_b, x_a))
        losses["perceptual_a"], losses["perceptual_b"] = distances
    return call(generator_terms, unit, *outputs, differences, losses, config)


def generator_terms(
    unit: TrainablePair,
    outputs_a: Sequence[Tensor],
    outputs_b: Sequence[Tensor],
    differences: Mapping[str, tuple[Tensor, Tensor]],
    losses: Losses,
    config: Config,
) -> Losses:
    """Return all losses from the discriminators' outputs, images to compare, and other losses."""
    loss_a, loss_b = _sums(unit.dis_a.gen_terms(outputs_a), unit.dis_b.gen_terms(outputs_b))
    found = {"adversarial_a": loss_a, "adversarial_b": loss_b, **_l1(differences), **losses}
    found = {name: found[name] for name in LOSSES if name in found}
    return found | {"generator_total": weighted(found, config)}


def weighted(losses: Losses, config: Config) -> Tensor:
    """Return the weighted sum of the generators' losses."""
    return total(
        getattr(config, WEIGHTS[name.rpartition("_")[0]]) * loss for name, loss in losses.items()
    )


def _sums(a: Tensor, b: Tensor) -> Sequence[Tensor]:
    """Return the sum of each domain's terms, [M]: in one reduction if there are equally many."""
    return torch.stack([a, b]).sum(1).unbind() if a.shape == b.shape else (a.sum(), b.sum())


def _l1(differences: Mapping[str, tuple[Tensor, Tensor]]) -> Losses:
    """Return the mean absolute differences: those of equal shapes in one reduction."""
    found: Losses = {}
    for shape in dict.fromkeys(x.shape for x, _ in differences.values()):
        alike = {name: x - y for name, (x, y) in differences.items() if x.shape == shape}
        errors = widened(torch.cat([*alike.values()])).abs()  # not stack(): it transposes images
        means = errors.unflatten(0, (len(alike), -1)).mean(tuple(range(1, errors.dim() + 1)))
        found |= zip(alike, means.unbind(), strict=True)
    return found


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
