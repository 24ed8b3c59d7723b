"""One picture from a file, one picture to a file.

What a file's picture is, is defined here once, for the check before training, for translation and,
because a file is refused whose picture DALI decodes to anything else, for training too. Its values
are 8 bits: 16 bits are scaled by 1/257 (or by the domain's range of values), floating grayscale of
0..1 by 255. It is upright by its EXIF orientation; alpha is dropped, not blended; one channel is
the luminance (of a JPEG the stored one); of several frames or pages it is the first.
"""

from __future__ import annotations

import io
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastunit.common.errors import DataError
from fastunit.common.files import atomic
from fastunit.data.image_kinds import Kind, kind_of

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # others would even run programs (EPS)
NOT_AN_IMAGE = f"not an image of the formats {', '.join(FORMATS)}, or its header is damaged"
_MODES = {1: "L", 3: "RGB"}
_JPEG = {"quality": 95, "subsampling": 0}
_OPTIONS = {".jpg": _JPEG, ".jpeg": _JPEG, ".webp": {"lossless": True}}


@dataclass(frozen=True)
class Reading:
    """How a domain's files become pictures of 8 bits.

    `channels` is 1 or 3. `value_range` (low, high) maps 16-bit values to 0..255 linearly, clipped
    and rounded; None: the whole range of 0..65535. `key` names it in messages.
    """

    channels: int = 3
    value_range: tuple[int, int] | None = None
    key: str = "data.range_a or data.range_b"

    def table(self) -> np.ndarray:
        """Return what each 16-bit value becomes: uint8 [65536]."""
        low, high = self.value_range or (0, 65535)
        levels = np.clip((np.arange(65536) - low) / (high - low), 0, 1) * 255
        return (levels + 0.5).astype(np.uint8)


def read(file: Path, channels: int) -> np.ndarray:
    """Return a file's picture as training sees it: uint8 [H, W, channels].

    Raises:
        DataError: it cannot be read, or is not what training would see; the reason does not repeat
            the name.
    """
    return decode(content(file), Reading(channels))


def decode(data: bytes, reading: Reading) -> np.ndarray:
    """Return the picture of a file's bytes, uint8 [H, W, channels], having DALI agree on it.

    The pixels are DALI's, so those of training to the bit (but for JPEGs decoded on a GPU). Where
    DALI is not installed, and nothing can be trained, they are Pillow's: equal, but for one level
    of rounding in the luminance of colours and in colours of 16 bits.

    Raises:
        DataError: it cannot be read, or decoders disagree; with the reason.
    """
    kind = kind_of(data)
    defined, name = _by_pillow(data, reading.channels)
    if reading.value_range and not kind.deep:
        raise DataError(_not_deep(reading))
    if not dali_installed():
        if reading.value_range:
            raise DataError(f"{reading.key} needs NVIDIA DALI: pip install 'fastunit[train]'")
        return defined
    seen = _by_dali(data, reading.channels, name)
    misread = DataError(f"the loader (DALI) misreads {name}; save it as PNG or JPEG")
    if not _agree(seen, defined, kind):
        raise misread
    if not reading.value_range:
        return seen
    values = sixteen_bits(data, reading.channels)
    if not _agree(np.round(values / 257).astype(np.uint8), seen, kind):
        raise misread
    return reading.table()[values]


def from_image(image: Image.Image, reading: Reading) -> np.ndarray:
    """Return what an image that Pillow holds shows, as of a file: uint8 [H, W, channels].

    The modes that start with I are 16 bits. No second decoder is asked, so that the pixels of a
    JPEG may differ from those that `decode` gives by a few levels. The image is left as it is.

    Raises: DataError with the reason.
    """
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            upright = Image.fromarray(reading.table()[_sixteen_bits_of(upright)])
        elif reading.value_range:
            raise DataError(_not_deep(reading))
        return _pixels(_eight_bits(upright), reading.channels)
    except OSError as error:  # of a file that is read only now
        raise DataError(f"damaged or truncated: {error}") from error


def to_image(picture: np.ndarray) -> Image.Image:
    """Return uint8 [H, W, 1 or 3] as an image of mode L or RGB."""
    return Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)


