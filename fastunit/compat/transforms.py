"""Preparation of images as the release asks torchvision for it; no torchvision is needed.

`Compose`, `Resize`, `ToTensor` and the others have torchvision's names and arguments, for scripts
that import them from `torchvision.transforms`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Compose:
    """Apply transforms one after the other."""

    def __init__(self, transforms: Iterable[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize:
    """Resize a Pillow image: its shorter side to a number, or to (height, width); bilinear."""

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        if not isinstance(self.size, int):
            height, width = self.size
        else:
            short = min(image.size)
            width, height = (int(side * self.size / short) for side in image.size)
        return image.resize((width, height), Image.Resampling.BILINEAR)


class _Crop:
    def __init__(self, size: int | Sequence[int]) -> None:
        self.height, self.width = (size, size) if isinstance(size, int) else size

    def __call__(self, image: Image.Image) -> Image.Image:
        room = image.width - self.width, image.height - self.height
        if min(room) < 0:
            raise ValueError(
                f"an image of {image.height}x{image.width} is smaller than the crop "
                f"{self.height}x{self.width}"
            )
        left, top = map(self._place, room)
        return image.crop((left, top, left + self.width, top + self.height))

    def _place(self, room: int) -> int:
        raise NotImplementedError


class RandomCrop(_Crop):
    """Crop to (height, width) at a place drawn from PyTorch's generator."""

    def _place(self, room: int) -> int:
        return int(torch.randint(room + 1, ()))


class CenterCrop(_Crop):
    """Crop the middle to (height, width)."""

    def _place(self, room: int) -> int:
        return round(room / 2)


class RandomHorizontalFlip:
    """Mirror with a probability, drawn from PyTorch's generator."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if float(torch.rand(())) >= self.p:
            return image
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


class ToTensor:
    """Return an image as float32 [C, H, W] in [0, 1]."""

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.array(image, dtype=np.float32) / 255
        return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


class Normalize:
    """Subtract the channels' means and divide by their deviations."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(each)[:, None, None] for each in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


def make_grid(
    tensor: Tensor | Sequence[Tensor], nrow: int = 8, padding: int = 2, normalize: bool = False
) -> Tensor:
    """Return images [N, C, H, W] side by side, `nrow` a row, as [3, rows, columns]."""
    images = tensor if isinstance(tensor, Tensor) else torch.stack(list(tensor))
    images = (images if images.dim() == 4 else images[None]).detach().float().cpu()
    images = images.expand(-1, 3, -1, -1)
    if normalize:
        low, high = images.min(), images.max()
        images = (images - low) / (high - low).clamp(min=1e-5)
    columns = min(nrow, len(images))
    height, width = (side + padding for side in images.shape[2:])
    rows = -(-len(images) // columns)
    sheet = images.new_zeros(3, rows * height + padding, columns * width + padding)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = row * height + padding, column * width + padding
        sheet[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return sheet


def save_image(tensor: Tensor | Sequence[Tensor], filename: Any, **grid: Any) -> None:
    """Write images in [0, 1], arranged by `make_grid`, to a file."""
    sheet = make_grid(tensor, **grid).clamp(0, 1).mul(255).round().byte()
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(filename)
