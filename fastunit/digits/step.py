"""Unsupervised adaptation between data sets of digits: the training step.

Domain a is the source, whose labels are known, domain b the target, whose labels are not: nothing
here takes them but `Adaptation.accuracy`, which measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.common.choices import Precision
from fastunit.common.precision import autocast, matmul_settings, resolve
from fastunit.digits.images import normalised
from fastunit.digits.networks import CoDis32x32, CoVAE32x32, copy_own_layers
from fastunit.digits.objective import (
    Losses,
    Settings,
    discriminator_losses,
    generate,
    generator_losses,
    self_labels,
    warmup_losses,
)
from fastunit.models.layers import moved
from fastunit.training.ema import Average
from fastunit.training.optim import adam

SOURCE, TARGET = "a", "b"


class Adaptation:
    """The networks, their optimisers and averages, and one training step after the other.

    Args:
        settings: what to do.
        channels: of both domains' images.
        device: where to.
        source_only: train the classifier on source images alone; there is no generator.

    Attributes:
        gen: the generators of both domains.
        dis: the discriminators and classifiers of both domains.
        evaluated: the discriminator to classify with: averaged weights where `ema_decay` is on.
        optimizers: the generators', then the discriminators'.
        average: of the discriminators' weights; None where `ema_decay` is 0.
        iteration: how many steps were made.
    """

    def __init__(
        self, settings: Settings, channels: int, device: torch.device, source_only: bool = False
    ) -> None:
        self.settings, self.device, self.source_only = settings, device, source_only
        torch.manual_seed(settings.seed)
        self.gen = CoVAE32x32(settings.gen_ch, *[channels] * 4)
        self.dis = CoDis32x32(settings.dis_ch, channels, channels)
        if settings.init_b == "copy":
            copy_own_layers(self.gen)
        for network in (self.gen, self.dis):
            moved(network, device)
        self.optimizers = [adam(list(n.parameters()), settings) for n in (self.gen, self.dis)]
        self.average = None
        if settings.ema_decay:
            self.average = Average(self.dis, settings.ema_decay)
        self._precision: Precision = resolve(settings.precision, device)
        self.iteration = 0

    @property
    def evaluated(self) -> CoDis32x32:
        return self.dis if self.average is None else self.average.module

    def advance(self, x_a: Tensor, labels: Tensor, x_b: Tensor) -> Losses:
        """Make one step with images of both domains and the source's labels."""
        self._set_rate()
        with matmul_settings(self._precision):
            if self.source_only:
                losses = self._update_classifier(x_a, labels)
            elif self.iteration < self.settings.warmup:
                losses = self._warm_up(x_a, labels)
            else:
                losses = self._update_both(x_a, labels, x_b)
        if self.average is not None:
            self.average.update()
        self.iteration += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def _update_classifier(self, x_a: Tensor, labels: Tensor) -> Losses:
        with self._autocast():
            loss = F.cross_entropy(self.dis.classify_a(x_a).float(), labels)
        self._descend(self.optimizers[1], loss)
        return {"classification": loss}

    def _warm_up(self, x_a: Tensor, labels: Tensor) -> Losses:
        with self._autocast():
            losses = warmup_losses(self.dis, self.settings, x_a, labels)
        self._descend(self.optimizers[1], losses["discriminator_total"])
        return losses

    def _update_both(self, x_a: Tensor, labels: Tensor, x_b: Tensor) -> Losses:
        """Update the discriminator, then the generator by it; one draw of noise serves both."""
        with self._autocast():
            fakes = generate(self.gen, x_a, x_b) if self.settings.uses_generator else None
            pseudo_labels = self._pseudo_labels(x_b)
            losses = discriminator_losses(
                self.dis, self.settings, x_a, x_b, labels, fakes, pseudo_labels
            )
        self._descend(self.optimizers[1], losses["discriminator_total"])
        if fakes is None:
            return losses
        with _frozen(self.dis):
            with self._autocast():
                more = generator_losses(self.dis, self.settings, x_a, x_b, labels, fakes)
            self._descend(self.optimizers[0], more["generator_total"])
        return losses | more

    def _pseudo_labels(self, x_b: Tensor) -> Tensor | None:
        """Return the digits that the average finds in target images, where they train."""
        if not self.settings.self_label_w:
            return None
        self.evaluated.eval()
        found = self_labels(self.evaluated, x_b, self.settings.self_label_threshold)
        self.evaluated.train()
        return found

    def _autocast(self) -> Any:
        return autocast(self._precision, self.device)

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        if loss.requires_grad:  # not where every weight is 0
            loss.backward()
            optimizer.step()

    def _set_rate(self) -> None:
        settings = self.settings
        start = settings.decay_from * settings.iterations
        left = settings.iterations - self.iteration
        share = min(1.0, left / max(settings.iterations - start, 1))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * share

    def classifier(self, domain: str) -> Callable[[Tensor], Tensor]:
        """Return the function that names the digits of a domain's images, "a" or "b"."""
        if self.source_only:  # what belongs to domain b alone has never been trained
            return self.evaluated.classify_a
        return self.evaluated.classify_a if domain == SOURCE else self.evaluated.classify_b

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor, domain: str) -> float:
        """Return the share of images, uint8 [N, C, 32, 32], whose digit is named right."""
        self.evaluated.eval()
        classify, right = self.classifier(domain), 0
        with matmul_settings(self._precision), self._autocast():
            for part, wanted in zip(images.split(500), labels.split(500), strict=True):
                x = normalised(part).contiguous(memory_format=torch.channels_last)
                right += (classify(x).argmax(1) == wanted).sum()
        self.evaluated.train()
        return int(right) / len(images)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Keep gradients from a network's weights, though not from what it is given."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
