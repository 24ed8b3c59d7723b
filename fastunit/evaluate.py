"""How far translations are from the truth, where a held-out set of true pairs is at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fastunit.config import Config
from fastunit.data import iter_images
from fastunit.errors import DataError
from fastunit.images import Domains
from fastunit.networks import GeneratorPair

BATCH = 16

Pairs = list[tuple[Path, Path]]
Images = Iterator[torch.Tensor]


def find_pairs(domains: Domains) -> Pairs:
    """Return the test images that show the same thing in both domains, as (a, b) files.

    They are told by equal file names, the suffix aside: when at least nine tenths of both sets
    have a partner, those are the pairs; otherwise the sets are unpaired and the result is empty.
    """
    a, b = ({file.stem: file for file in files} for files in (domains.test_a, domains.test_b))
    names = sorted(a.keys() & b.keys())
    if not names or len(names) < 0.9 * max(len(domains.test_a), len(domains.test_b)):
        return []
    return [(a[name], b[name]) for name in names]


def comparable(config: Config) -> bool:
    """Tell whether images of both domains have one shape, so that they can be subtracted."""
    return config.input_dim_a == config.input_dim_b and config.resize_a() == config.resize_b()


def check_pairs(pairs: Pairs, config: Config) -> None:
    """Raise DataError where whole images are to be compared and a pair's sizes differ."""
    if config.data.test_crop == "center" or not pairs:
        return
    for (file_a, file_b), x_a, x_b in zip(
        pairs, *_both(pairs, config, torch.device("cpu")), strict=True
    ):
        if x_a.shape != x_b.shape:
            sizes = " and ".join("x".join(map(str, x.shape[2:])) for x in (x_a, x_b))
            raise DataError(
                f"{file_a} and {file_b} are a pair by name but of sizes {sizes} (height x width) "
                "after resizing; use data.test_crop=center, or give unpaired files other names"
            )


@torch.no_grad()
def paired_error(
    pair: GeneratorPair, pairs: Pairs, config: Config, device: torch.device
) -> dict[str, dict[str, float]]:
    """Return, for "a2b" and "b2a", the mean absolute difference from the true image.

    ``paired_l1`` is the translation's, ``identity_l1`` that of the input left as it is; both on
    the [-1, 1] scale, averaged over all values of an image, then over images.
    """
    sums = {"a2b": [0.0, 0.0], "b2a": [0.0, 0.0]}
    for x_a, x_b in zip(*_both(pairs, config, device), strict=True):
        for direction, x, truth in (("a2b", x_a, x_b), ("b2a", x_b, x_a)):
            translated = pair.translate(x, direction)
            for slot, image in enumerate((translated, x)):
                error = (image.double() - truth.double()).abs().mean((1, 2, 3)).sum()
                sums[direction][slot] += error.item()
    return {
        direction: {"paired_l1": paired / len(pairs), "identity_l1": identity / len(pairs)}
        for direction, (paired, identity) in sums.items()
    }


def _both(pairs: Pairs, config: Config, device: torch.device) -> tuple[Images, Images]:
    files_a, files_b = zip(*pairs, strict=True)
    return (
        held_out(files_a, "a", config, device),
        held_out(files_b, "b", config, device),
    )


def crops(files: Sequence[Path], domain: str, config: Config, device: torch.device) -> Images:
    """Yield the centre crops of a domain's files in batches."""
    return _read(files, domain, config, device, config.crop)


def held_out(files: Sequence[Path], domain: str, config: Config, device: torch.device) -> Images:
    """Yield test images of a domain as `data.test_crop` says: centre crops, or whole images."""
    center = config.data.test_crop == "center"
    return _read(files, domain, config, device, config.crop if center else None)


def _read(
    files: Sequence[Path],
    domain: str,
    config: Config,
    device: torch.device,
    crop: tuple[int, int] | None,
) -> Images:
    return iter_images(
        files,
        channels=config.input_dim_a if domain == "a" else config.input_dim_b,
        batch_size=BATCH,
        crop=crop,
        new_size=config.resize_a() if domain == "a" else config.resize_b(),
        device=device,
        threads=config.num_workers,
    )
