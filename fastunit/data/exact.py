"""Files whose values 8 bits cannot hold: 16 bits, floating numbers, and any number of channels.

Values are brought from a range to [-1, 1] linearly, in float32, and clipped: the range of the
domain (data.range_a, data.range_b or data.value_range), or that of the file's dtype, 0..1 for
floating numbers. Domains with a range, or with other than 1 or 3 channels, are always read so;
translation reads every file of more than 8 bits so.
"""

from __future__ import annotations

import ast
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fastunit.common import extras
from fastunit.common.errors import DataError
from fastunit.data import image_io
from fastunit.data.file_list import Files
from fastunit.data.image_io import Limits, Reading
from fastunit.data.image_kinds import floating, is_tiff, kind_of

ARRAY = ".npy"
_NPY = b"\x93NUMPY"
_ROWS = 256  # scaled at a time
_LUMINANCE = (0.299, 0.587, 0.114)


def of_domain(files: Sequence[Path], reading: Reading) -> Reading:
    """Return how a domain's files are read, which depends on whether arrays are among them."""
    return replace(reading, arrays=any(n.lower().endswith(ARRAY) for n in Files(files).names))


def decode(data: bytes, reading: Reading, *, deep: bool) -> np.ndarray:
    """Decode and check a file: uint8 [H, W, channels], or float32 in [-1, 1].

    Args:
        data: the file's bytes.
        reading: how the domain's files are read.
        deep: read files of more than 8 bits as float32 also in a domain without a range.

    Raises:
        DataError: the file cannot be decoded, or has values or channels that do not fit.
    """
    if not _regular(data, reading, deep):
        return floats(data, reading)
    pixels = image_io.decode(data, reading)  # both decoders agree
    if not kind_of(data).deep or not (deep or reading.value_range):
        return pixels
    return floats(data, reading)


def floats(data: bytes, reading: Reading) -> np.ndarray:
    """Decode a file that was checked: float32 [H, W, channels] in [-1, 1].

    Raises:
        DataError: as `decode`.
    """
    if data.startswith(_NPY):
        return scaled(_fitted(_array(data, reading.limits), reading, colours=False), reading)
    if not _regular(data, reading, deep=True):
        return scaled(_fitted(_tiff(data, reading), reading, colours=True), reading)
    if not kind_of(data).deep:
        return scaled(image_io.decode(data, reading), reading)
    values = image_io.sixteen_bits(data, reading)
    if values is None:  # without DALI, of colours
        if reading.value_range:
            raise DataError(
                f"16-bit colours, to which only DALI applies {reading.key}: "
                f"{extras.install('train')}; or save it as grayscale"
            )
        return scaled(image_io.decode(data, reading), reading)
    return scaled(values, reading)


def from_image(image: Image.Image, reading: Reading) -> np.ndarray:
    """Return a Pillow image's pixels as those of a file: uint8 [H, W, C], or float32 in [-1, 1].

    float32 for modes that start with I, which are taken as 16 bits, and F. Others are as in
    `image_io.from_image`.

    Raises:
        DataError: with the reason.
    """
    if reading.channels not in (1, 3):
        raise DataError(
            f"the domain has {reading.channels} channels, but Pillow images are gray (1) or RGB "
            "(3); give a tensor or an array"
        )
    if image.mode != "F" and not image.mode.startswith("I"):
        return image_io.from_image(image, reading)
    try:
        upright = ImageOps.exif_transpose(image)
        values = np.asarray(upright)
        if upright.mode != "F" and not reading.value_range:
            values = image_io.sixteen_bits_of(upright).astype(np.uint16)
    except OSError as error:  # Pillow opens files lazily: this one is only read now
        raise DataError(f"damaged or truncated: {error}") from error
    return scaled(_fitted(values[..., None], reading, colours=True), reading)


def scaled(values: np.ndarray, reading: Reading) -> np.ndarray:
    """Return values [H, W, C] of any real dtype as float32 in [-1, 1].

    Raises:
        DataError: the range is not known, or floating values are not in 0..1 without one, or NaN.
    """
    low, high = reading.value_range or _range(values, reading.key)
    out = np.empty(values.shape, np.float32)
    for row in range(0, len(values), _ROWS):  # by parts: float64 would need much memory
        part = values[row : row + _ROWS].astype(np.float64)
        if not np.isfinite(part).all():
            raise DataError("its values are not all finite")
        out[row : row + _ROWS] = np.clip((part - low) / (high - low), 0, 1) * 2 - 1
    return out


