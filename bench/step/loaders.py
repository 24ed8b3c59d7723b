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


class PillowPictures(Dataset):
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
            picture = file.convert("RGB")
        scale = self.new_size / min(picture.size)
        size = [max(self.new_size, round(scale * side)) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        height, width = self.crop
        left = random.randint(0, picture.width - width)
        top = random.randint(0, picture.height - height)
        picture = picture.crop((left, top, left + width, top + height))
        if random.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
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
    pictures, gpu = PillowPictures(files, crop, new_size), device.type == "cuda"
    loader = DataLoader(
        pictures,
        batch_size,
        sampler=RandomSampler(pictures, num_samples=ENDLESS),
        num_workers=workers,
        pin_memory=gpu,
        drop_last=True,
    )
    for images in loader:
        yield images.to(device, non_blocking=gpu)
