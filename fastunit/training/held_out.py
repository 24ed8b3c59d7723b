"""Held-out images: finding true pairs, choosing images for sample grids, reading them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fastunit.common import text
from fastunit.common.spread import spread
from fastunit.config import Config, Domain
from fastunit.data import passed
from fastunit.data.discovery import Domains
from fastunit.data.image_io import reading_of
from fastunit.data.pipeline import iter_images
from fastunit.data.validation import SizeRule

BATCH = 16

Pairs = list[tuple[Path, Path]]
Images = Iterator[torch.Tensor]
_logger = logging.getLogger(__name__)


def find_pairs(domains: Domains, config: Config) -> Pairs:
    """Return the test images that show the same scene in both domains, as (a, b) files.

    Pairs have equal paths below testA and testB, without the suffix. The result is empty unless
    at least nine tenths of both sets have a partner, and if the domains' channels or the sizes of
    a pair after resizing differ.
    """
    a, b = _by_path(domains.test_a), _by_path(domains.test_b)
    names = sorted(a.keys() & b.keys())
    if not names or len(names) < 0.9 * max(len(a), len(b)):
        return []
    pairs = [(a[name], b[name]) for name in names]
    return pairs if _comparable(pairs, config) else []


def shown_images(
    domains: Domains, config: Config, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the centre crops for the sample grids, [N, C, H, W] of each domain.

    Test images, or training images if there is no test set; at most `display_size`, equally many
    of both domains, spread over the set: neighbours in a folder are often nearly the same.
    """
    if domains.test_a and domains.test_b:
        chosen = domains.test_a, domains.test_b
    else:
        chosen = domains.train_a, domains.train_b
    count = min(config.display_size, *map(len, chosen))
    x_a, x_b = (
        torch.cat(
            list(read(spread(files, count), config.domain(name), config, config.crop, device))
        )
        for files, name in zip(chosen, "ab", strict=True)
    )
    return x_a, x_b


def _by_path(files: Sequence[Path]) -> dict[str, Path]:
    if not files:
        return {}
    root = os.path.commonpath([file.parent for file in files])
    return {str(file.relative_to(root).with_suffix("")): file for file in files}


def _comparable(pairs: Pairs, config: Config) -> bool:
    """Return whether the images of pairs can be subtracted; logs a warning if they cannot."""
    if config.input_dim_a != config.input_dim_b:
        _logger.warning("no held-out error: the domains have different channels")
        return False
    for pair in pairs:
        sizes = [_resized(file, name, config) for file, name in zip(pair, "ab", strict=True)]
        if sizes[0] != sizes[1]:
            _logger.warning(
                "no held-out error: %s and %s are a pair by name, but %s pixels after resizing",
                *(*map(text.name, pair), " and ".join(f"{h}x{w}" for h, w in sizes)),
            )
            return False
    return True


def _resized(file: Path, name: str, config: Config) -> tuple[int, int]:
    """Return a file's height and width after resizing; it is decoded only if it was not checked."""
    size = passed.size(file)
    if size is None:
        (image,) = read([file], config.domain(name), config, None, torch.device("cpu"))
        return image.shape[2], image.shape[3]
    return SizeRule(config.domain(name).new_size, None).resized(*size)


def read(
    files: Sequence[Path],
    domain: Domain,
    config: Config,
    crop: tuple[int, int] | None,
    device: torch.device,
) -> Images:
    """Yield images of one domain in batches [N, C, H, W], cropped at the centre.

    With `crop` None images are uncropped, one per batch, as they may differ in size.
    """
    return iter_images(
        files,
        channels=domain.channels,
        batch_size=BATCH,
        crop=crop,
        new_size=domain.new_size,
        device=device,
        threads=config.threads,
        value_range=domain.value_range,
        limits=reading_of(config, domain.name).limits,
        loader=config.data.loader,
    )