def is_array(data: bytes, reading: Reading) -> bool:
    """Return whether `decode` reads a file as an array: .npy, and TIFFs by tifffile."""
    return not _regular(data, reading, deep=True)


def _regular(data: bytes, reading: Reading, deep: bool) -> bool:
    """Return whether Pillow and DALI decode a file; the others are TIFFs and arrays."""
    if data.startswith(_NPY):
        return False
    if reading.channels not in (1, 3):
        if not is_tiff(data):
            raise DataError(
                f"{reading.channels} channels are read from TIFF and {ARRAY} files alone; save it "
                "as one of them, or train with an input_dim of 1 or 3"
            )
        return False
    return not (floating(data) and (deep or reading.value_range))


def _range(values: np.ndarray, key: str) -> tuple[float, float]:
    """Return the range of a dtype."""
    remedy = f"state their range, as in --set {key}=[low,high]"
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return 0, np.iinfo(values.dtype).max
    if values.dtype.kind != "f":
        raise DataError(f"values of {values.dtype} have no usual range; {remedy}")
    least, largest = values.min(), values.max()
    if not (least >= 0 and largest <= 1):  # NaN fails too
        raise DataError(f"floating values {least:g}..{largest:g} are not in 0..1; {remedy}")
    return 0, 1


def _fitted(values: np.ndarray, reading: Reading, *, colours: bool) -> np.ndarray:
    """Return [H, W, channels]; gray and colours, with or without alpha, become one another."""
    wanted, found = reading.channels, values.shape[2]
    if colours and wanted in (1, 3) and found in (2, 4):
        values, found = values[..., :-1], found - 1
    if found == wanted:
        return values
    if (found, wanted) == (1, 3):
        return np.repeat(values, 3, axis=2)
    if (found, wanted) == (3, 1) and colours:
        return (values @ np.array(_LUMINANCE)).astype(np.float32)[..., None]
    raise DataError(f"{found} channels, where the domain has {wanted} (input_dim)")


def _array(data: bytes, limits: Limits) -> np.ndarray:
    """Return the array of an .npy file, [H, W, C]."""
    try:
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        length = int.from_bytes(stream.read(2 if version == (1, 0) else 4), "little")
        header = ast.literal_eval(stream.read(length).decode("latin1"))
        shape, dtype = tuple(header["shape"]), np.dtype(header["descr"])
        order = "F" if header["fortran_order"] else "C"
        if len(shape) not in (2, 3) or 0 in shape:
            raise DataError(f"an array of shape {shape}; it must be [H, W] or [H, W, C]")
        if dtype.kind not in "uif":
            raise DataError(f"an array of {dtype}; it must be of real numbers")
        limits.check_size(shape[1], shape[0])
        values = np.frombuffer(data, dtype, math.prod(shape), stream.tell())
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"damaged or truncated: {error}") from error
    return values.reshape(*shape, *[1] * (3 - len(shape)), order=order)


def _tiff(data: bytes, reading: Reading) -> np.ndarray:
    """Return the first page of a TIFF, [H, W, C]; or as many pages of gray as there are channels.

    TIFFs whose zero is white are refused.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DataError(
            "TIFFs of floating colours or of other than 1 or 3 channels need tifffile: "
            f"{extras.install('tiff')}"
        ) from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages: list[Any] = [file.pages[0]]
            if pages[0].samplesperpixel == 1 and len(file.pages) == reading.channels:
                pages = list(file.pages)
            planes = [_page(page, reading.limits) for page in pages]
            return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a dozen types
        said = str(error).strip("\"'")
        raise DataError(f"cannot be read as TIFF: {said}"[:300]) from error


def _page(page: Any, limits: Limits) -> np.ndarray:
    tags = page.tags
    limits.check_size(page.imagewidth, page.imagelength)
    if int(page.photometric) == 0:
        raise DataError("TIFF whose zero is white; save it with zero for black")
    if 274 in tags and int(tags[274].value) != 1:
        raise DataError("TIFF that is to be turned; save it upright")
    values = page.asarray(maxworkers=1)
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, 2)
    values = values.reshape(*values.shape, *[1] * (3 - values.ndim))
    if values.ndim != 3 or values.dtype.kind not in "uif":
        raise DataError(f"TIFF of shape {values.shape} and {values.dtype}")
    return values
