"""Sample grids: labelled rows of images in one PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fastunit.common import files

GAP = 4  # pixels between images
LABEL = 20  # height of a row's label
_LAYOUT = "fastunit rows"  # key of the PNG's text: label -> y, width, height, number of images
SMALLEST = 64  # smaller images are enlarged to at least this height


def save_grid(rows: Mapping[str, Tensor], path: Path) -> None:
    """Write a PNG with one labelled row of images per entry, atomically.

    Each entry is [N, C, H, W] in [-1, 1], on any device; sizes may differ between
    rows. Small images are enlarged by a whole factor to a height of `SMALLEST` or more.
    """
    draw_grid({label: to_pixels(images).cpu().numpy() for label, images in rows.items()}, path)


def to_pixels(images: Tensor) -> Tensor:
    """Return [N, C, H, W] in [-1, 1] as uint8 [N, H, W, 3] on the same device.

    Of two channels the first is shown as gray, of more than three the first three as colours.
    """
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    pixels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


def draw_grid(rows: Mapping[str, np.ndarray], path: Path) -> None:
    """As `save_grid`, for rows of uint8 [N, H, W, 3]; runs no PyTorch operation."""
    strips = [(label, _strip(pixels)) for label, pixels in rows.items()]
    width = max(strip.width for _, strip in strips) + 2 * GAP
    height = sum(strip.height + LABEL + GAP for _, strip in strips) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen, font, y = ImageDraw.Draw(sheet), ImageFont.load_default(14), GAP
    layout: dict[str, list[int]] = {}
    for label, strip in strips:
        pen.text((GAP, y), label, fill="black", font=font)
        sheet.paste(strip, (GAP, y + LABEL))
        count = len(rows[label])
        layout[label] = [y + LABEL, (strip.width + GAP) // count - GAP, strip.height, count]
        y += strip.height + LABEL + GAP
    note = PngInfo()
    note.add_text(_LAYOUT, json.dumps(layout))
    with files.atomic(path) as temporary:
        sheet.save(temporary, pnginfo=note)


def cells(path: Path) -> dict[str, list[Image.Image]]:
    """Return a grid's images by the labels of their rows; empty for a file of another origin."""
    with Image.open(path) as sheet:
        layout = json.loads(sheet.info.get(_LAYOUT, "{}"))
        return {
            label: [
                sheet.crop((x, y, x + width, y + height))
                for x in range(GAP, GAP + count * (width + GAP), width + GAP)
            ]
            for label, (y, width, height, count) in layout.items()
        }


def _strip(pixels: np.ndarray) -> Image.Image:
    """Return images side by side as one image."""
    count, height, width, _ = pixels.shape
    scale = max(1, math.ceil(SMALLEST / height))
    strip = Image.new("RGB", (count * (width * scale + GAP) - GAP, height * scale), "white")
    for index, image in enumerate(pixels):
        large = Image.fromarray(np.repeat(np.repeat(image, scale, 0), scale, 1))
        strip.paste(large, (index * (width * scale + GAP), 0))
    return strip
