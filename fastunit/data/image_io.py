"""Decode one image file to pixels, and write pixels to one image file.

This is the one definition of how a file is decoded, for the check before training, for translation
and, because the check rejects files that DALI decodes differently, for training as well. Pixels
have 8 bits: 16-bit values are scaled by 1/257 (or by the domain's value range), floating-point
grayscale in 0..1 by 255. Images are rotated by their EXIF orientation; alpha is dropped, not
blended; a single channel is the luminance (for JPEG the stored one); of several frames or pages
the first is used.
"""

from __future__ import annotations

import errno
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastunit.common import regular
from fastunit.common.choices import ImageLoader
from fastunit.common.errors import DataError
from fastunit.common.files import atomic
from fastunit.data import dali, profiles
from fastunit.data.image_kinds import Kind, even_chunks, is_webp, kind_of, webp_size

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # Pillow would run a program for some (EPS)
NOT_AN_IMAGE = f"not an image of the formats {', '.join(FORMATS)}, or its header is damaged"
_MODES = {1: "L", 3: "RGB"}
_ROWS = 256  # compared at a time
_JPEG = {"quality": 95, "subsampling": 0}
_NEAREST = np.round(np.arange(65536) / 257).astype(np.uint8)  # 16 bits to 8
_NAMES = {"alpha": "alpha", "exif": "EXIF data", "icc_profile": "ICC profile"}
_CANNOT_HOLD = {".jpg": ("alpha",), ".jpeg": ("alpha",), ".bmp": tuple(_NAMES)}
_OPTIONS = {".jpg": _JPEG, ".jpeg": _JPEG, ".webp": {"lossless": True}}


@dataclass(frozen=True)
class Limits:
    """What reading one file may take: pixels of the image, bytes of the file, seconds.

    `key` names the limit of pixels in messages.
    """

    pixels: int = 2**26  # 67 million: cameras have up to 61
    bytes: int = 2**28
    seconds: float = 30.0
    key: str = "data.max_pixels"

    def check_size(self, width: int, height: int) -> None:
        """Raise DataError for an image of more pixels."""
        if width * height > self.pixels:
            raise DataError(
                f"too large: {width}x{height} pixels, more than {self.key}={self.pixels}; "
                "shrink it, or raise that limit"
            )


@dataclass(frozen=True)
class Reading:
    """How a domain's files are converted to pixels, of 8 bits or float32.

    `value_range` (low, high) holds the values that become -1 and 1; with it, for other than 1 or 3
    channels, and where `arrays` are among the files, `exact` reads them. `key` names its
    configuration key in messages. `loader` is data.loader: with "pillow", or without DALI, Pillow
    alone decodes.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None
    key: str = "data.range_a or data.range_b"
    limits: Limits = field(default_factory=Limits)
    loader: ImageLoader = "auto"
    arrays: bool = False

    def __hash__(self) -> int:
        return hash((self.channels, self.value_range))  # of a part: millions of files ask

    @property
    def exact(self) -> bool:
        """Whether all files are read as float32, by `exact`."""
        return self.arrays or self.value_range is not None or self.channels not in (1, 3)


def reading_of(config: Any, domain: str) -> Reading:
    """Return how a configuration reads the files of domain "a" or "b"."""
    of, data = config.domain(domain), config.data
    limits = Limits(data.max_pixels, data.max_bytes, data.max_seconds)
    return Reading(of.channels, of.value_range, f"data.range_{domain}", limits, data.loader)


def read(file: Path, channels: int) -> np.ndarray:
    """Return a file's pixels as training sees them: uint8 [H, W, channels]; in this process.

    Raises:
        DataError: the file cannot be read, or training would see other pixels; the message gives
            the reason without the file's name.
    """
    return decode(content(file), Reading(channels))


def decode(data: bytes, reading: Reading) -> np.ndarray:
    """Decode a file's bytes to uint8 [H, W, channels], with Pillow and DALI; both must agree.

    The result is that of the loader that reads training images, to the bit (except JPEGs decoded on
    a GPU): DALI's, or without DALI Pillow's, which differs by at most one level, in the luminance
    of colour images and in 16-bit colours.

    Raises:
        DataError: the file cannot be decoded, or the decoders disagree; with the reason.
    """
    kind = kind_of(data)
    defined, name = _by_pillow(data, reading)
    if reading.value_range and not kind.deep:
        raise DataError(_not_deep(reading))
    if not dali.used(reading.loader):
        return defined
    seen = dali.decode(for_loader(data, kind), reading.channels, name)
    agree = _agree(seen, defined, kind)
    if agree and kind.deep:
        values = dali.decode(data, reading.channels, "16 bits", deep=True)
        agree = _agree(_NEAREST[values], seen, kind)
    if not agree:
        raise DataError(f"the loader (DALI) misreads {name}; save it as PNG or JPEG")
    return seen


def sixteen_bits(data: bytes, reading: Reading) -> np.ndarray | None:
    """Return a 16-bit file's values: uint16 [H, W, C]; None for those that only DALI decodes."""
    if dali.used(reading.loader):
        return dali.decode(data, reading.channels, "16 bits", deep=True)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if not image.mode.startswith("I"):  # Pillow brings colours to 8 bits
            return None
        values = sixteen_bits_of(ImageOps.exif_transpose(image)).astype(np.uint16)
    return np.repeat(values[..., None], reading.channels, axis=2)


