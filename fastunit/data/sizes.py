"""The size of images, from their files' headers alone."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from PIL import Image

from fastunit.common.errors import DataError
from fastunit.data.image_io import FORMATS, NOT_AN_IMAGE, content
from fastunit.data.image_kinds import is_webp, webp_size

SAMPLED = 32  # files that are opened
_BY_PILLOW = [name for name in FORMATS if name != "WEBP"]  # whose headers it reads in Python


def shorter_side(files: Sequence[Path]) -> int:
    """Return the median shorter side of images, of a sample of them; 0 if none can be read."""
    sides = []
    for file in files[:: max(1, len(files) // SAMPLED)]:
        try:
            sides.append(min(_size(content(file))))
        except DataError:  # the check of all files tells why
            continue
    return round(median(sides)) if sides else 0


def _size(data: bytes) -> tuple[int, int]:
    """Return the width and height that a header claims; no native decoder sees the file."""
    if is_webp(data):
        if size := webp_size(data):
            return size
        raise DataError(NOT_AN_IMAGE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels
            with Image.open(io.BytesIO(data), formats=_BY_PILLOW) as image:
                return image.size
    except Exception as error:  # Pillow's plugins raise a dozen exception types
        raise DataError(NOT_AN_IMAGE) from error
