"""How far translations are from the truth, where a held-out set of true pairs is at hand."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fastunit.config import Config, Domain
from fastunit.coupled import Translator, evaluating
from fastunit.data import iter_images
from fastunit.sources import Domains

BATCH = 16

Pairs = list[tuple[Path, Path]]
Images = Iterator[torch.Tensor]
_logger = logging.getLogger(__name__)


def find_pairs(domains: Domains, config: Config) -> Pairs:
    """Return the test images that show the same thing in both domains, as (a, b) files.

    They are told by equal paths below testA and testB, the suffix aside: when at least nine
    tenths of both sets have a partner, those are the pairs. Otherwise, or where the domains'
    channels, or a pair's sizes after resizing, differ, the result is empty.
    """
    a, b = _by_path(domains.test_a), _by_path(domains.test_b)
    names = sorted(a.keys() & b.keys())
    if not names or len(names) < 0.9 * max(len(a), len(b)):
        return []
    pairs = [(a[name], b[name]) for name in names]
    return pairs if _comparable(pairs, config) else []


@torch.no_grad()
def error(
    pair: Translator, pairs: Pairs, config: Config, device: torch.device
) -> dict[str, dict[str, float]]:
    """Return, for "a2b" and "b2a", the mean absolute difference from the true image.

    ``paired_l1`` is the translation's, ``identity_l1`` that of the input left as it is; both on
    the [-1, 1] scale, averaged over all values of an image, then over images.
    """
    sums = {"a2b": [0.0, 0.0], "b2a": [0.0, 0.0]}
    crop = config.crop if config.data.test_crop == "center" else None
    for x_a, x_b in zip(*_both(pairs, config, crop, device), strict=True):
        for direction, x, truth in (("a2b", x_a, x_b), ("b2a", x_b, x_a)):
            with evaluating(pair):
                translated = pair.translate(x, direction)
            for slot, image in enumerate((translated, x)):
                difference = (image.double() - truth.double()).abs()
                sums[direction][slot] += difference.mean((1, 2, 3)).sum().item()
    return {
        direction: {"paired_l1": paired / len(pairs), "identity_l1": identity / len(pairs)}
        for direction, (paired, identity) in sums.items()
    }


def shown_images(
    domains: Domains, config: Config, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the centre crops for the sample grids, [N, C, H, W] of each domain.

    Test images, or training ones without a test set; `display_size` at most, as many of each
    domain as both have.
    """
    if domains.test_a and domains.test_b:
        chosen = domains.test_a, domains.test_b
    else:
        chosen = domains.train_a, domains.train_b
    count = min(config.display_size, *map(len, chosen))
    x_a, x_b = (
        torch.cat(list(_read(files[:count], config.domain(name), config, config.crop, device)))
        for files, name in zip(chosen, "ab", strict=True)
    )
    return x_a, x_b


def _by_path(files: Sequence[Path]) -> dict[str, Path]:
    if not files:
        return {}
    root = os.path.commonpath([file.parent for file in files])
    return {str(file.relative_to(root).with_suffix("")): file for file in files}


def _comparable(pairs: Pairs, config: Config) -> bool:
    """Tell whether images of a pair can be subtracted; a warning says why they cannot."""
    if config.input_dim_a != config.input_dim_b:
        _logger.warning("no paired error: the domains have different channels")
        return False
    images = zip(pairs, *_both(pairs, config, None, torch.device("cpu")), strict=True)
    for (file_a, file_b), x_a, x_b in images:
        if x_a.shape != x_b.shape:
            sizes = " and ".join("x".join(map(str, x.shape[2:])) for x in (x_a, x_b))
            _logger.warning(
                "no paired error: %s and %s are a pair by name, but %s pixels after resizing",
                *(file_a, file_b, sizes),
            )
            return False
    return True


def _both(
    pairs: Pairs, config: Config, crop: tuple[int, int] | None, device: torch.device
) -> tuple[Images, Images]:
    files_a, files_b = zip(*pairs, strict=True)
    return (
        _read(files_a, config.domain("a"), config, crop, device),
        _read(files_b, config.domain("b"), config, crop, device),
    )


def _read(
    files: Sequence[Path],
    domain: Domain,
    config: Config,
    crop: tuple[int, int] | None,
    device: torch.device,
) -> Images:
    return iter_images(
        files,
        channels=domain.channels,
        batch_size=BATCH,
        crop=crop,
        new_size=domain.new_size,
        device=device,
        threads=config.num_workers,
        value_range=domain.value_range,
    )
