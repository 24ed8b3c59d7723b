"""Evaluation on held-out pairs: the translations' error and retrieval, beside baselines.

The error alone says little: a constant gray image can be nearer to the truth than a sharp
translation in wrong colours. So it is reported beside the errors of the unchanged input and of two
predictions from the training sets' statistics, together with retrieval: whether each translation
is nearest to its own true image.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fastunit.common import progress
from fastunit.common.choices import DIRECTIONS, Direction
from fastunit.config import Config
from fastunit.data.discovery import Domains
from fastunit.models.domain_pair import DomainPair, evaluating
from fastunit.report.summary import KINDS
from fastunit.training import baselines, held_out
from fastunit.training.baselines import Statistics
from fastunit.training.held_out import Pairs

MOST_TRAINING = 2_000  # training images of a domain that are read for its statistics
MOST_COMPARED = 2**33  # values subtracted for one retrieval: some 10 s on a CPU core
RETRIEVED = ("paired", "identity", "statistics")  # a constant image is always at chance
_SLOW = 2.0  # seconds after which a progress bar is shown

# Takes a direction, a kind of prediction, its images, the true images, and their pairs of files.
Observer = Callable[[Direction, str, Tensor, Tensor, Pairs], None]


@torch.no_grad()
def measure(
    pair: DomainPair,
    pairs: Pairs,
    domains: Domains,
    config: Config,
    device: torch.device,
    observe: Observer | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the errors of translations and baselines, for "a2b" and "b2a".

    ``*_l1`` is the mean absolute difference from the true image on the [-1, 1] scale, averaged
    over all values of an image, then over images: ``paired_l1`` of the translation,
    ``identity_l1`` of the unchanged input, ``constant_l1`` of the mean of the target's training
    images, ``statistics_l1`` of the input rescaled to the target's mean and standard deviation at
    each position (`baselines.restyled`). ``retrieval`` is the share of translations that are
    nearer to their own true image than to any other (`baselines.retrieved`), ``*_retrieval`` the
    same for baselines, ``chance`` its expected value for guesses. ``left_out``, if present, gives
    the reasons for missing figures.

    Statistics are those of every k-th training image, resized and cropped as test images, with the
    smallest k that leaves at most `MOST_TRAINING`. Likewise retrieval is among every k-th pair if
    comparing all would take more than `MOST_COMPARED` subtractions.

    `observe`, if given, is called with every batch of predictions of each kind.

    Raises:
        DataError: a file can no longer be read; the message names it.
    """
    crop = config.crop if config.data.test_crop == "center" else None
    training = {"a": _thinned(domains.train_a), "b": _thinned(domains.train_b)}
    first = next(held_out.read([pairs[0][0]], config.domain("a"), config, crop, device))
    pairs, compared = _compared_first(pairs, first[0].numel())
    files = dict(zip("ab", zip(*pairs, strict=True), strict=True))
    images = sum(map(len, training.values())) + 2 * (compared + len(pairs))
    with progress.bar(total=images, unit="image", desc="measuring", delay=_SLOW) as bar:

        def read(name: str, files: Sequence[Path]) -> Iterator[Tensor]:
            for images in held_out.read(files, config.domain(name), config, crop, device):
                yield images
                bar.update(len(images))

        of = {name: baselines.statistics(read(name, training[name])) for name in "ab"}
        truths = {name: _stacked(read(name, files[name][:compared])) for name in "ab"}
        ways = {
            way: _DirectionScores(of[way[0]], of[way[-1]], truths[way[-1]]) for way in DIRECTIONS
        }
        for x_a, x_b in zip(*(read(name, files[name]) for name in "ab"), strict=True):
            for way, x, truth in zip(DIRECTIONS, (x_a, x_b), (x_b, x_a), strict=True):
                done = ways[way].done
                with evaluating(pair):
                    predictions = ways[way].add(x, pair.translate(x, way), truth)
                if observe is not None:
                    for kind, images in predictions.items():
                        observe(way, kind, images, truth, pairs[done : done + len(x)])
    return {name: way.result() for name, way in ways.items()}


class _DirectionScores:
    """Accumulates one direction's errors and retrieval, by kind of image.

    `truths` are the true images of the first images that are added, [M, C, H, W]; None: no
    retrieval.
    """

    def __init__(
        self, source: Statistics | None, target: Statistics | None, truths: Tensor | None
    ) -> None:
        self._source, self._target, self._truths = source, target, truths
        self._errors: dict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()
        self._hits: dict[str, float] = defaultdict(float)
        self.done = 0

    def add(self, x: Tensor, translated: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Compare the predictions for `x`, [N, C, H, W], with the true images; return them."""
        compared = 0 if self._truths is None else max(0, len(self._truths) - self.done)
        predictions = self._predictions(x, translated)
        for kind, images in predictions.items():
            difference = (images.double() - truth.double()).abs()
            self._errors[kind] += difference.mean((1, 2, 3)).sum().item()
            self._counts[kind] += len(x)
            if self._truths is not None and compared and kind in RETRIEVED:
                chosen = images[:compared]
                self._hits[kind] += baselines.retrieved(chosen, self._truths, self.done)
        self.done += len(x)
        return predictions

    def _predictions(self, x: Tensor, translated: Tensor) -> dict[str, Tensor]:
        predictions = {"paired": translated, "identity": x}
        if _fits(self._target, x):
            predictions["constant"] = self._target.mean.expand(x.shape)
            if _fits(self._source, x):
                predictions["statistics"] = baselines.restyled(x, self._source, self._target)
        return predictions

    def result(self) -> dict[str, Any]:
        """Return the figures by name, without those that could not be computed for all images."""
        found, left_out = {}, {}
        count = 0 if self._truths is None else len(self._truths)
        for kind in KINDS:
            if self._counts[kind] < self.done:
                left_out[f"{kind}_l1"] = "training and held-out images differ in size"
                continue
            found[f"{kind}_l1"] = self._errors[kind] / self.done
            if count > 1 and kind in RETRIEVED:
                name = "retrieval" if kind == "paired" else f"{kind}_retrieval"
                found[name] = self._hits[kind] / count
        if count > 1:
            found["chance"] = 1 / count
        elif self._truths is None:
            left_out["retrieval"] = "held-out images differ in size"
        else:
            left_out["retrieval"] = "there is only one pair"
        return found | ({"left_out": left_out} if left_out else {})


def _fits(statistics: Statistics | None, x: Tensor) -> TypeGuard[Statistics]:
    return statistics is not None and statistics.mean.shape == x.shape[1:]


def _thinned(files: Sequence[Path]) -> Sequence[Path]:
    return files[:: math.ceil(len(files) / MOST_TRAINING)]


def _compared_first(pairs: Pairs, values: int) -> tuple[Pairs, int]:
    """Return the pairs with every k-th one first, those used for retrieval, and their number."""
    most = max(2, math.isqrt(MOST_COMPARED // values))
    step = math.ceil(len(pairs) / most)
    return [pair for start in range(step) for pair in pairs[start::step]], len(pairs[::step])


def _stacked(batches: Iterator[Tensor]) -> Tensor | None:
    """Return the images of all batches as one tensor, None if they differ in size."""
    found: list[Tensor] = []
    for images in batches:
        if found and images.shape[1:] != found[0].shape[1:]:
            return None
        found.append(images)
    return torch.cat(found)
