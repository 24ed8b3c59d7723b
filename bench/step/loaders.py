"""Baseline of the data pipeline: Pillow in worker processes of a DataLoader.

As in the 2018 release: decode, resize of the shorter side, crop, flip and normalization, image by
image on the CPU. Unlike the release, it does not restart the processes between epochs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

ENDLESS = 2**40  # images


class PillowImages(Dataset):
    """Images for training: float32 [3, H, W] in [-1, 1], cropped and flipped at random.

    Args:
        files: the files of a domain.
        crop: (height, width).
        new_size: length of the shorter side before the crop, in pixels.
    """

    def __init__(self, files: Sequence[Path], crop: tuple[int, int], new_size: int) -> None:
        self.files, self.crop, self.new_size = list(files), crop, new_size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as file:
            image = file.convert("RGB")
        scale = self.new_size / min(image.size)
        size = [max(self.new_size, round(scale * side)) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
        height, width = self.crop
        left = random.randint(0, image.width - width)
        top = random.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div_(127.5).sub_(1)


def pillow_batches(
    files: Sequence[Path],
    *,
    batch_size: int,
    crop: tuple[int, int],
    new_size: int,
    device: torch.device,
    workers: int,
) -> Iterator[Tensor]:
    """Yield batches endlessly, float32 [N, 3, H, W] in [-1, 1] on `device`.

    Read by `workers` processes; every file once per epoch, in random order.
    """
    dataset, gpu = PillowImages(files, crop, new_size), device.type == "cuda"
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=RandomSampler(dataset, num_samples=ENDLESS),
        num_workers=workers,
        pin_memory=gpu,
        drop_last=True,
    )
    for images in loader:
        yield images.to(device, non_blocking=gpu)
