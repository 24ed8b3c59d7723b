"""The data of a run of adaptation: labelled source, unlabelled target, and both test splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastunit.common.errors import DataError
from fastunit.digits import datasets
from fastunit.digits.images import deform, normalised, prepare
from fastunit.digits.objective import Settings
from fastunit.digits.step import SOURCE, TARGET

SHIFTED = "shifted"  # the target made of source images
SHIFT = {"rotation": 15.0, "stretch": 0.2, "shear": 0.3, "shift": 2.0}  # how they are deformed
FRAMED = ("mnist", "usps")  # others are photographs, whose whole frame is used


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, C, 32, 32] and labels int64 [N]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """The data of a run; `target` has no labels, so that training cannot read them.

    held_out: training images of the source that are not in `source`; None where there are none.
    """

    source: Split
    target: Tensor
    tests: dict[str, Split]  # by domain, SOURCE and TARGET
    channels: int
    names: dict[str, str]
    held_out: Split | None = None


def load_task(
    folder: Path, source: str, target: str, settings: Settings, device: torch.device
) -> Task:
    """Read both data sets, and bring them to 32x32 pixels and to the same number of channels.

    Gray images are repeated where the other domain's have 3 channels. The target SHIFTED is what is
    held out of the source, deformed by SHIFT: a half to train on and a half to test with, so that
    settings can be chosen without any other data set.

    Raises:
        DataError: source and target are the same, or files are missing or damaged.
    """
    if source == target:
        raise DataError(f"--source and --target are both {source}; choose two data sets")
    names = {SOURCE: source, TARGET: target}
    sets = [name for name in names.values() if name != SHIFTED]
    channels = max(datasets.SHAPES[name][2] for name in sets)
    read = {
        (name, split): _split(folder, name, split, channels, settings, device)
        for name in sets
        for split in datasets.SPLITS
    }
    trained, held_out = _parted(read[source, "train"], settings.holdout)
    if target == SHIFTED:
        read[SHIFTED, "train"], read[SHIFTED, "test"] = _shifted(held_out)
    return Task(
        source=trained,
        held_out=held_out,
        target=read[target, "train"].images,
        tests={domain: read[name, "test"] for domain, name in names.items()},
        channels=channels,
        names=names,
    )


def _parted(split: Split, share: float) -> tuple[Split, Split | None]:
    """Return a split without a share of it, the same for all seeds, and that share."""
    count = round(share * len(split.labels))
    if not count:
        return split, None
    if count == len(split.labels):
        raise DataError(f"holdout={share} leaves none of the source's {count} training images")
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(0))
    rest, held = order[count:], order[:count]
    rest, held = (Split(split.images[index], split.labels[index]) for index in (rest, held))
    return rest, held


def _shifted(held_out: Split | None) -> tuple[Split, Split]:
    if held_out is None or len(held_out.labels) < 2:
        raise DataError(
            f"--target {SHIFTED} is made of two or more held-out images of the source; give their "
            "share, for instance --set holdout=0.2"
        )
    generator = torch.Generator().manual_seed(0)
    moved = deform(normalised(held_out.images), **SHIFT, generator=generator)
    images = ((moved + 1) * 127.5).round().byte()
    half = len(held_out.labels) // 2
    return (
        Split(images[:half], held_out.labels[:half]),
        Split(images[half:], held_out.labels[half:]),
    )


def _split(
    folder: Path, name: str, split: str, channels: int, settings: Settings, device: torch.device
) -> Split:
    digits = datasets.load(folder, name, split)
    geometry = settings.geometry if name in FRAMED else "frame"
    images = prepare(torch.from_numpy(digits.images), geometry).expand(-1, channels, -1, -1)
    return Split(images.contiguous().to(device), torch.from_numpy(digits.labels).to(device))
