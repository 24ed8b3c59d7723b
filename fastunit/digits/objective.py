"""The objective of unsupervised adaptation between data sets of digits, and its settings.

Domain a is the source, whose labels are known, domain b the target, whose labels are not: nothing
here takes them. The objective is that of the UNIT paper's section on adaptation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.common.choices import InitB, Precision
from fastunit.config import CheckpointConfig
from fastunit.config.fields import build, key, section
from fastunit.digits.images import Geometry
from fastunit.digits.networks import CoDis32x32, CoVAE32x32

FAKE, REAL = 0, 1
UNLABELLED = -1  # where no digit is probable enough
Losses = dict[str, Tensor]
Rows = dict[str, Tensor]  # of the batch that a discriminator takes at once, by what they show
Term = tuple[float, Callable[[], Tensor]]  # a loss's weight and value


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
    self_label_w: float = key(0.0, "pseudo-labels: digits of target images by the average", low=0)
    self_label_threshold: float = key(0.95, "least probability of a pseudo-label", low=0, high=1)
    holdout: float = key(0.0, "share of the source kept out, to tune on", low=0, below=1)
    init_b: InitB = key("own", "the target's own layers at the start")
    geometry: Geometry = key("frame", "framing")
    rotation: float = key(0.0, "random, in degrees", low=0)
    stretch: float = key(0.0, "random, logarithm of a factor", low=0)
    shear: float = key(0.0, "random", low=0)
    shift: float = key(0.0, "random, in pixels", low=0)
    precision: Precision = key("auto", "of products")
    seed: int = key(0, "of all that is random", low=0, high=2**32)
    log_every: int = key(100, "iterations between records", low=1)
    test_every: int = key(1000, "iterations between tests", low=1)
    snapshot_save_iter: int = key(1000, "iterations between checkpoints", low=1)
    checkpoint: CheckpointConfig = section(CheckpointConfig, "which checkpoints are kept")

    @property
    def uses_generator(self) -> bool:
        """Whether a term with a weight needs reconstructions or translations."""
        weights = (self.gan_w, self.recon_w, self.kl_w, self.feature_w)
        return any((*weights, self.translated_cls_w, self.semantic_w))

    @property
    def deformation(self) -> dict[str, float]:
        """The amounts that `images.deform` takes."""
        return {name: getattr(self, name) for name in ("rotation", "stretch", "shear", "shift")}


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Build settings from keys and values; raises ConfigError naming what is wrong."""
    return build(Settings, values, "")


class Fakes(NamedTuple):
    """What the generator makes of both batches, and its codes' divergence; `ba` is b as a."""

    aa: Tensor
    ba: Tensor
    ab: Tensor
    bb: Tensor
    kl: Tensor


def generate(gen: CoVAE32x32, x_a: Tensor, x_b: Tensor, noise: Tensor | None = None) -> Fakes:
    """Reconstruct and translate images of both domains."""
    *images, _, kl = gen.sample(x_a, x_b, noise)
    aa, ba, ab, bb = (image.float() for image in images)
    return Fakes(aa, ba, ab, bb, kl.float())


def warmup_losses(dis: CoDis32x32, settings: Settings, x_a: Tensor, labels: Tensor) -> Losses:
    """Return those of `discriminator_losses` that need neither generator nor target."""
    wanted = _classified(settings) - {"ab"}
    heads = _heads(dis, _first(dis, {"a": x_a}, {"identity": x_a}, wanted), wanted)
    terms = _classification_terms(dis, settings, heads, labels)
    del terms["translated_classification"]
    return _weighed(terms, "discriminator_total", x_a)


def discriminator_losses(
    dis: CoDis32x32,
    settings: Settings,
    x_a: Tensor,
    x_b: Tensor,
    labels: Tensor,
    fakes: Fakes | None,
    pseudo_labels: Tensor | None = None,
) -> Losses:
    """Return what the discriminator descends, "discriminator_total", and its terms by name.

    Args:
        dis: the discriminators and classifiers of both domains.
        settings: the weights of the terms.
        x_a: real images of domain a.
        x_b: real images of domain b.
        labels: int64 [N], the digits of x_a.
        fakes: the generator's, which get no gradient. None: no term with a weight needs them.
        pseudo_labels: int64 [N], the digits that `self_labels` found in x_b. None: no such term.

    real_fake: cross-entropy of the real pair as real, and half of that of the translated and the
    reconstructed pair as fake. feature: squared distance of the shared layers' features of a
    translation from those of the same image's reconstruction, summed over features, the mean over
    each batch, of both domains. classification: cross-entropy of x_a's digits;
    translated_classification: of those in its translation; identity_classification: of those in
    x_a taken by domain b's layers, as if it were its own translation; self_label: of the
    pseudo-labels of x_b, summed over those there are and divided by the batch.

    A term whose weight is 0 is neither computed nor returned.
    """
    for_gan = {"a", "aa", "ba", "b", "bb", "ab"} if settings.gan_w else set()
    labelled = {"b"} if pseudo_labels is not None and settings.self_label_w else set()
    compared = {"aa", "ab", "bb", "ba"} if settings.feature_w else set()
    headed = for_gan | labelled | _classified(settings)
    for_a, for_b = {"a": x_a}, {"b": x_b, "identity": x_a}
    if fakes is not None:
        for_a |= {"aa": fakes.aa.detach(), "ba": fakes.ba.detach()}
        for_b |= {"bb": fakes.bb.detach(), "ab": fakes.ab.detach()}
    first = _first(dis, for_a, for_b, headed | compared)
    heads = _heads(dis, first, headed)
    terms = {
        "real_fake": (settings.gan_w, lambda: _real_fake(dis, heads)),
        "feature": (settings.feature_w, lambda: _feature_distance(dis, first)),
        **_classification_terms(dis, settings, heads, labels),
    }
    if pseudo_labels is not None and labelled:
        terms["self_label"] = (
            settings.self_label_w,
            lambda: _self_label(dis, heads["b"], pseudo_labels),
        )
    return _weighed(terms, "discriminator_total", x_a)


