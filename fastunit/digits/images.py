"""Digits as the networks take them: 32x32 pixels in [-1, 1], in batches, randomly deformed.

Data sets frame their digits differently. MNIST's lie in a box of 20x20 pixels whose centre of mass
is that of a 28x28 image, while USPS's fill their 16x16 image. `prepare` undoes that, by the size of
the images ("pad") or by each image's own pixels ("box"); neither needs labels.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.digits.networks import SIZE
from fastunit.kernels.common import checks

Geometry = Literal["box", "frame", "pad"]
GEOMETRIES = get_args(Geometry)
MARGINED, FILLED = 28, 20  # MNIST's image, and the box in it that its digits fill
BOX = 24  # pixels that a digit's longer side gets under "box"
INK = 64  # from this of 255 on, a pixel belongs to the digit
_CHUNK = 4096  # images at a time


def prepare(images: Tensor, geometry: Geometry) -> Tensor:
    """Bring uint8 images [N, C, H, W] of a data set to uint8 [N, C, 32, 32].

    Args:
        images: uint8 [N, C, H, W].
        geometry: "frame" resizes the whole image. "pad" first gives it MNIST's margin: unless it
            has 28x28 pixels, it is scaled, its shape kept, to 20 pixels on the longer side, and
            centred on black in 28x28. "box" finds the smallest box around the pixels of 64 and
            more (in any channel), scales it, its shape kept, to 24 pixels on the longer side, and
            centres it on black; an image without such pixels is resized as a whole. All are
            bilinear.

    Raises:
        ValueError: another geometry.
    """
    checks.choice("geometry", geometry, GEOMETRIES)
    if geometry == "frame" and images.shape[2:] == (SIZE, SIZE):
        return images
    place = _box_map if geometry == "box" else _frame_map
    margin = _margined if geometry == "pad" else torch.Tensor.float
    parts = (margin(part) for part in images.split(_CHUNK))
    return torch.cat([_sample(part, place(part)) for part in parts])


def _sample(images: Tensor, maps: Tensor) -> Tensor:
    grid = F.affine_grid(maps, [len(images), 1, SIZE, SIZE], align_corners=False)
    mode = {"padding_mode": "zeros", "align_corners": False}
    return F.grid_sample(images, grid, **mode).round().byte()


def _margined(images: Tensor) -> Tensor:
    """Return images that fill their frame in MNIST's, float [N, C, 28, 28]; MNIST's own stay."""
    images, (height, width) = images.float(), images.shape[2:]
    if height == width == MARGINED:
        return images
    longer = max(height, width)
    size = [max(1, round(FILLED * length / longer)) for length in (height, width)]
    images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    top, left = ((MARGINED - length) // 2 for length in size)
    edges = (left, MARGINED - size[1] - left, top, MARGINED - size[0] - top)
    return F.pad(images, edges)


def _frame_map(images: Tensor) -> Tensor:
    return torch.eye(2, 3).repeat(len(images), 1, 1)


def _box_map(images: Tensor) -> Tensor:
    """Return affine maps [N, 2, 3] from the result's coordinates to the image's, for grid_sample.

    Both run from -1 to 1 over an image's width and height.
    """
    ink = (images >= INK).any(1)
    maps = torch.zeros(len(images), 2, 3)
    (x0, x1), (y0, y1) = (_extent(ink.any(dim)) for dim in (1, 2))
    longer = torch.maximum(x1 - x0, y1 - y0)
    for axis, (low, high) in enumerate(((x0, x1), (y0, y1))):
        length = images.shape[3 - axis]
        maps[:, axis, axis] = longer / length * (SIZE / BOX)
        maps[:, axis, 2] = (low + high) / length - 1
    return torch.where(ink.any((1, 2))[:, None, None], maps, _frame_map(images))


def _extent(ink: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first place with ink of each row [N, length], and the one after the last."""
    marked = ink.float()
    return marked.argmax(1), ink.shape[1] - marked.flip(1).argmax(1)


def normalised(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def deform(
    images: Tensor,
    *,
    rotation: float,
    stretch: float,
    shear: float,
    shift: float,
    generator: torch.Generator,
) -> Tensor:
    """Rotate, stretch, shear and shift each image [N, C, 32, 32] by its own random amounts.

    Args:
        rotation: largest angle, in degrees.
        stretch: largest logarithm of the factor of each axis.
        shear: largest shear.
        shift: largest shift along each axis, in pixels.
        generator: on the CPU; each amount is uniform between its bounds.

    What comes in from outside repeats the image's edge. All zeros return the images themselves.
    """
    if not (rotation or stretch or shear or shift):
        return images
    draw = torch.rand(len(images), 6, generator=generator) * 2 - 1
    angle = draw[:, 0] * math.radians(rotation)
    scale_x, scale_y = (draw[:, 1] * stretch).exp(), (draw[:, 2] * stretch).exp()
    slant, cos, sin = draw[:, 3] * shear, angle.cos(), angle.sin()
    offsets = draw[:, 4:] * (2 * shift / SIZE)
    rows = (
        torch.stack([cos * scale_x, (cos * slant - sin) * scale_y, offsets[:, 0]], 1),
        torch.stack([sin * scale_x, (sin * slant + cos) * scale_y, offsets[:, 1]], 1),
    )
    maps = torch.stack(rows, 1).to(images.device)
    grid = F.affine_grid(maps, [len(images), 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class Stream:
    """Deformed batches in [-1, 1] for ever: all images in one random order after the other.

    Args:
        images: uint8 [N, C, 32, 32].
        size: images of a batch.
        seed: of the order and the deformations.
        amounts: as `deform` takes them.
    """

    def __init__(self, images: Tensor, size: int, seed: int, **amounts: float) -> None:
        self._images, self._size, self._amounts = images, size, amounts
        self._generator = torch.Generator().manual_seed(seed)
        self._left = torch.empty(0, dtype=torch.int64)  # of the order, indices of images

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return a batch, float32 [size, C, 32, 32] in channels_last, and its images' indices."""
        while len(self._left) < self._size:
            order = torch.randperm(len(self._images), generator=self._generator)
            self._left = torch.cat([self._left, order])
        index, self._left = self._left[: self._size], self._left[self._size :]
        x = deform(normalised(self._images[index]), **self._amounts, generator=self._generator)
        return x.contiguous(memory_format=torch.channels_last), index

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands."""
        state = {"left": self._left.clone(), "generator": self._generator.get_state()}
        return state | {"count": len(self._images)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another stood; raises ValueError if that had another number of images."""
        if state["count"] != len(self._images):
            raise ValueError(f"{len(self._images)} images instead of {state['count']}")
        self._left = state["left"].clone()
        self._generator.set_state(state["generator"])
