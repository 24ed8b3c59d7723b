"""Scores of trained generators: distances between sets of images, errors of pairs and cycles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastunit.common import progress
from fastunit.common.choices import DIRECTIONS, Direction
from fastunit.common.errors import DataError
from fastunit.common.spread import spread
from fastunit.config import Config
from fastunit.data.discovery import Domains
from fastunit.evaluation import distances, features, similarity
from fastunit.evaluation.distances import Measured
from fastunit.evaluation.features import Extractor
from fastunit.models.domain_pair import DomainPair, evaluating
from fastunit.models.styled_pair import StyledPair
from fastunit.training import evaluate, held_out

MOST = 2_000  # images of a set whose features are compared
STYLED, DRAWS = 100, 5  # images of which so many pairs of translations are compared
_PER_IMAGE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": similarity.l1,
    "psnr": similarity.psnr,
    "ssim": similarity.ssim,
}
Scores = dict[str, Any]
Ranking = list[tuple[float, Path]]  # error and file of the source, the best first


class Scorer:
    """Scores any number of generators on the same images, whose features are computed once.

    Args:
        config: how images are read, from the generators' training.
        domains: the image files; the test sets must not be empty.
        extractor: the network whose features are compared; None: no distances of sets.
        device: where everything runs.

    Raises:
        DataError: there are no test images.
    """

    def __init__(
        self, config: Config, domains: Domains, extractor: Extractor | None, device: torch.device
    ) -> None:
        if not (domains.test_a and domains.test_b):
            raise DataError("evaluation needs test images: folders testA and testB beside trainA")
        self._config, self._domains, self._device = config, domains, device
        self._extractor = extractor
        self._pairs = held_out.find_pairs(domains, config)
        self.files = {
            "test_a": spread(domains.test_a, MOST),
            "test_b": spread(domains.test_b, MOST),
        }
        self._real: dict[str, Tensor] = {}
        if extractor is not None:
            with progress.bar(total=4, desc="features of real images", unit="set") as bar:
                for name in "ab":
                    sources = len(self.files["test_b" if name == "a" else "test_a"])
                    train = spread(getattr(domains, f"train_{name}"), sources)
                    for split, files in (("train", train), ("test", self.files[f"test_{name}"])):
                        if files:
                            self._real[f"{split}_{name}"] = self._features(name, files)
                        bar.update()

    def score(self, pair: DomainPair) -> tuple[Scores, dict[str, Ranking]]:
        """Return scores by direction, and the ranking of each direction's test images.

        For each direction: "kernel" and "frechet" (`distances`) between the target's test images
        and the "translation"s of the source's test images; the "floor", as many of the target's
        training images; and the "ceiling", the source's test images as they are. "cycle_l1" is
        the error of images translated there and back. Networks with styles have a "diversity": the
        distances of translations of an image in two styles drawn at random, "l1" and with
        EfficientNet-Lite0 "features", as the MUNIT paper measures it with LPIPS. With true pairs,
        "pairs" has the mean "l1", "psnr", "ssim" and, with EfficientNet-Lite0, "features", by kind
        of prediction, and the figures of `evaluate.measure`. Values are `distances.Measured`.

        Images are ranked by the error of their translation, or without pairs by that of the cycle.
        """
        scores: Scores = {}
        rankings: dict[str, Ranking] = {}
        for way in DIRECTIONS:
            source = self.files[f"test_{way[0]}"]
            found, cycles = self._translate(pair, way, source)
            scores[way] = {"cycle_l1": distances.mean(cycles)}
            if found is not None:
                scores[way] |= self._set_distances(way, found)
            if isinstance(pair, StyledPair):
                scores[way]["diversity"] = self._diversity(pair, way, spread(source, STYLED))
            rankings[way] = _ranking(cycles, source)
        if self._pairs:
            self._add_pairs(pair, scores, rankings)
        return scores, rankings

    def examples(
        self, pair: DomainPair, way: Direction, files: Sequence[Path]
    ) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Return source, translation and true image, if any, of files: each [C, H, W]."""
        truths = {a: b for a, b in (p if way == "a2b" else p[::-1] for p in self._pairs)}
        found = []
        for file in files:
            (x,) = self._read(way[0], [file])
            truth = None
            if file in truths:
                (truth,) = self._read(way[-1], [truths[file]])
            with evaluating(pair), torch.no_grad():
                y = pair.translate(x, way)
            found.append((x[0], y[0], None if truth is None else truth[0]))
        return found

    def _set_distances(self, way: Direction, found: Tensor) -> Scores:
        real, source = self._real[f"test_{way[-1]}"], self._real[f"test_{way[0]}"]
        sets = {"translation": found, "ceiling": source}
        if f"train_{way[-1]}" in self._real:
            sets["floor"] = self._real[f"train_{way[-1]}"]
        usable = {name: each for name, each in sets.items() if min(len(each), len(real)) > 1}
        return {
            "kernel": {name: distances.measure_kernel(each, real) for name, each in usable.items()},
            "frechet": {
                name: distances.measure_frechet(each, real) for name, each in usable.items()
            },
        }

    @torch.no_grad()
    def _translate(
        self, pair: DomainPair, way: Direction, files: Sequence[Path]
    ) -> tuple[Tensor | None, Tensor]:
        """Return the features of translations, if there is an extractor, and the cycles' errors."""
        back: Direction = "b2a" if way == "a2b" else "a2b"
        found, cycles = [], []
        with progress.bar(total=len(files), desc=f"translating {way}", unit="image") as bar:
            for x in self._read(way[0], files):
                with evaluating(pair):
                    y = pair.translate(x, way)
                    cycles.append(similarity.l1(pair.translate(y, back), x).cpu())
                if self._extractor is not None:
                    found.append(self._extractor(y))
                bar.update(len(x))
        return torch.cat(found) if found else None, torch.cat(cycles)

    @torch.no_grad()
    def _diversity(self, pair: StyledPair, way: Direction, files: Sequence[Path]) -> Scores:
        values: dict[str, list[Tensor]] = defaultdict(list)
        first = 0
        codes = pair.random_styles(2 * DRAWS * len(files), seed=0).unflatten(0, (len(files), 2, -1))
        with progress.bar(total=len(files), desc=f"styles of {way}", unit="image") as bar:
            for x in self._read(way[0], files):
                for draw in range(DRAWS):
                    styles = codes[first : first + len(x), :, draw].unbind(1)
                    with evaluating(pair):
                        one, other = (pair.translate(x, way, style) for style in styles)
                    values["l1"].append(similarity.l1(one, other).cpu())
                    if self._extractor is not None:
                        apart = self._extractor.distance(one, other)
                        if apart is not None:
                            values["features"].append(apart.cpu())
                first += len(x)
                bar.update(len(x))
        return {name: distances.mean(torch.cat(parts)) for name, parts in values.items()}

    def _add_pairs(self, pair: DomainPair, scores: Scores, rankings: dict[str, Ranking]) -> None:
        values: dict[tuple[str, str, str], list[Tensor]] = defaultdict(list)
        files: dict[str, list[Path]] = defaultdict(list)
        measures = dict(_PER_IMAGE)

        def observe(
            way: Direction, kind: str, images: Tensor, truth: Tensor, pairs: held_out.Pairs
        ) -> None:
            for name, measure in measures.items():
                values[way, kind, name].append(measure(images, truth).cpu())
            if self._extractor is not None:
                apart = self._extractor.distance(images, truth)
                if apart is not None:
                    values[way, kind, "features"].append(apart)
            if kind == "paired":
                files[way] += [each[DIRECTIONS.index(way)] for each in pairs]

        args = (self._pairs, self._domains, self._config, self._device)
        figures = evaluate.measure(pair, *args, observe=observe)
        for way in DIRECTIONS:
            kinds: Scores = defaultdict(dict)
            for (direction, kind, name), parts in values.items():
                if direction == way:
                    kinds[kind][name] = distances.mean(torch.cat(parts))
            scores[way]["pairs"] = {"count": len(self._pairs), **kinds, "figures": figures[way]}
            rankings[way] = _ranking(torch.cat(values[way, "paired", "l1"]), files[way])

    def _features(self, name: str, files: Sequence[Path]) -> Tensor:
        assert self._extractor is not None
        return features.of_all(self._extractor, self._read(name, files))

    def _read(self, name: str, files: Sequence[Path]) -> Iterator[Tensor]:
        config = self._config
        crop = config.crop if config.data.test_crop == "center" else None
        return held_out.read(files, config.domain(name), config, crop, self._device)


def plain(value: Any) -> Any:
    """Return scores as values for JSON: a `Measured` becomes {"value": ..., "margin": ...}."""
    if isinstance(value, Measured):
        return value._asdict()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value


def _ranking(errors: Tensor, files: Sequence[Path]) -> Ranking:
    return sorted(zip(errors.tolist(), files, strict=True))
