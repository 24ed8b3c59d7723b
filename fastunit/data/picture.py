"""An image file with what belongs to its pixels: alpha, colour profile and EXIF data."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from fastunit.common.choices import Profile
from fastunit.common.errors import DataError
from fastunit.data import exact, image_io, profiles
from fastunit.data.image_io import Reading

# What remains true of a translation; sizes, thumbnails and the file's own layout do not.
_IMAGE_TAGS = (270, 271, 272, 305, 306, 315, 316, 18246, 33432, *range(40091, 40096))
_DETAILS, _GPS = 0x8769, 0x8825
_SIZES = (0xA002, 0xA003, 0xA005)  # width, height and a folder of offsets


@dataclass(frozen=True)
class Wanted:
    """What is read beside the pixels.

    `profile`: "convert" brings the pixels to sRGB, "keep" leaves them as they are and reads the
    profile, "ignore" leaves them and does not. `alpha` and `exif`: whether they are read.
    """

    profile: Profile = "convert"
    alpha: bool = False
    exif: bool = False


@dataclass(frozen=True)
class Picture:
    """The pixels of an image, upright: [H, W, C] of uint8, or of float32 in [-1, 1].

    `alpha` is uint8 [H, W], None: all opaque; `profile` and `exif` are as in files, b"": none.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes = b""
    exif: bytes = b""


def read(data: bytes, reading: Reading, wanted: Wanted) -> Picture:
    """Decode a file's bytes, as `exact.decode`, with what is wanted beside its pixels.

    Of floating colours and of other than 1 or 3 channels, pixels alone are read. Pixels that are
    converted to sRGB are Pillow's: those of a JPEG may differ from DALI's by a few levels before
    the conversion.

    Raises:
        DataError: the file cannot be decoded; with the reason.
    """
    pixels = exact.decode(data, reading, deep=True)
    if exact.is_array(data, reading):
        return Picture(pixels)
    with Image.open(io.BytesIO(data), formats=image_io.FORMATS) as image:
        if wanted.profile == "convert" and profiles.applies(image):
            if pixels.dtype != np.uint8:
                raise DataError(
                    "its colour profile is not sRGB, and is converted with 8 bits only; keep it, "
                    "or leave it out (--profile keep or ignore)"
                )
            image.load()
            pixels = image_io.from_image(image, reading)
        return Picture(
            pixels,
            _alpha(image) if wanted.alpha and image.has_transparency_data else None,
            image.info.get("icc_profile", b"") if wanted.profile == "keep" else b"",
            _exif(image.getexif()) if wanted.exif else b"",
        )


def _alpha(image: Image.Image) -> np.ndarray | None:
    """Return a transparency as uint8 [H, W], upright; None if all is opaque."""
    upright = ImageOps.exif_transpose(image)
    alpha = upright if upright.mode in ("RGBA", "LA") else upright.convert("RGBA")
    values = np.asarray(alpha.getchannel("A"))
    return None if values.min(initial=255) == 255 else values


def _exif(exif: Image.Exif) -> bytes:
    """Return the data of an upright image of any size: without thumbnail, orientation and sizes."""
    kept = Image.Exif()
    for tag in _IMAGE_TAGS:
        if tag in exif:
            kept[tag] = exif[tag]
    for folder in (_DETAILS, _GPS):
        tags = {tag: value for tag, value in exif.get_ifd(folder).items() if tag not in _SIZES}
        if tags:
            kept[folder] = tags
    return kept.tobytes() if len(kept) else b""