def generator_losses(
    dis: CoDis32x32, settings: Settings, x_a: Tensor, x_b: Tensor, labels: Tensor, fakes: Fakes
) -> Losses:
    """Return what the generator descends, "generator_total", and its terms by name.

    adversarial: cross-entropy of the translated and of the reconstructed pair as real.
    reconstruction: squared error summed over pixels, the mean over each batch, of both domains.
    kl: the codes' divergence of both domains, each the mean over its batch. semantic:
    cross-entropy of x_a's digits in its translation.

    A term whose weight is 0 is neither computed nor returned.
    """
    wanted = {"aa", "ba", "bb", "ab"} if settings.gan_w else set()
    wanted |= {"ab"} if settings.semantic_w else set()
    for_a, for_b = {"aa": fakes.aa, "ba": fakes.ba}, {"bb": fakes.bb, "ab": fakes.ab}
    heads = _heads(dis, _first(dis, for_a, for_b, wanted), wanted)
    terms = {
        "adversarial": (
            settings.gan_w,
            lambda: (
                _adversarial(dis, heads["ba"], heads["ab"], REAL)
                + _adversarial(dis, heads["aa"], heads["bb"], REAL)
            ),
        ),
        "reconstruction": (
            settings.recon_w,
            lambda: _distance(fakes.aa, x_a) + _distance(fakes.bb, x_b),
        ),
        "kl": (settings.kl_w, lambda: 2 * fakes.kl),
        "semantic": (settings.semantic_w, lambda: _classification(dis, heads["ab"], labels)),
    }
    return _weighed(terms, "generator_total", x_a)


@torch.no_grad()
def self_labels(classifier: CoDis32x32, x_b: Tensor, threshold: float) -> Tensor:
    """Return the digits that a classifier in evaluation mode finds in images of domain b.

    int64 [N]; UNLABELLED where its probability is below the threshold.
    """
    probability, digit = classifier.classify_b(x_b).float().softmax(1).max(1)
    return torch.where(probability >= threshold, digit, UNLABELLED)


# ---- passes of the discriminator


def _classified(settings: Settings) -> set[str]:
    weights = {
        "a": settings.cls_w,
        "ab": settings.translated_cls_w,
        "identity": settings.identity_cls_w,
    }
    return {part for part, weight in weights.items() if weight}


def _first(dis: CoDis32x32, for_a: Rows, for_b: Rows, wanted: set[str]) -> Rows:
    """Return the first layers' results for the wanted of both domains' images, by name."""
    if not wanted:
        return {}
    groups = [{k: x for k, x in group.items() if k in wanted} for group in (for_a, for_b)]
    stacked = [torch.cat(list(group.values())) if group else None for group in groups]
    return _split(dis.first(*stacked), groups[0] | groups[1])


def _heads(dis: CoDis32x32, first: Rows, wanted: set[str]) -> Rows:
    """Return what the heads see of the wanted rows."""
    chosen = {name: rows for name, rows in first.items() if name in wanted}
    return _split(dis.dropped(torch.cat(list(chosen.values()))), chosen) if chosen else {}


def _split(rows: Tensor, like: Rows) -> Rows:
    return dict(zip(like, rows.split([len(x) for x in like.values()]), strict=True))


# ---- terms


def _weighed(terms: dict[str, Term], total: str, like: Tensor) -> Losses:
    """Evaluate the terms that have a weight, and their weighted sum."""
    losses = {name: term() for name, (weight, term) in terms.items() if weight}
    zero = like.new_zeros((), dtype=torch.float32)
    return losses | {total: sum((terms[name][0] * x for name, x in losses.items()), zero)}


def _classification_terms(
    dis: CoDis32x32, settings: Settings, heads: Rows, labels: Tensor
) -> dict[str, Term]:
    return {
        "classification": (settings.cls_w, lambda: _classification(dis, heads["a"], labels)),
        "translated_classification": (
            settings.translated_cls_w,
            lambda: _classification(dis, heads["ab"], labels),
        ),
        "identity_classification": (
            settings.identity_cls_w,
            lambda: _classification(dis, heads["identity"], labels),
        ),
    }


def _real_fake(dis: CoDis32x32, heads: Rows) -> Tensor:
    fake = _adversarial(dis, heads["ba"], heads["ab"], FAKE) + _adversarial(
        dis, heads["aa"], heads["bb"], FAKE
    )
    return _adversarial(dis, heads["a"], heads["b"], REAL) + 0.5 * fake


def _feature_distance(dis: CoDis32x32, first: Rows) -> Tensor:
    parts = {name: first[name] for name in ("aa", "ab", "bb", "ba")}
    features = _split(dis.features(torch.cat(list(parts.values()))).float(), parts)
    return _distance(features["ab"], features["aa"]) + _distance(features["ba"], features["bb"])


def _classification(dis: CoDis32x32, heads: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(dis.classify(heads).float(), labels)


def _self_label(dis: CoDis32x32, heads: Tensor, wanted: Tensor) -> Tensor:
    logits = dis.classify(heads).float()
    return F.cross_entropy(logits, wanted, ignore_index=UNLABELLED, reduction="sum") / len(wanted)


def _adversarial(dis: CoDis32x32, for_a: Tensor, for_b: Tensor, answer: int) -> Tensor:
    logits = dis.discriminate(torch.cat([for_a, for_b])).float()
    wanted = torch.full((len(logits),), answer, device=logits.device)
    return F.cross_entropy(logits, wanted)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum() / len(x)