def for_loader(data: bytes, kind: Kind) -> bytes:
    """Return a file's bytes as they are given to DALI, so that it reads them right and in silence.

    Planar TIFFs, for each of which DALI prints an error before its fallback decodes them, become
    uncompressed PPM.
    """
    if is_webp(data):
        return even_chunks(data)
    if not kind.planar:
        return data
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        pixels = _pixels(_eight_bits(ImageOps.exif_transpose(image)), 3)
    return b"P6 %d %d 255\n" % pixels.shape[1::-1] + pixels.tobytes()


def from_image(image: Image.Image, reading: Reading) -> np.ndarray:
    """Return a Pillow image's pixels, converted as those of a file: uint8 [H, W, channels].

    Pixels with a colour profile are converted to sRGB. Pillow alone decodes, so pixels of a JPEG
    may differ from `decode`'s by a few levels. The image is not modified.

    Raises:
        DataError: with the reason.
    """
    try:
        if reading.value_range:
            raise DataError(_not_deep(reading))
        pixels = _eight_bits(ImageOps.exif_transpose(image))
        if profiles.applies(pixels):
            pixels = profiles.to_srgb(pixels)
        return _pixels(pixels, reading.channels, image.format)
    except OSError as error:  # Pillow opens files lazily: this one is only read now
        raise DataError(f"damaged or truncated: {error}") from error


def of_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Return uint8 [H, W, 1 or 3] as gray (1) or RGB (3)."""
    return _pixels(to_image(pixels), channels)


def to_image(pixels: np.ndarray) -> Image.Image:
    """Return uint8 [H, W, 1 or 3] as an image of mode L or RGB."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def write(
    pixels: np.ndarray,
    file: Path,
    *,
    alpha: np.ndarray | None = None,
    profile: bytes = b"",
    exif: bytes = b"",
) -> None:
    """Write uint8 [H, W, 1 or 3] atomically, in the format of the file's extension.

    JPEG has quality 95 and full colour resolution; all other formats are lossless.

    Args:
        pixels: the image.
        file: its extension is the format.
        alpha: uint8 [H, W].
        profile: an ICC profile; b"": none.
        exif: EXIF data; b"": none.

    Raises:
        DataError: the format cannot hold the image (WebP: at most 16383 pixels a side), or what is
            given beside it.
        OSError: the file cannot be written.
    """
    image, suffix = to_image(pixels), file.suffix.lower()
    beside = {"alpha": alpha is not None, "exif": exif, "icc_profile": profile}
    for name in _CANNOT_HOLD.get(suffix, ()):
        if beside[name]:
            raise DataError(f"{suffix} holds no {_NAMES[name]}; choose --format png, tif or webp")
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    options = {name: beside[name] for name in ("exif", "icc_profile") if beside[name]}
    try:
        with atomic(file) as temporary:
            image.save(temporary, **_OPTIONS.get(suffix, {}), **options)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        size = f"{image.width}x{image.height} pixels"
        raise DataError(f"{size} cannot be written as {file.suffix}: {error}") from error


