"""MUNIT's objective (Huang, Liu, Belongie and Kautz 2018, section 3.2) as named losses.

The names are those of `objective.LOSSES`. Noise are the styles that translations get, from their
prior N(0, I): keys "a" (of b translated to a, [N_b, style_dim]) and "b" ([N_a, style_dim]), where
N_a, N_b are the numbers of images of a and b; None draws them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastunit.config import MunitConfig
from fastunit.models.perceptual import Perceptual
from fastunit.models.styled_pair import MUNIT
from fastunit.training.objective import (
    Batch,
    Call,
    Losses,
    checked,
    directly,
    generator_terms,
    losses_of_fakes,
)

NOISE = ("a", "b")
Pair = tuple[Tensor, Tensor]


class Decoded(NamedTuple):
    """Both images' codes, the styles drawn, and what both generators decode.

    Pairs are of a and b; `x_ba` is b translated to a, with the style `drawn` for a.
    """

    contents: Pair
    styles: Pair
    drawn: Pair
    x_aa: Tensor
    x_ba: Tensor
    x_ab: Tensor
    x_bb: Tensor


def decode_both(unit: MUNIT, batch: Batch) -> Decoded:
    """Encode both images; reconstruct them, and translate them with styles from the prior.

    Args:
        unit: both domains' networks.
        batch: images of both domains, [N, C, H, W] in [-1, 1], and the styles, if they are given.

    Returns:
        Codes and images, all with their graph.

    Raises:
        ValueError: a key of noise is missing, or styles do not fit the images.
    """
    drawn = drawn_styles(batch, unit.gen_a.style_dim)
    contents = c_a, c_b = unit.encode(batch.x_a, batch.x_b)
    styles = s_a, s_b = unit.encode_styles(batch.x_a, batch.x_b)
    if c_a.shape[1:] != c_b.shape[1:]:
        x_aa, x_bb = unit.decode(c_a, c_b, styles)
        x_ba, x_ab = unit.decode(c_b, c_a, drawn)
    else:  # no layer mixes samples
        both = torch.cat([c_a, c_b])
        of_both = torch.cat([s_a.flatten(1), drawn[0]]), torch.cat([drawn[1], s_b.flatten(1)])
        (x_aa, x_ba), (x_ab, x_bb) = (
            x.split([len(c_a), len(c_b)]) for x in unit.decode(both, both, of_both)
        )
    return Decoded(contents, styles, drawn, x_aa, x_ba, x_ab, x_bb)


def drawn_styles(batch: Batch, size: int) -> Pair:
    """Return the styles of both translations, [N, size], given or drawn.

    Raises:
        ValueError: a key of noise is missing, or styles do not fit the images.
    """
    noise = checked(batch.noise, NOISE)

    def styles(name: str, like: Tensor) -> Tensor:
        found, shape = noise[name], (len(like), size)
        if found is None:
            return like.new_empty(shape).normal_()
        if found.shape[:2] != shape or found.numel() != len(like) * size:
            raise ValueError(f"noise {name} of shape {tuple(found.shape)} must be of {shape}")
        return found.flatten(1)

    return styles("a", batch.x_b), styles("b", batch.x_a)


def discriminator_losses(
    unit: MUNIT,
    batch: Batch,
    config: MunitConfig,
    decoded: Decoded | None = None,
    call: Call = directly,
) -> Losses:
    """Return the discriminators' losses; the generators receive no gradient.

    Args:
        unit: the networks of both domains.
        batch: images and styles.
        config: its gan_w is the weight of both losses.
        decoded: translations computed before; the batch's noise is then unused.
        call: calls a function of tensors; may compile it.

    Returns:
        discriminator_a, discriminator_b and discriminator_total, scalars in float32 or wider.

    Raises:
        ValueError: a key of noise is missing, or styles do not fit the images.
    """
    if decoded is None:
        with torch.no_grad():
            c_a, c_b = unit.encode(batch.x_a, batch.x_b)
            fakes = unit.decode(c_b, c_a, drawn_styles(batch, unit.gen_a.style_dim))
    else:
        fakes = decoded.x_ba.detach(), decoded.x_ab.detach()
    return losses_of_fakes(unit, batch, fakes, config, call)


def generator_losses(
    unit: MUNIT,
    batch: Batch,
    config: MunitConfig,
    perceptual: Perceptual | None = None,
    decoded: Decoded | None = None,
    call: Call = directly,
) -> Losses:
    """Return the generators' losses (equations 1 to 4, and the terms that the release adds).

    Args:
        unit: the networks of both domains.
        batch: images and styles.
        config: the losses' weights.
        perceptual: the VGG16 term; required if config.vgg_w is above 0.
        decoded: the result of `decode_both`, with its graph; the batch's noise is then unused.
        call: calls a function of tensors; may compile it.

    Codes are differentiated on both sides of a loss. The cycle, with config.recon_x_cyc_w above 0,
    goes back with the image's own style. Style, content, cycle
    and perceptual terms of weight 0 are left out, with their passes.

    Returns:
        The losses that are not left out, and generator_total, scalars in float32 or wider.
            Gradients also reach the discriminators unless they are frozen.

    Raises:
        ValueError: a key of noise is missing, styles do not fit the images, or `perceptual` is
            required but None.
    """
    if config.vgg_w > 0 and perceptual is None:
        raise ValueError(f"vgg_w={config.vgg_w} needs the perceptual term, which is not loaded")
    if decoded is None:
        decoded = decode_both(unit, batch)
    x_a, x_b, _ = batch
    x_ba, x_ab = decoded.x_ba, decoded.x_ab
    outputs = unit.discriminate(x_ba, x_ab)
    differences = {
        "reconstruction_a": (decoded.x_aa, x_a),
        "reconstruction_b": (decoded.x_bb, x_b),
    }
    if config.recon_s_w > 0:
        found = (style.flatten(1) for style in unit.encode_styles(x_ba, x_ab))
        differences["style_a"], differences["style_b"] = zip(found, decoded.drawn, strict=True)
    if config.recon_c_w > 0 or config.recon_x_cyc_w > 0:
        c_b, c_a = unit.encode(x_ba, x_ab)
        if config.recon_c_w > 0:
            differences["content_a"] = c_a, decoded.contents[0]
            differences["content_b"] = c_b, decoded.contents[1]
        if config.recon_x_cyc_w > 0:
            x_aba, x_bab = unit.decode(c_a, c_b, decoded.styles)
            differences |= {"cycle_a": (x_aba, x_a), "cycle_b": (x_bab, x_b)}
    losses: Losses = {}
    if config.vgg_w > 0:
        assert perceptual is not None
        distances = perceptual.pair((x_ba, x_ab), (x_b, x_a))
        losses["perceptual_a"], losses["perceptual_b"] = distances
    return call(generator_terms, unit, *outputs, differences, losses, config)
