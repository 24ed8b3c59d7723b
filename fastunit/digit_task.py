"""The data of a run of adaptation: labelled source, unlabelled target, and both test splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastunit import digit_files
from fastunit.adaptation import SOURCE, TARGET
from fastunit.digit_images import prepare
from fastunit.digit_objective import Settings
from fastunit.errors import DataError

FRAMED = ("mnist", "usps")  # others are photographs, whose whole frame is used


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, C, 32, 32] and labels int64 [N]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """The data of a run; `target` has no labels, so that training cannot read them."""

    source: Split
    target: Tensor
    tests: dict[str, Split]  # by domain, SOURCE and TARGET
    channels: int
    names: dict[str, str]


def load_task(
    folder: Path, source: str, target: str, settings: Settings, device: torch.device
) -> Task:
    """Read both data sets, and bring them to 32x32 pixels and to the same number of channels.

    Gray images are repeated where the other domain's have 3 channels. Raises DataError.
    """
    if source == target:
        raise DataError(f"--source and --target are both {source}; choose two data sets")
    names = {SOURCE: source, TARGET: target}
    channels = max(digit_files.SHAPES[name][2] for name in names.values())
    splits = {
        (domain, split): _split(folder, name, split, channels, settings, device)
        for domain, name in names.items()
        for split in digit_files.SPLITS
    }
    return Task(
        source=splits[SOURCE, "train"],
        target=splits[TARGET, "train"].images,
        tests={domain: splits[domain, "test"] for domain in names},
        channels=channels,
        names=names,
    )


def _split(
    folder: Path, name: str, split: str, channels: int, settings: Settings, device: torch.device
) -> Split:
    digits = digit_files.load(folder, name, split)
    geometry = settings.geometry if name in FRAMED else "frame"
    images = prepare(torch.from_numpy(digits.images), geometry).expand(-1, channels, -1, -1)
    return Split(images.contiguous().to(device), torch.from_numpy(digits.labels).to(device))