def content(file: Path, limits: Limits | None = None) -> bytes:
    """Return an image file's bytes; raises DataError with the reason, without the file's name."""
    try:
        data = regular.read(file, (limits or Limits()).bytes)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and file.is_symlink():
            raise DataError("a link to a file that does not exist") from error
        more = " (data.max_bytes)" if error.errno == errno.EFBIG else ""
        raise DataError(f"{error.strerror}{more}") from error
    except MemoryError as error:
        raise DataError("too little memory to read it") from error
    if not data:
        raise DataError("empty: zero bytes")
    return data


def _by_pillow(data: bytes, reading: Reading) -> tuple[np.ndarray, str]:
    """Decode completely with Pillow: uint8 [H, W, channels], and the file's format and mode."""
    channels, limits = reading.channels, reading.limits
    try:
        if is_webp(data):
            limits.check_size(*(webp_size(data) or (0, 0)))
        # From memory: Pillow 13 scrambles rotated grayscale TIFFs that it memory-maps itself.
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            limits.check_size(*image.size)
            name = f"{image.format} in mode {image.mode}"
            if image.format == "WEBP" and image.info.get("exif"):
                name += " with EXIF data"
            if channels == 1:
                image.draft("L", image.size)  # for JPEG the stored luminance, as DALI does
            upright = _eight_bits(ImageOps.exif_transpose(image))
            return _pixels(upright, channels, image.format), name
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(NOT_AN_IMAGE) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"too large: {error}") from error
    except MemoryError as error:
        raise DataError("too little memory to decode it") from error
    except Exception as error:  # Pillow's plugins raise a dozen exception types on damaged files
        raise DataError(f"damaged or truncated: {error}") from error


def _pixels(image: Image.Image, channels: int, file_format: str | None = None) -> np.ndarray:
    """Return an 8-bit image, of a file of that format, as uint8 [H, W, channels], without alpha."""
    if image.mode != _MODES[channels]:
        # Through RGBA: Pillow warns if a palette's transparency is dropped directly.
        image = image.convert("RGBA").convert("RGB")
        if channels == 1:
            if file_format == "PNG":
                return _floored_luminance(np.asarray(image))
            image = image.convert("L")
    values = np.asarray(image)
    return values.reshape(*values.shape[:2], channels)


def _floored_luminance(colours: np.ndarray) -> np.ndarray:
    """Return the luminance rounded down, as DALI does for PNG; Pillow and it round others."""
    luminance = colours[..., 0] * np.int32(4899)
    luminance += colours[..., 1] * np.int32(9617)
    luminance += colours[..., 2] * np.int32(1868)
    return (luminance >> 14).astype(np.uint8)[..., None]


def sixteen_bits_of(image: Image.Image) -> np.ndarray:
    """Return the values of a 16-bit image, [H, W], possibly in a wider dtype."""
    values = np.asarray(image)
    if values.size and not (values.min() >= 0 and values.max() <= 65535):
        raise DataError(f"values {values.min()}..{values.max()} are not of 16 bits (0..65535)")
    return values


def _not_deep(reading: Reading) -> str:
    low, high = reading.value_range or (0, 65535)
    return (
        f"not of 16 bits or floating, as {reading.key}=[{low:.9g}, {high:.9g}] expects; save it "
        "with 16 bits, or train without that range"
    )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Rescale modes of more than 8 bits, which Pillow's own conversions would clip."""
    if image.mode.startswith("I"):
        return Image.fromarray(_NEAREST[sixteen_bits_of(image)])
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN fails too
            raise DataError(f"floating values {values.min()}..{values.max()} are not in 0..1")
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    return image


def _agree(seen: np.ndarray, defined: np.ndarray, kind: Kind) -> bool:
    """Return whether two decoders gave the same image, up to rounding."""
    if seen.shape != defined.shape:
        return False
    total, largest = 0, 0
    for row in range(0, len(seen), _ROWS):  # by parts: whole differences would need much memory
        x, y = seen[row : row + _ROWS], defined[row : row + _ROWS]
        difference = np.maximum(x, y) - np.minimum(x, y)
        total += int(difference.sum(dtype=np.int64))
        largest = max(largest, int(difference.max(initial=0)))
    if kind.lossy:  # JPEG decoders may differ by a few levels at strong edges
        return total <= 4 * seen.size
    # One level from 16 to 8 bits (colours or palette), and one more in the luminance.
    return largest <= 2
