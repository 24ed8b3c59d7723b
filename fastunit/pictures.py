"""One picture from a file, one picture to a file, by Pillow."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastunit.errors import DataError
from fastunit.files import atomic

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # others would even run programs (EPS)
NOT_AN_IMAGE = f"not an image of the formats {', '.join(FORMATS)}, or its header is damaged"
_MODES = {1: "L", 3: "RGB"}
_JPEG = {"quality": 95, "subsampling": 0}
_OPTIONS = {".jpg": _JPEG, ".jpeg": _JPEG, ".webp": {"lossless": True}}


def read(file: Path, channels: int) -> np.ndarray:
    """Return a file's picture as uint8 [H, W, channels], upright by its EXIF orientation.

    As in training: 1 channel is the luminance, 3 are RGB (equal ones for a grayscale file), alpha
    is dropped, not blended, and 16-bit or 0..1 floating grayscale is brought to 8 bits. Of several
    frames or pages the first is read.

    Raises DataError, with a reason that does not repeat the name, when it cannot be read.
    """
    # From memory: Pillow 13 scrambles rotated grayscale TIFFs that it maps from a file itself.
    stream = io.BytesIO(content(file))
    try:
        with Image.open(stream, formats=FORMATS) as image:
            picture = _eight_bits(ImageOps.exif_transpose(image))
            # By way of RGBA: Pillow warns where a palette's transparency is dropped directly.
            values = np.asarray(picture.convert("RGBA").convert(_MODES[channels]))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(NOT_AN_IMAGE) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"too large: {error}") from error
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged files
        raise DataError(f"damaged or truncated: {error}") from error
    return values.reshape(*values.shape[:2], channels)


def write(picture: np.ndarray, file: Path) -> None:
    """Write uint8 [H, W, 1 or 3] atomically, in the format of the file's extension.

    JPEG has quality 95 and full colour resolution; all other formats are lossless.

    Raises: DataError when the format cannot hold the picture (WebP ends at 16383 pixels a side);
        OSError when the disk refuses it.
    """
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    try:
        with atomic(file) as temporary:
            image.save(temporary, **_OPTIONS.get(file.suffix.lower(), {}))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        size = f"{image.width}x{image.height} pixels"
        raise DataError(f"{size} cannot be written as {file.suffix}: {error}") from error


def content(file: Path) -> bytes:
    """Return a picture file's bytes; raises DataError with a reason, without the name."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would block for ever
            raise DataError("a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        data = file.read_bytes()
    except OSError as error:
        dangling = isinstance(error, FileNotFoundError) and file.is_symlink()
        reason = "a link to a file that does not exist" if dangling else str(error.strerror)
        raise DataError(reason) from error
    if not data:
        raise DataError("empty: zero bytes")
    return data


def _eight_bits(image: Image.Image) -> Image.Image:
    """Rescale the modes of more than 8 bits, which Pillow's own conversions would clip."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.uint8(np.round(np.asarray(image) / 257)))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN fails too
            raise DataError(f"floating values {values.min()}..{values.max()} are not in 0..1")
        return Image.fromarray(np.uint8(np.round(values * 255)))
    if image.mode == "I":
        raise DataError("32-bit or signed integers; save it with 8 or 16 bits")
    return image
