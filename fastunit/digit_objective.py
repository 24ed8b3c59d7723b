"""The objective of unsupervised adaptation between data sets of digits, and its settings.

Domain a is the source, whose labels are known, domain b the target, whose labels are not: nothing
here takes them. The objective is that of the UNIT paper's section on adaptation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.config import PRECISIONS
from fastunit.digit_images import GEOMETRIES
from fastunit.digits import CoDis32x32, CoVAE32x32
from fastunit.typed import key

FAKE, REAL = 0, 1
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """All that a run depends on but its data; the defaults are the UNIT paper's release's."""

    gen_ch: int = key(96, "generator's channels at the images", low=1)
    dis_ch: int = key(64, "discriminator's, likewise", low=1)
    iterations: int = key(200_000, "of training", low=1)
    warmup: int = key(0, "iterations in the beginning that only classify", low=0)
    batch_size: int = key(64, "images of each domain", low=2)
    lr: float = key(2e-4, "Adam's learning rate", low=0)
    beta1: float = key(0.5, "Adam's", low=0, below=1)
    beta2: float = key(0.999, "Adam's", low=0, below=1)
    weight_decay: float = key(5e-4, "inside the gradient", low=0)
    decay_from: float = key(1.0, "share of the run after which lr falls to 0", low=0, high=1)
    ema_decay: float = key(0.0, "of the classifier's average; 0: none", low=0, below=1)
    gan_w: float = key(1.0, "weight: real or fake", low=0)
    recon_w: float = key(1e-3, "squared error of pixels", low=0)
    kl_w: float = key(1e-4, "divergence of the codes", low=0)
    feature_w: float = key(1e-4, "features of translations", low=0)
    cls_w: float = key(10.0, "digits of source images", low=0)
    translated_cls_w: float = key(0.0, "digits of source images translated to the target", low=0)
    identity_cls_w: float = key(0.0, "digits of source images taken for the target's", low=0)
    semantic_w: float = key(0.0, "the same, for the generator to keep the digit", low=0)
    geometry: str = key("frame", "framing", choices=GEOMETRIES)
    rotation: float = key(0.0, "random, in degrees", low=0)
    stretch: float = key(0.0, "random, logarithm of a factor", low=0)
    shear: float = key(0.0, "random", low=0)
    shift: float = key(0.0, "random, in pixels", low=0)
    precision: str = key("auto", "of products", choices=PRECISIONS)
    seed: int = key(0, "of all that is random", low=0, high=2**32)
    log_every: int = key(100, "iterations between records", low=1)
    test_every: int = key(1000, "iterations between tests", low=1)


class Parts(NamedTuple):
    """A tensor's rows by the images they stand for; `ba` is b translated to a."""

    a: Tensor
    aa: Tensor
    ba: Tensor
    b: Tensor
    bb: Tensor
    ab: Tensor


class Fakes(NamedTuple):
    """What the generator makes of both batches, and its codes' divergence."""

    aa: Tensor
    ba: Tensor
    ab: Tensor
    bb: Tensor
    kl: Tensor


def generate(gen: CoVAE32x32, x_a: Tensor, x_b: Tensor, noise: Tensor | None = None) -> Fakes:
    """Reconstruct and translate images of both domains."""
    *images, _, kl = gen.sample(x_a, x_b, noise)
    return Fakes(*(image.float() for image in images), kl.float())


def warmup_losses(dis: CoDis32x32, settings: Settings, x_a: Tensor, labels: Tensor) -> Losses:
    """Return those of `discriminator_losses` that need neither generator nor target."""
    losses = {"classification": F.cross_entropy(dis.classify_a(x_a).float(), labels)}
    total = settings.cls_w * losses["classification"]
    if settings.identity_cls_w:
        losses["identity_classification"] = F.cross_entropy(dis.classify_b(x_a).float(), labels)
        total = total + settings.identity_cls_w * losses["identity_classification"]
    return losses | {"discriminator_total": total}


