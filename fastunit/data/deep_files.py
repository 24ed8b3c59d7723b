"""Files of 16 bits, of floating numbers, and of other than 1 or 3 channels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastunit.common import extras
from fastunit.common.errors import DataError
from fastunit.common.files import atomic
from fastunit.data.exact import ARRAY

Bits = Literal[8, 16, 32]
RANGES: dict[Bits, tuple[float, float]] = {8: (0, 255), 16: (0, 65535), 32: (0, 1)}
_TYPES = {8: np.uint8, 16: np.uint16, 32: np.float32}
_TIFF = (".tif", ".tiff")
_ROWS = 256  # converted at a time


def check(file: Path, bits: Bits, channels: int) -> None:
    """Raise DataError if a file's format cannot hold so many bits or channels."""
    suffix = file.suffix.lower()
    colours = channels in (1, 3)
    if suffix == ARRAY or suffix in _TIFF or (suffix == ".png" and bits == 16 and colours):
        if suffix in _TIFF and (bits != 8 or not colours):
            _tifffile()
        return
    if bits != 8 or not colours:
        what = f"{bits} bits" if colours else f"{channels} channels"
        png = ", png" if bits == 16 and colours else ""
        raise DataError(f"{file}: {suffix} cannot hold {what}; choose --format tif{png} or npy")


def values_of(y: np.ndarray, bits: Bits, value_range: tuple[float, float] | None) -> np.ndarray:
    """Return float32 [H, W, C] in [-1, 1] as values of a range: uint8, uint16 or float32.

    Whole numbers are rounded to nearest. 8 bits are 0..255 whatever the range.

    Raises:
        DataError: 16 bits cannot hold the range.
    """
    low, high = value_range if value_range and bits != 8 else RANGES[bits]
    if bits == 16 and not 0 <= low < high <= 65535:
        raise DataError(f"16 bits cannot hold {low:.9g}..{high:.9g}; use 32 (--bits 32)")
    out = np.empty(y.shape, _TYPES[bits])
    for row in range(0, len(y), _ROWS):
        part = (np.clip(y[row : row + _ROWS], -1, 1).astype(np.float64) + 1) / 2
        part = low + part * (high - low)
        out[row : row + _ROWS] = part if bits == 32 else np.rint(part)
    return out


def write(
    values: np.ndarray,
    file: Path,
    *,
    alpha: np.ndarray | None = None,
    profile: bytes = b"",
    exif: bytes = b"",
) -> None:
    """Write uint8, uint16 or float32 [H, W, C] atomically as PNG, TIFF or .npy.

    Args:
        values: the image; PNG takes uint16 of 1 or 3 channels.
        file: its extension is the format.
        alpha: uint8 [H, W], for PNG.
        profile: an ICC profile, for PNG and TIFF; b"": none.
        exif: EXIF data, for PNG; b"": none.

    Raises:
        DataError: the format cannot hold what is given beside the values.
        OSError: the file cannot be written.
    """
    suffix = file.suffix.lower()
    holds = {".png": ("alpha", "profile", "exif")}.get(suffix, ("profile",) * (suffix in _TIFF))
    beside = {"alpha": alpha is not None, "profile": profile, "exif": exif}
    for name, given in beside.items():
        if given and name not in holds:
            raise DataError(f"{suffix} of {values.dtype} is written without {name}; leave it out")
    with atomic(file) as temporary:
        if suffix == ".png":
            temporary.write_bytes(b"".join(_png(values, alpha, profile, exif)))
        elif suffix in _TIFF:
            _write_tiff(values, temporary, profile)
        else:
            with open(temporary, "wb") as stream:
                np.save(stream, values, allow_pickle=False)


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise DataError(
            "TIFFs of 16 bits, floating numbers or other than 1 or 3 channels need tifffile: "
            f"{extras.install('tiff')}"
        ) from error
    return tifffile


def _write_tiff(values: np.ndarray, file: Path, profile: bytes) -> None:
    colours = values.shape[2] == 3
    _tifffile().imwrite(
        file,
        values if values.shape[2] > 1 else values[..., 0],
        photometric="rgb" if colours else "minisblack",
        planarconfig="contig" if values.shape[2] > 1 else None,
        compression="zlib",
        iccprofile=profile or None,
        metadata=None,
        software=False,
    )


def _png(
    values: np.ndarray, alpha: np.ndarray | None, profile: bytes, exif: bytes
) -> Iterator[bytes]:
    """Yield the parts of a PNG of 16 bits (ISO/IEC 15948), each row less the one above it."""
    if alpha is not None:
        values = np.concatenate([values, alpha.astype(np.uint16)[..., None] * 257], axis=2)
    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    yield b"\x89PNG\r\n\x1a\n"
    yield _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    if profile:
        yield _chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile))
    if exif:
        yield _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    deflater, above = zlib.compressobj(6), np.zeros(width * channels * 2, np.uint8)
    data = bytearray()
    for row in values:
        line = row.astype(">u2").reshape(-1).view(np.uint8)
        data += deflater.compress(b"\2" + (line - above).tobytes())  # 2: filter "up"
        above = line
    yield _chunk(b"IDAT", bytes(data + deflater.flush()))
    yield _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