def sixteen_bits(data: bytes, channels: int) -> np.ndarray:
    """Return the values of a file whose kind is `deep` as DALI reads them: uint16 [H, W, C]."""
    return _by_dali(data, channels, "16 bits", deep=True)


def dali_installed() -> bool:
    """Tell whether DALI can be imported."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return False
    return True


def write(picture: np.ndarray, file: Path) -> None:
    """Write uint8 [H, W, 1 or 3] atomically, in the format of the file's extension.

    JPEG has quality 95 and full colour resolution; all other formats are lossless.

    Raises:
        DataError: the format cannot hold the picture (WebP ends at 16383 pixels a side).
        OSError: the disk refuses it.
    """
    image = to_image(picture)
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


def _by_pillow(data: bytes, channels: int) -> tuple[np.ndarray, str]:
    """Decode in full by Pillow: uint8 [H, W, channels], and the file's format and mode."""
    try:
        # From memory: Pillow 13 scrambles rotated grayscale TIFFs that it maps from a file itself.
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            name = f"{image.format} in mode {image.mode}"
            if image.format == "WEBP" and image.info.get("exif"):
                name += " with EXIF data"
            if channels == 1:
                image.draft("L", image.size)  # of a JPEG: its own luminance, as DALI takes it
            return _pixels(_eight_bits(ImageOps.exif_transpose(image)), channels), name
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(NOT_AN_IMAGE) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"too large: {error}") from error
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged files
        raise DataError(f"damaged or truncated: {error}") from error


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """Return an image of 8 bits as uint8 [H, W, channels], its alpha dropped."""
    # By way of RGBA: Pillow warns where a palette's transparency is dropped directly.
    values = np.asarray(image.convert("RGBA").convert(_MODES[channels]))
    return values.reshape(*values.shape[:2], channels)


def _sixteen_bits_of(image: Image.Image) -> np.ndarray:
    """Return the values of an image of 16 bits, in a type that may be wider."""
    values = np.asarray(image)
    if values.size and not (values.min() >= 0 and values.max() <= 65535):
        raise DataError(f"values {values.min()}..{values.max()} are not of 16 bits (0..65535)")
    return values


def _not_deep(reading: Reading) -> str:
    return (
        f"not of 16 bits, as {reading.key}={list(reading.value_range or ())} expects; save it with "
        "16 bits, or train without that range"
    )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Rescale the modes of more than 8 bits, which Pillow's own conversions would clip."""
    if image.mode.startswith("I"):
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN fails too
            raise DataError(f"floating values {values.min()}..{values.max()} are not in 0..1")
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    return image


def _by_dali(data: bytes, channels: int, name: str, *, deep: bool = False) -> np.ndarray:
    """Return uint8 (uint16 where `deep`) [H, W, channels] as the training loader decodes it."""
    import nvidia.dali.experimental.dynamic as dynamic
    from nvidia.dali import types

    encoded = np.frombuffer(data, np.uint8)
    try:
        tensor = dynamic.decoders.image(
            encoded, device="cpu", **dali_options(channels, deep, types)
        )
        return np.asarray(tensor.cpu())
    except RuntimeError as error:
        raise DataError(
            f"the loader (DALI) cannot decode {name}; save it as PNG or JPEG"
        ) from error


def dali_options(channels: int, deep: bool, types: Any) -> dict[str, Any]:
    """Return the arguments of DALI's decoder, the same for training and for every check."""
    return {
        "output_type": types.RGB if channels == 3 else types.GRAY,
        "dtype": types.UINT16 if deep else types.UINT8,
        "jpeg_fancy_upsampling": True,  # as Pillow; on CPUs DALI does so in any case
    }


def _agree(seen: np.ndarray, defined: np.ndarray, kind: Kind) -> bool:
    """Tell whether two decoders gave one picture, up to the rounding of each."""
    if seen.shape != defined.shape:
        return False
    difference = np.maximum(seen, defined) - np.minimum(seen, defined)
    if kind.lossy:  # decoders of JPEG may differ by a few levels where neighbours differ much
        return difference.mean() <= 4
    # One level where 16 bits, of colours or of a palette, become 8, and one more in a luminance.
    return difference.max(initial=0) <= 2