def discriminator_losses(
    dis: CoDis32x32, settings: Settings, x_a: Tensor, x_b: Tensor, labels: Tensor, fakes: Fakes
) -> Losses:
    """Return what the discriminator descends, "discriminator_total", and its terms by name.

    Args:
        x_a, x_b: real images. labels: int64 [N], the digits of x_a.
        fakes: the generator's, which get no gradient.

    real_fake: cross-entropy of the real pair as real, and half of that of the translated and the
    reconstructed pair as fake. feature: squared distance of the shared layers' features of a
    translation from those of the same image's reconstruction, summed over features, the mean over
    each batch, of both domains. classification: cross-entropy of x_a's digits;
    translated_classification: of those in its translation; identity_classification: of those in
    x_a taken by domain b's layers, as if it were its own translation.
    """
    aa, ba, ab, bb = (image.detach() for image in fakes[:4])
    n_a, n_b = len(x_a), len(x_b)
    first = dis.first(torch.cat([x_a, aa, ba]), torch.cat([x_b, bb, ab]))
    dropped = dis.dropped(first)
    sizes = [n_a, n_a, n_b, n_b, n_b, n_a]
    seen = Parts(*dis.judge(dropped).split(sizes))
    real = _judged(seen.a, seen.b, REAL)
    fake = _judged(seen.ba, seen.ab, FAKE) + _judged(seen.aa, seen.bb, FAKE)
    heads = Parts(*dropped.split(sizes))
    losses = {
        "real_fake": real + 0.5 * fake,
        "feature": _feature_distance(dis, Parts(*first.split(sizes))),
        "classification": _named(dis, heads.a, labels),
    }
    total = (
        settings.gan_w * losses["real_fake"]
        + settings.feature_w * losses["feature"]
        + settings.cls_w * losses["classification"]
    )
    if settings.translated_cls_w:
        losses["translated_classification"] = _named(dis, heads.ab, labels)
        total = total + settings.translated_cls_w * losses["translated_classification"]
    if settings.identity_cls_w:
        losses["identity_classification"] = F.cross_entropy(dis.classify_b(x_a).float(), labels)
        total = total + settings.identity_cls_w * losses["identity_classification"]
    return losses | {"discriminator_total": total}


def generator_losses(
    dis: CoDis32x32, settings: Settings, x_a: Tensor, x_b: Tensor, labels: Tensor, fakes: Fakes
) -> Losses:
    """Return what the generator descends, "generator_total", and its terms by name.

    adversarial: cross-entropy of the translated and of the reconstructed pair as real.
    reconstruction: squared error summed over pixels, the mean over each batch, of both domains.
    kl: the codes' divergence of both domains, each the mean over its batch. semantic:
    cross-entropy of x_a's digits in its translation.
    """
    first = dis.first(torch.cat([fakes.aa, fakes.ba]), torch.cat([fakes.bb, fakes.ab]))
    dropped = dis.dropped(first)
    sizes = [len(x_a), len(x_b), len(x_b), len(x_a)]
    aa, ba, bb, ab = dis.judge(dropped).split(sizes)
    losses = {
        "adversarial": _judged(ba, ab, REAL) + _judged(aa, bb, REAL),
        "reconstruction": _distance(fakes.aa, x_a) + _distance(fakes.bb, x_b),
        "kl": 2 * fakes.kl,
    }
    total = (
        settings.gan_w * losses["adversarial"]
        + settings.recon_w * losses["reconstruction"]
        + settings.kl_w * losses["kl"]
    )
    if settings.semantic_w:
        losses["semantic"] = _named(dis, dropped.split(sizes)[3], labels)
        total = total + settings.semantic_w * losses["semantic"]
    return losses | {"generator_total": total}


def _feature_distance(dis: CoDis32x32, first: Parts) -> Tensor:
    features = dis.features(torch.cat([first.aa, first.ab, first.bb, first.ba])).float()
    aa, ab, bb, ba = features.split(
        [len(part) for part in (first.aa, first.ab, first.bb, first.ba)]
    )
    return _distance(ab, aa) + _distance(ba, bb)


def _named(dis: CoDis32x32, dropped: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(dis.name(dropped).float(), labels)


def _judged(for_a: Tensor, for_b: Tensor, answer: int) -> Tensor:
    logits = torch.cat([for_a, for_b]).float()
    wanted = torch.full((len(logits),), answer, device=logits.device)
    return F.cross_entropy(logits, wanted)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum() / len(x)
